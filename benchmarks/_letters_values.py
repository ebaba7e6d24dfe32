"""Invented numbers, amounts, dates and addresses in the forms that people write: the pools of `_letters.py`.

Every function takes a seeded generator and gives one value as text. Check digits are right where a form has
them (cards, IBANs, NHS numbers), so that a detector that checks them is not put off. Nothing here belongs to
anybody: cards have the issuers' test prefixes, names under `example.org` and its like are reserved.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from random import Random

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth",
)  # fmt: skip
SMALL = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "eleven", "twelve", "fifteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
CURRENCIES = ("pounds", "dollars", "euros", "francs", "zloty", "crowns", "rupees", "quid", "bucks")
Value = Callable[[Random], str]


def digits(rng: Random, shape: str) -> str:
    """`shape` with every # a digit, every ? a capital letter; the first # is never 0."""
    made = ""
    for sign in shape:
        if sign == "#":
            made += rng.choice("0123456789" if any(c.isdigit() for c in made) else "123456789")
        else:
            made += rng.choice("ABCDEFGHJKLMNPRSTVWXYZ") if sign == "?" else sign
    return made


def ascii_of(text: str) -> str:
    """`text` in lower case as it stands in an address: letters a to z alone."""
    plain = unicodedata.normalize("NFKD", text.lower()).replace("ł", "l").replace("ø", "o")
    return "".join(c for c in plain if "a" <= c <= "z")


def date(rng: Random) -> str:
    """A calendar date, with or without its year."""
    year, month, day = rng.randrange(1938, 2026), rng.randrange(12), rng.randrange(1, 29)
    name, m, short = MONTHS[month], month + 1, year % 100
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    return rng.choice(
        [
            f"{day:02d}.{m:02d}.{year}", f"{day}.{m}.{year}", f"{day:02d}/{m:02d}/{year}", f"{m}/{day}/{short:02d}",
            f"{year}-{m:02d}-{day:02d}", f"{year}-{m:02d}-{day:02d}T{clock}", f"{day}{suffix} of {name}",
            f"{day}{suffix} {name} {year}", f"{name} {day}, {year}", f"{name} {day}{suffix}", f"{day} {name[:3]} {year}",
            f"{name} '{short:02d}", f"{name[:3]}. {day}", f"{day} {name}", f"{name} {year}", f"{day:02d}-{name[:3]}-{short:02d}",
            f"the {rng.choice(ORDINALS)} of {name}", f"{name} the {rng.choice(ORDINALS)}", f"{year}/{m:02d}/{day:02d}",
            f"{day:02d}{m:02d}{year}", f"{rng.choice(ORDINALS)} {name} {year}", f"{day}. {m}. {year}",
        ]
    )  # fmt: skip


def time(rng: Random) -> str:
    """A time of day."""
    hour, minute, word = rng.randrange(1, 12), rng.choice((5, 10, 15, 20, 25, 35, 45, 50, 55)), rng.choice(SMALL[:9])
    return rng.choice(
        [
            f"{hour + 10}:{minute:02d}", f"{hour:02d}:{minute:02d}", f"{hour}.{minute:02d} am", f"{hour}:{minute:02d} p.m.",
            f"{hour}pm", f"{hour}am", f"half past {word}", f"quarter to {word}", f"ten past {word}", f"{word} o'clock",
            f"{hour + 10:02d}{minute:02d} hrs", f"{hour + 10}h{minute:02d}", f"{hour + 10}:{minute:02d}:07", f"{hour}:{minute:02d}",
            f"twenty to {word}", f"{word} thirty", f"{hour + 10}.{minute:02d} Uhr",
        ]
    )  # fmt: skip


