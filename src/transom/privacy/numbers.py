"""Values: numbers, amounts, dates, times and codes that are written in several tokens, and the kind of each.

The lexer gives every token a code of one character (`CODES`); a value is a match of `_VALUE` in the codes
of a text, and becomes one token. Its kind follows from the pattern where a word says it (a month, a
currency, o'clock), else from the value's own shape. Check digits sort values, they never let one pass.

*Open* words (currencies, ordinals, `half`, `past`, `pm` ...) are ordinary words. They are read with a value
only under a policy that lets words pass: where words are drawn, what stands beside a number would tell which
of its group a word is.

Threat model and what it does not protect: those of the lexer.
Not seen: amounts without a digit, scale or currency (`a fortune`); where words pass, ages and counts up to
twelve in words, days of the week, and months alone.
Source: ISO 8601, 13616 (IBAN), 7812 (Luhn) and 3779 (VIN); postal and telephone forms after ITU-T E.123.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from transom.privacy.closed import (
    AMBIGUOUS_MONTHS,
    BEFORE_A_MONTH,
    MONTHS,
    NUMBER_WORDS,
    SCALES,
    SMALL_WORDS,
    SUBJECTS,
)

# `n` number, `y` that may be a year, `q` another of four digits, `w` in words, `5` five, ten or twenty, `h`
# hundred and up, `m` month, `M` month that is another word too, `J` that marked, `u` capitals, `U` few and
# marked, `L` one, `i` letters with digits, `$` a sign of currency, `k` a.m., `N` the word n't, `|`
# a line's end or a claimed stretch, punctuation itself, `x` anything else.
CODES = {
    **dict.fromkeys(SMALL_WORDS | SUBJECTS, "x"), **dict.fromkeys(BEFORE_A_MONTH, "p"),
    "n't": "N", "of": "o", "the": "t", "and": "a", "a": "A", "an": "A", "to": "T", "at": "E",
    **dict.fromkeys(MONTHS, "m"), **dict.fromkeys(AMBIGUOUS_MONTHS, "M"),
    **dict.fromkeys(NUMBER_WORDS, "w"), "five": "5", "ten": "5", "twenty": "5", **dict.fromkeys(SCALES, "h"),
}  # fmt: skip


def _coded(code: str, words: str) -> dict[str, str]:
    return dict.fromkeys(words.split(), code)


OPEN_CODES = {
    **_coded(
        "c",
        "dollar dollars euro euros pound pounds sterling quid buck bucks grand cent cents pence penny "
        "pennies franc francs crown crowns zloty zlotys zlotych złoty złotych rupee rupees yen yuan "
        "renminbi krone kroner kronor krona koruna peso pesos reais lira liras ruble rubles rouble "
        "roubles shekel shekels dirham dirhams rand riyal riyals dinar dinars forint forints naira "
        "shilling shillings baht ringgit rupiah bitcoin bitcoins guilder guilders lei leu kuna lev leva "
        "kč zł",
    ),
    **_coded(
        "e",
        "eur usd gbp chf jpy cad aud nzd sek nok dkk pln czk huf ron bgn inr pkr cny hkd sgd krw brl "
        "mxn zar aed ils thb rub uah btc kr rs",
    ),
    **_coded("H", "half"), **_coded("Q", "quarter"), **_coded("P", "past"), **_coded("K", "o'clock"),
    **_coded("k", "am pm hrs uhr gmt utc cet cest bst est edt pst pdt"), **_coded("j", "hours"),
    **_coded("C", "couple few several dozen dozens"), **_coded("h", "hundreds thousands millions billions"),
    **_coded("g", "page pages chapter paragraph figure table step slide question version"),
    **_coded("D", "dot"), **_coded("d", "de du del"),
    **_coded(
        "O",
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
        "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth",
    ),
    **_coded(
        "F",
        "januar jänner februar feber märz mai juni juli oktober dezember janvier février mars avril "
        "juin juillet août septembre octobre novembre décembre enero febrero marzo abril mayo junio "
        "julio agosto septiembre octubre noviembre diciembre gennaio febbraio aprile maggio giugno "
        "luglio settembre ottobre dicembre januari februari maart mei augustus janeiro fevereiro março "
        "maio junho julho setembro outubro dezembro stycznia lutego marca kwietnia maja czerwca lipca "
        "sierpnia września października listopada grudnia",
    ),
}  # fmt: skip
# Where words pass, small counts in words and months pass when they stand alone.
PUBLIC_ALONE = MONTHS.union(
    "one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
)
# The number of `page 3` points, and passes.
REFERENCES = frozenset(word for word, code in OPEN_CODES.items() if code == "g")
_CENTURIES = frozenset({"16", "17", "18", "19", "20", "21"})
_MERIDIEM = frozenset({"a.m.", "p.m."})

# In the patterns @ stands for the codes of digits.
_W = "[w5h]"
_APART = "(?!(?<=y)[ ]y)"  # two years side by side are two values
_BLOCK = rf"(?:{_APART}[ /-]?(?:\([@]\)[ -]?)?[@])"
_TAIL = r"(?:[ -][w5h]|(?<=h)[ ]a[ ][@w5h])*"  # of a number in words
_AMOUNT = rf"""(?:
    (?:A[ ])?C[ ](?:o[ ])?h{_TAIL}  # a couple of thousand
    |(?:[@w5][ ]a[ ]A[ ])?H[ ](?:A[ ])?h  # two and a half million
    |A[ ]h{_TAIL}
    |[@](?:{_APART}[ ][@])*{_TAIL}
    |{_W}{_TAIL}
)"""
_DAYS = r"[@](?:[ ]?[–-][ ]?[@])?"
_ORDINAL = r"(?:[w5]-)?O"
_YEAR = r"(?:,?[ ](?:d[ ])?y|,?[ ]?'[@])"
_ANY = "[a-zA-Z5]"
_PATTERN = rf"""
    (?P<identifier>
        i(?:[ -][@iU])+  # DE89 3704 0044, SW1A 1AA
        |[@i][ -][UuL][ -][@i](?:[ -][@iUL])*  # 52 CV 9323
        |[UL](?:[ /-][@i])+(?:[ -][UL])?|[UL]-[UL][ -][@i]|q[ ]U|u[/-][@i](?:[/-][@iULu])*|i
    )
    |(?P<email>
        {_ANY}(?:[ ]D[ ]{_ANY}){{0,4}}[ ]E[ ]{_ANY}(?:[ ]D[ ]{_ANY}){{1,4}}  # jane dot doe at example dot org
    )
    |(?P<date>
        {_DAYS}\.?[ ](?:[od][ ])?[mMJF](?:\.?{_YEAR})?  # 8th of may 1995
        |{_ORDINAL}[ ](?:o[ ](?:t[ ])?[mMJF]|[mJ]){_YEAR}?
        |[@](?:-[mMJF](?:-[@])?|/[mMJF](?:/[@])?|\.[mMJF](?:\.[@])?)
        |[mMJ](?:\.?[ ](?:t[ ])?{_DAYS}{_YEAR}?|,?[ ]y|[ ]?'[@])  # May 8th, 1995
        |(?:[mJ][ ](?:t[ ])?|[mMJ][ ]t[ ]){_ORDINAL}{_YEAR}?
        |m|(?<=[po][ ])[MJ]
    )
    |(?P<time>
        (?:A[ ])?[HQ][ ][PT][ ][@w5](?:[ ][Kk])?|[@5](?:-[w5])?[ ]P[ ][@w5]|5(?:-[w5])?[ ]T[ ][w5]|H[ ][w5]
        |[@w5](?:[ -][w5])?[ ](?:K|k)(?:[ ]k)?|[yq][ ]j  # half past nine, 9:30 pm
    )
    |(?P<money>
        (?:[$e]\.?[ ]?){_AMOUNT}(?:[ ]?[ce$])?
        |{_AMOUNT}[ ]?(?:o[ ])?[ce$](?:[ ]a[ ][@w5](?:[ -][w5])?[ ]c)?  # two euros and fifty cents
        |[uU][@]  # US$5
    )
    |(?P<number>
        (?:\+?\(\+?[@]\)[ -]?|\+)[@]{_BLOCK}*|[@]{_BLOCK}+  # +44 (0)20 7946 0958
        |{_AMOUNT}
    )
"""
_VALUE = re.compile(_PATTERN.replace("@", "nyq"), re.VERBOSE)
_BEGINNING = re.compile("[nyqiuULw5hmMJAHQCO$e+(]")  # of every value but an address that is spelled out

_CURRENCY = re.compile(r"[$€£¥¢₹₽₩₪₫₺₴₦฿₱₿¤]")
_TLD = (
    "com|org|net|edu|gov|mil|int|info|biz|name|io|ai|app|dev|eu|uk|ie|de|at|ch|fr|be|nl|lu|es|pt|it|dk|se|no|fi|"
    "is|pl|cz|sk|hu|ro|bg|gr|tr|ru|ua|us|ca|mx|br|ar|cl|au|nz|in|pk|cn|jp|kr|za|ng|ke|example|test|me|tv|co"
)
_DAY, _MONTH, _SHORT_YEAR = "(?:0?[1-9]|[12][0-9]|3[01])", "(?:0?[1-9]|1[0-2])", "[0-9]{2}"
_LONG_YEAR, _CLOCK, _MINUTES = "(?:1[89]|20)[0-9]{2}", "(?:[01]?[0-9]|2[0-4])", "[0-5][0-9]"
_DATES = (
    rf"{_LONG_YEAR}-[01]?[0-9]-[0-3]?[0-9](?:[T ]{_CLOCK}:.+)?",
    rf"{_DAY}([./-]){_MONTH}\1(?:{_LONG_YEAR}|{_SHORT_YEAR})(?: {_CLOCK}[:.].+)?",
    rf"{_MONTH}([/-]){_DAY}\1(?:{_LONG_YEAR}|{_SHORT_YEAR})",
    rf"{_LONG_YEAR}([/.]){_MONTH}\1{_DAY}",
    rf"{_LONG_YEAR}(?:[/-][0-9]{{2,4}})?|{_MONTH}/{_LONG_YEAR}|[12][0-9]{{2}}0s|{_DAY}\.{_MONTH}\.",
)
_TIMES = (
    rf"{_CLOCK}(?:[:.]{_MINUTES}(?::{_MINUTES})?)?\s?[ap]m",
    rf"{_CLOCK}:{_MINUTES}(?::{_MINUTES})?(?:z|[+-].+)?|{_CLOCK}h(?:{_MINUTES})?",
)
_POSTCODES = (
    r"[A-Z]{1,2}[0-9][A-Z0-9]? [0-9][A-Z]{2}|[1-9][0-9]{3} [A-Z]{2}|[A-Z][0-9][A-Z] [0-9][A-Z][0-9]",
    r"[A-Z]{1,2}-[0-9]{4,5}|[0-9]{5}-[0-9]{4}",
)
_ACCOUNTS = (
    r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,8}(?: ?[A-Z0-9]{1,4})?",
    r"[0-9]{2}-[0-9]{2}-[0-9]{2}(?: [0-9]+)?",
)
_PHONES = (
    r"[+(].*|0[0-9]{1,4}[ /.-].*|0[0-9]{9,13}",
    r"(?:1[ .-])?[0-9]{3}([ .-])[0-9]{3}\1[0-9]{4}|[0-9]{3}-[0-9]{4}",
)
_KNOWN_DOCUMENTS = (
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}|[A-Z]{2} ?(?:[0-9]{2} ?){3}[A-D]|[A-HJ-NPR-Z0-9]{17}(?<=[0-9]{3})"
)
# The first that fits decides. The last: capitals with two digits or more, five characters or more.
_SHAPES = tuple(
    (kind, re.compile(shape, re.IGNORECASE))
    for kind, shapes in (
        ("email", (r"[^@\s]+@[^@\s]+",)),
        ("url", (rf"[^\W\d_]+://.+|www\..+|(?:[\w-]+\.)+(?:{_TLD})(?:[:/?#].*)?",)),
        ("date", _DATES),
        ("time", _TIMES),
        ("document", (_KNOWN_DOCUMENTS,)),
        ("account", _ACCOUNTS),
        ("place", _POSTCODES),
        ("identifier", (r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?::[0-9]+)?",)),
        ("money", (r"[0-9]+p",)),
        ("phone", _PHONES),
        ("document", (r"(?=[^0-9]*[0-9][^0-9]*[0-9])(?=.*[A-Z])[A-Z0-9](?:[ /-]?[A-Z0-9]){4,}",)),
    )
    for shape in shapes
)
_FEWEST_PHONE_DIGITS, _FEWEST_OF_A_SHAPE = 7, 4
_EITHER_CASE = frozenset({"email", "url", "time", "date", "money"})


def values(codes: str) -> Iterator[re.Match[str]]:
    """The values in the codes of a text, from left to right."""
    if "D" in codes:
        yield from _VALUE.finditer(codes)
        return
    end = 0
    while found := _BEGINNING.search(codes, end):
        match = _VALUE.match(codes, found.start())
        end = match.end() if match else found.end()
        if match:
            yield match


def code_of(masked: str, *, run: bool) -> str:
    """The code of digits, of letters with digits, or of a sign that stands alone."""
    if masked.isdigit():
        return "n" if len(masked) != 4 else "y" if masked[:2] in _CENTURIES else "q"
    return "i" if run else "n"


def other_code(masked: str) -> str:
    """The code of an address, a symbol or a white space."""
    if masked[0] == "¤":
        return "$"
    return "k" if masked.lower() in _MERIDIEM else "x"


def kind_of_value(group: str, text: str) -> str:
    """The kind of a value: what the pattern says, else its shape."""
    if group not in ("number", "identifier"):
        return group
    if text.isalpha() or (len(text) < _FEWEST_OF_A_SHAPE and text.isdigit()):
        return group
    if _CURRENCY.search(text):
        return "money"
    for kind, shape in _SHAPES:
        if shape.fullmatch(text) and (kind in _EITHER_CASE or text == text.upper()):
            if kind == "phone" and sum(map(str.isdigit, text)) < _FEWEST_PHONE_DIGITS:
                continue
            return kind
    return "card" if group == "number" and _is_card(text) else group


def _is_card(text: str) -> bool:
    """Four blocks as on a card, or the right check digit."""
    digits = [int(c) for c in text if c.isdigit() and c.isascii()]
    if not 12 <= len(digits) <= 19:
        return False
    doubled = [sum(divmod(2 * digit, 10)) if i % 2 else digit for i, digit in enumerate(reversed(digits))]
    return (
        re.fullmatch(r"[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}", text) is not None
        or sum(doubled) % 10 == 0
    )
