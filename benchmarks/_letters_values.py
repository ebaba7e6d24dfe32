"""Invented numbers, amounts, dates and addresses in the forms that people write, for `_letters.py`.

The forms are pools of `_letters.txt`: in those of numbers # is a digit and ? a capital letter, the others
are format strings over the parts that the functions here draw. Check digits are right where a form has them
(cards, IBANs, NHS numbers), so that a detector that checks them is not put off. Nothing here belongs to
anybody: cards have the issuers' test prefixes, names under `example.org` and its like are reserved.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

_LISTS = """
January February March April May June July August September October November December
first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
two three four five six seven eight nine eleven twelve fifteen
twenty thirty forty fifty sixty seventy eighty ninety
pounds dollars euros francs zloty crowns rupees quid bucks
"""
MONTHS, ORDINALS, SMALL, TENS, CURRENCIES = (line.split() for line in _LISTS.strip().splitlines())
CARDS = {"400000": 16, "411111": 16, "555555": 16, "222300": 16, "378282": 15}
IBANS = {
    "DE": "#" * 18, "GB": "WEST" + "#" * 14, "FR": "#" * 23, "ES": "#" * 20, "NL": "ABNA" + "#" * 10,
    "PL": "#" * 24, "CH": "#" * 17, "AT": "#" * 16, "IE": "AIBK" + "#" * 14, "SE": "#" * 20, "NO": "#" * 11,
}  # fmt: skip
Forms = Sequence[str]


def shaped(rng: Random, forms: Forms) -> str:
    """One of the shapes, every # a digit, every ? a capital letter; the first digit is never 0."""
    made = ""
    for sign in rng.choice(forms):
        if sign == "#":
            made += rng.choice("0123456789" if any(map(str.isdigit, made)) else "123456789")
        else:
            made += rng.choice("ABCDEFGHJKLMNPRSTVWXYZ") if sign == "?" else sign
    return made


def date(rng: Random, forms: Forms) -> str:
    """A calendar date, with or without its year."""
    year, month, day = rng.randrange(1938, 2026), rng.randrange(12), rng.randrange(1, 29)
    return rng.choice(forms).format(
        d=day,
        m=month + 1,
        y=year,
        yy=year % 100,
        month=MONTHS[month],
        mon=MONTHS[month][:3],
        th={1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th"),
        nth=rng.choice(ORDINALS),
        clock=f"{rng.randrange(24):02d}:{rng.randrange(60):02d}",
    )


def time(rng: Random, forms: Forms) -> str:
    """A time of day."""
    hour, minute = rng.randrange(1, 12), rng.randrange(5, 60, 5)
    return rng.choice(forms).format(h=hour, late=hour + 10, m=minute, hour=rng.choice(SMALL[:9]))


def money(rng: Random, forms: Forms) -> str:
    """An amount with its currency, in figures or in words."""
    return rng.choice(forms).format(
        k=rng.randrange(2, 98),
        n=rng.randrange(110, 990),
        c=rng.randrange(10, 99),
        small=rng.choice(SMALL),
        other=rng.choice(SMALL[:8]),
        ten=rng.choice(TENS),
        unit=rng.choice(CURRENCIES),
    )


def card(rng: Random, forms: Forms) -> str:
    """A card number with a right check digit; `forms` are what stands between its blocks."""
    prefix = rng.choice(list(CARDS))
    body = prefix + "".join(rng.choice("0123456789") for _ in range(CARDS[prefix] - 7))
    number = body + luhn(body)
    cuts = (0, 4, 8, 12, 16) if len(number) == 16 else (0, 4, 10, 15)
    blocks = [number[start:end] for start, end in pairwise(cuts)]
    return {"blank": " ", "hyphen": "-"}.get(rng.choice(forms), "").join(blocks)


def luhn(body: str) -> str:
    """The check digit of a card number.

    >>> luhn("411111111111111")
    '1'
    """
    digits = [int(c) * 2 if i % 2 == 0 else int(c) for i, c in enumerate(reversed(body))]
    return str(-sum(n - 9 if n > 9 else n for n in digits) % 10)


def account(rng: Random, forms: Forms) -> str:
    """A bank account: an IBAN, bare or in blocks of four, or one of the national forms."""
    country = rng.choice(list(IBANS))
    number = iban(country, shaped(rng, [IBANS[country]]))
    blocks = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    return rng.choice([number, blocks, blocks, shaped(rng, forms)])


def iban(country: str, body: str) -> str:
    """An IBAN with its check digits.

    >>> iban("GB", "WEST12345698765432")
    'GB82WEST12345698765432'
    """
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def patient(rng: Random, forms: Forms) -> str:
    """A patient's number: a valid NHS number, bare or in blocks, or one of the forms."""
    check = 10
    while check == 10:
        body = shaped(rng, ["#########"])
        check = -sum(int(c) * weight for c, weight in zip(body, range(10, 1, -1), strict=True)) % 11
    blocks = f"{body[:3]} {body[3:6]} {body[6:]}{check}"
    return rng.choice([blocks, blocks.replace(" ", ""), shaped(rng, forms)])


def network(rng: Random, forms: Forms) -> str:
    """An address of a machine."""
    hexes = "".join(rng.choice("0123456789abcdef") for _ in range(12))
    pairs = [hexes[i : i + 2] for i in range(0, 12, 2)]
    return rng.choice(forms).format(
        n=rng.randrange(10, 250),
        m=rng.randrange(10, 99),
        a=hexes[:4],
        b=hexes[4:8],
        c=hexes[8:],
        host=hexes[:3].upper(),
        colons=":".join(pairs).upper(),
        hyphens="-".join(pairs),
    )


def named(rng: Random, forms: Forms, first: str, last: str) -> str:
    """An e-mail address, a page or a handle that a person's names are in."""
    a, b = ascii_of(first), ascii_of(last)
    return rng.choice(forms).format(a=a, b=b, i=a[:1], A=a.title(), B=b.title(), n=rng.randrange(10, 99))


def ascii_of(text: str) -> str:
    """`text` in lower case as it stands in an address: letters a to z alone."""
    plain = unicodedata.normalize("NFKD", text.lower()).translate(str.maketrans("łøđı", "lodi"))
    return "".join(c for c in plain if "a" <= c <= "z")


# Slot: kind of the value, and how it is made; the forms are the pool of the slot's name.
MADE: dict[str, tuple[str, Callable[[Random, Forms], str]]] = {
    "date": ("date", date),
    "time": ("time", time),
    "money": ("money", money),
    "moneywords": ("money", money),
    "phone": ("phone", shaped),
    "card": ("card", card),
    "account": ("account", account),
    **dict.fromkeys(
        ("passport", "licence", "nino", "tax", "case", "plate", "vin", "meter"), ("document", shaped)
    ),
    "patient": ("document", patient),
    "network": ("identifier", network),
    "postcode": ("place", shaped),
}
NAMED = {"email": "email", "url": "url", "handle": "identifier"}
PAPERS = ("passport", "licence", "nino", "tax", "patient", "plate", "vin")