def money(rng: Random) -> str:
    """An amount with its currency, in figures."""
    n, cents = rng.randrange(110, 990), rng.randrange(10, 99)
    k = rng.randrange(2, 98)
    return rng.choice(
        [
            f"£{k},{n}.{cents}", f"£{n}", f"${n}.{cents}", f"${k},{n}", f"{k}.{n},{cents} EUR", f"€{n}", f"{n},{cents} €",
            f"EUR {k}.{n}", f"CHF {k}'{n}.{cents}", f"{n} pounds", f"{n} euros", f"US${k},{n}", f"{k}k", f"{k * 1000} dollars",
            f"Rs. {k},{n}", f"{k} {n} kr", f"{n} zł", f"GBP {n}.{cents}", f"{n} quid", f"A${n}", f"R$ {n},{cents}", f"¥{k}{n}",
            f"£{k}.{n % 9}m", f"{n}p", f"{n},- Kč",
        ]
    )  # fmt: skip


def money_in_words(rng: Random) -> str:
    """An amount written out."""
    a, b, ten, unit = rng.choice(SMALL), rng.choice(SMALL[:8]), rng.choice(TENS), rng.choice(CURRENCIES)
    return rng.choice(
        [
            f"{b} hundred and {ten} {unit}", f"{b} grand", f"a hundred thousand {unit}", f"{a} thousand {unit}", f"{ten}-{b} {unit}",
            f"{ten} {unit}", f"half a million {unit}", f"a couple of thousand {unit}", f"{a} hundred {unit}", f"{ten} grand",
            f"{b} and a half thousand {unit}", f"{b} thousand {a} hundred {unit}",
            f"ten {unit}", f"{ten} thousand", f"a hundred and {ten} {unit}", f"one million {unit}", f"{b} hundred {unit} and {ten} cents",
        ]
    )  # fmt: skip


def phone(rng: Random) -> str:
    """A telephone number in a national or international form."""
    return digits(
        rng,
        rng.choice(
            [
                "020 7946 0###", "07700 900###", "(0118) 496 0###", "+44 7700 900 ###", "0117/4960-###", "(###) 555-01##", "###-555-01##",
                "1-###-555-01##", "+1 ### 555 01##", "555.01##", "030/2312####", "+49 (0)30 2312 5###", "0171 39200##", "089-123 45 ##",
                "01 99 00 ## ##", "+33 6 39 98 ## ##", "06.39.98.##.##", "91 ### ## ##", "+34 6## ### ###", "06 ### ## ###",
                "+39 06 6982 ####", "044 668 1# ##", "+41 79 ### ## ##", "020-24# ## ##", "+31 6 ########", "08-465 004 ##",
                "+46 70 174 06 ##", "22 ### ## ##", "+48 ### ### ###", "(02) 5550 ####", "0491 570 ###", "+61 491 570 1##",
                "+91 98### #####", "080-####-####", "(11) 9####-####", "+55 11 9#### ####", "+353 20 91# ####", "0x #### ####".replace("x", "3"),
                "0800 CALL ##", "00 44 20 7946 0###",
            ]
        ),
    )  # fmt: skip


def card(rng: Random) -> str:
    """A card number with a right check digit, bare, in blocks or with hyphens."""
    prefix, length = rng.choice([("4000 00", 16), ("4111 11", 16), ("5555 55", 16), ("2223 00", 16), ("3782 82", 15)])
    body = prefix.replace(" ", "") + "".join(rng.choice("0123456789") for _ in range(length - 7))
    number = body + luhn(body)
    cuts = (4, 8, 12, 16) if length == 16 else (4, 10, 15)
    parts = [number[a:b] for a, b in zip((0, *cuts), cuts, strict=False)]
    return rng.choice([" ", " ", "-", ""]).join(parts)


def luhn(body: str) -> str:
    """The check digit of a card number.

    >>> luhn("411111111111111")
    '1'
    """
    twice = [int(c) * 2 if i % 2 == 0 else int(c) for i, c in enumerate(reversed(body))]
    return str(-sum(n - 9 if n > 9 else n for n in twice) % 10)


def iban(country: str, body: str) -> str:
    """An IBAN with its check digits.

    >>> iban("GB", "WEST12345698765432")
    'GB82WEST12345698765432'
    """
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def account(rng: Random) -> str:
    """A bank account: IBANs of ten countries, and national forms."""
    country, shape = rng.choice(
        [
            ("DE", "#" * 18), ("GB", "WEST" + "#" * 14), ("FR", "#" * 23), ("ES", "#" * 20), ("NL", "ABNA" + "#" * 10), ("PL", "#" * 24),
            ("CH", "#" * 17), ("AT", "#" * 16), ("IE", "AIBK" + "#" * 14), ("SE", "#" * 20), ("NO", "#" * 11),
        ]
    )  # fmt: skip
    number = iban(country, digits(rng, shape))
    spaced = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    national = digits(
        rng,
        rng.choice(
            ["##-##-## ########", "12-34-## ########", "#########/####", "0######## / 12030000", "021000021 / 00########", "062-000 #### ####"]
        ),
    )
    return rng.choice([number, spaced, spaced, national])


def passport(rng: Random) -> str:
    """A passport or identity card number."""
    return digits(rng, rng.choice(["#########", "?########", "??#######", "C01X0006H", "L01X#####", "??? ######", "P?#######"]))


def licence(rng: Random) -> str:
    """A driving licence number."""
    return digits(rng, rng.choice(["?????######??9??", "?#######", "D###-####-####", "B072RRE#I##", "???##########", "## ?? #####"]))


def nino(rng: Random) -> str:
    """A national insurance or social security number."""
    return digits(rng, rng.choice(["AB ## ## ## C", "JK######D", "###-##-####", "1 85 03 75 ### ### ##", "### ### ###", "######-####"]))


def tax(rng: Random) -> str:
    """A tax number."""
    return digits(
        rng, rng.choice(["## ### ### ###", "##-#######", "##/###/#####", "##########", "DE#########", "GB### #### ##", "ATU########"])
    )


def case(rng: Random) -> str:
    """The number of a case, a policy, a booking or a claim."""
    return digits(
        rng,
        rng.choice(
            [
                "3 O ###/18", "2:19-cv-0####", "HQ19X0####", "KB-2024-00####", "#######/A", "POL-######-?", "??##??", "1 BvR ###/20",
                "C-###/19", "RMA #####", "INV/2023/####", "####-B/##", "CLM######", "X#Y#Z##",
            ]
        ),
    )  # fmt: skip


def plate(rng: Random) -> str:
    """A licence plate."""
    return digits(
        rng,
        rng.choice(["??## ???", "B-?? ####", "M ?? ###", "#???###", "??-###-??", "???-####", "??? ###", "KR #?###", "## ?? ##", "12-D-#####"]),
    )


def patient(rng: Random) -> str:
    """A patient's or NHS number."""
    while True:
        body = digits(rng, "#########")
        check = -sum(int(c) * w for c, w in zip(body, range(10, 1, -1), strict=True)) % 11
        if check < 10:
            break
    nhs = f"{body[:3]} {body[3:6]} {body[6:]}{check}"
    return rng.choice([nhs, nhs.replace(" ", ""), digits(rng, "P-######"), digits(rng, "MRN#######"), digits(rng, "A########9")])


def vin(rng: Random) -> str:
    """A vehicle identification number."""
    return digits(rng, rng.choice(["WVWZZZ1?Z?W######", "1HGCM#####A######", "VF1??######?#####", "SALLAAA##?A######"]))


def meter(rng: Random) -> str:
    """Another number of a file: of a meter, an employee, a chip, a lock."""
    return digits(rng, rng.choice(["E-#####", "######", "####-###", "7###0###2", "9760#### #######", "##?##", "M#.####.##", "SN?#######"]))


def document(rng: Random) -> str:
    """Any number of an identity paper."""
    return rng.choice((passport, licence, nino, tax, patient, plate, vin))(rng)


def network(rng: Random) -> str:
    """An address of a machine."""
    hexes = "".join(rng.choice("0123456789abcdef") for _ in range(12))
    pairs = [hexes[i : i + 2] for i in range(0, 12, 2)]
    return rng.choice(
        [
            f"192.0.2.{rng.randrange(10, 250)}", f"198.51.100.{rng.randrange(10, 250)}", f"10.{rng.randrange(10, 99)}.{rng.randrange(10, 99)}.17",
            f"2001:db8::{hexes[:4]}:{hexes[4:8]}", f"2001:db8:{hexes[:4]}::{hexes[4:6]}", ":".join(pairs).upper(), "-".join(pairs),
            f"{hexes[:4]}.{hexes[4:8]}.{hexes[8:]}", f"203.0.113.{rng.randrange(10, 250)}:8080", f"pc-{hexes[:4]}.lan", f"SRV-{hexes[:3].upper()}01",
        ]
    )  # fmt: skip


def postcode(rng: Random) -> str:
    """A postcode of one of ten countries."""
    return digits(
        rng, rng.choice(["BA1 #??", "SW1A #AA", "EH## #??", "?# #??", "#####", "#####-####", "#### ??", "##-###", "### ##", "K#? #?#", "L-####", "D04 ?#?#"])
    )


def email(rng: Random, first: str, last: str) -> str:
    """An address; `first` and `last` are a person's names."""
    a, b, n = ascii_of(first), ascii_of(last), rng.randrange(10, 99)
    host = rng.choice(["example.org", "example.com", "example.net", "mail.example.com", "post.example.org", "uni.example.net"])
    local = rng.choice([f"{a}.{b}", f"{b}{n}", f"{a}_{b}", f"{a[:1]}{b}", f"{a}.{b}+news", f"{a}-{n}", f"{b}.{a[:1]}", f"info.{b}", f"the{b}s"])
    spoken = f"{a} dot {b} at example dot org"
    return rng.choice([f"{local}@{host}"] * 18 + [f"{local}@{host}".title(), spoken, f"{local} (at) {host}"])


def url(rng: Random, first: str, last: str) -> str:
    """The address of a page."""
    a, b, n = ascii_of(first), ascii_of(last), rng.randrange(100, 999)
    return rng.choice(
        [
            f"https://www.example.org/people/{a}-{b}", f"www.{b}-family.example.net", f"example.com/~{b}", f"https://{a}{b}.example.org",
            f"profiles.example.com/in/{a}{b}{n}", f"http://192.0.2.7:8080/{b}", f"ftp://files.example.net/{b}/", f"https://example.org/f/{n}?user={a}",
            f"{b}.example.com", f"https://share.example.net/d/{n}aB{n}", f"www.example.org/{b}.html", f"{a}-{b}.example.org/blog",
        ]
    )  # fmt: skip


def handle(rng: Random, first: str, last: str) -> str:
    """A name by which somebody goes on the net."""
    a, b, n = ascii_of(first), ascii_of(last), rng.randrange(10, 99)
    return rng.choice([f"@{a}{b}", f"@{a}_{n}", f"@the_real_{b}", f"{a}_{b}{n}", f"u/{b}{n}", f"{a}{n}", f"@{b}.{a}", f"xX{a}Xx", f"{a}#{n}{n}", f"@{b}"])


FREE: dict[str, tuple[str, Value]] = {
    "date": ("date", date), "time": ("time", time), "money": ("money", money), "moneywords": ("money", money_in_words),
    "phone": ("phone", phone), "card": ("card", card), "account": ("account", account), "passport": ("document", passport),
    "licence": ("document", licence), "nino": ("document", nino), "tax": ("document", tax), "case": ("document", case),
    "plate": ("document", plate), "patient": ("document", patient), "vin": ("document", vin), "meter": ("document", meter),
    "document": ("document", document), "network": ("identifier", network), "postcode": ("place", postcode),
}  # fmt: skip
NAMED: dict[str, tuple[str, Callable[[Random, str, str], str]]] = {
    "email": ("email", email),
    "url": ("url", url),
    "handle": ("identifier", handle),
}
