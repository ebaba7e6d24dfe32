"""Values of many countries are one token of the stated kind; what says nothing about anybody passes."""

from __future__ import annotations

import re
from functools import cache
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.privacy.kinds import FIELDS, Span
from transom.privacy.numbers import OPEN_CODES
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Piece, Sanitizer

VALUES = {
    "date": """
        12.03.1985 | 12/03/1985 | 3/12/85 | 03-12-1985 | 1985-03-12 | 1985/03/12 | 12.3.85 | 31.12.1999
        2019 | 3rd of March 1985 | 3rd of March, 1985 | 3 March 1985 | March 3, 1985 | March 3rd 1985
        3rd March | 21st of December | the 1st of May 2001 | March '19 | March 2019 | 12-Mar-1985
        12-mar-85 | 12/Mar/1985 | 1985-03-12T14:30:00Z | 1985-03-12T14:30 | 2001-09-11T08:46:40+02:00
        12.03.1985 14:30 | 10-12 May | 10–12 May 2020 | 2019/20 | 12/2019 | 12. Oktober 1990
        3. März 2001 | 1 janvier 1999 | 8 de febrero de 1971 | 7 juillet | 14 stycznia 2012 | 3 maart 2010
        twelfth of March | twelfth of March 1985 | twelfth June 1947 | twenty-first of May 1990
        third of the July | May 3rd | May the third | August the ninth | Jan. 5, 2020 | 5 MAY 1995 | 1990s
        Sept 4 | 4 Sept. 2003
    """,
    "time": """
        9:30 pm | 9:30pm | 9.30pm | 9 pm | 9pm | 9:30 a.m. | 9 p.m. | 14:30 | 14:30:05 | 07:05 | 1935 hrs
        18.15 Uhr | 18:15 Uhr | 14h30 | half past nine | half past 9 | quarter to three
        a quarter past ten | quarter past 6 | ten to twelve | ten past six | twenty past four
        twenty-five to two | nine o'clock | 9 o'clock | half nine | 1500 hours | 9:30 GMT | 20 past 9
        five to one
    """,
    "money": """
        £3,400.50 | $5 | $5m | $5 million | €12.50 | 12,50 € | 12.50€ | EUR 1.234,56 | 1.234,56 EUR
        USD 400 | 400 USD | US$5 | CA$40 | ¥5000 | ₹500 | Rs. 500 | Rs 500 | kr 500 | 500 kr | 443 zł
        CHF 1'200 | 3 400,50 € | £ 40 | two hundred and fifty euros | four grand | 4 grand
        a hundred thousand dollars | half a million zloty | a couple of thousand rupees
        two and a half million pounds | 458 quid | twenty-five bucks | five pounds
        five pounds and fifty pence | 5 pounds | 50p | three thousand rupees | a few hundred dollars
        ten cents | 5 million euros | 58000 dollars | 40 francs | several thousand crowns | 300 yuan
    """,
    "phone": """
        +44 20 7946 0958 | +442079460958 | 020 7946 0958 | (020) 7946 0958 | +44 (0)20 7946 0958
        (030) 1234-567 | +49 30 1234567 | 030/1234567 | 0049 30 1234567 | 01 23 45 67 89
        +33 1 23 45 67 89 | 555-123-4567 | (555) 123-4567 | 555.123.4567 | 1-555-123-4567
        +1 555 123 4567 | +1-555-123-4567 | 555-0199 | 07700 900123 | 06 12345678 | +31 6 12345678
        +48 601 234 567 | +61 2 5550 1234 | 08-123 456 78 | 555 123 4567 | 07700900123
    """,
    "card": """
        4111 1111 1111 1111 | 4111-1111-1111-1111 | 4111111111111111 | 3782 822463 10005 | 378282246310005
        5555 5555 5555 4444 | 4111 1111 1111 1112
    """,
    "account": """
        DE89 3704 0044 0532 0130 00 | DE89370400440532013000 | GB82 WEST 1234 5698 7654 32
        GB82WEST12345698765432 | NL91 ABNA 0417 1643 00 | FR14 2004 1010 0505 0001 3M02 606
        NO93 8601 1117 947 | 40-47-84 | 40-47-84 12345678
    """,
    "document": """
        123-45-6789 | QQ 12 34 56 C | QQ123456C | 1HGCM82633A004352 | AB12 CDE | AB 123 CD | AB-123-CD
        52 CV 9323 | M-AB 1234 | C01X00T47 | X1234567 | HR/2019/123 | ABC-1234 | OL-742844-P | HJ64AH
    """,
    "place": """
        SW1A 1AA | EH23 4BA | M1 1AE | D-10115 | CH-8001 | 1012 AB | 3428 AB | K1A 0B1 | 90210-1234
    """,
    "email": """
        jane@example.org | jane.o'neil+x@mail.example.co.uk | jane dot doe at example dot org
        walter at example dot com
    """,
    "url": """
        https://example.org/a?b=c | www.example.org | example.co.uk/jane | http://192.0.2.7:8080/p
        EXAMPLE.COM
    """,
    "identifier": """
        192.168.0.1 | 00:1A:2B:3C:4D:5E | 00-1a-2b-3c-4d-5e | fe80::1ff:fe23:4567:890a | 2001:db8::1
        123e4567-e89b-12d3-a456-426614174000 | @jane | report.pdf | C:\\Users\\jane | /home/jane/notes
        MP3 | H2O
    """,
    "number": """
        42 | 10115 | 75008 | 15% | 3/4 | 3½ | 3rd | 1,234 | two hundred | 1st | thirty-two | ٣٤٥ | fifteen
    """,
}  # fmt: skip
TABLE = [
    (value.strip(), kind)
    for kind, listed in VALUES.items()
    for line in listed.splitlines()
    for value in line.split("|")
    if value.strip(" -")
]
AROUND = (
    ("it was ", " then"),
    ("(", ")"),
    ("see ", "."),
    ("see ", ", and"),
    ('"', '"'),
    ("", ""),
    ("by\n", "\nnow"),
)


@cache
def sanitizer(preset: str = "entities") -> Sanitizer:
    return Sanitizer(with_preset(load_policy(), preset))


def pieces(text: str, preset: str = "entities", **options: list[Span]) -> tuple[Piece, ...]:
    return sanitizer(preset).sanitize(text, placeholders=Placeholders(), **options).pieces


def hidden(text: str, preset: str = "entities") -> list[tuple[str, str]]:
    return [(piece.source, piece.kind) for piece in pieces(text, preset) if piece.action != "pass"]


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that no example waits for the policy."""
    sanitizer().sanitize("the", placeholders=Placeholders())


def test_the_table_is_long() -> None:
    assert len(TABLE) > 200


@pytest.mark.parametrize(("value", "kind"), TABLE)
def test_a_value_is_one_token_of_its_kind(value: str, kind: str) -> None:
    whole = value.removeprefix("the ")
    for before, after in AROUND:
        if value.endswith(".") and after[:1] in (".", ")", '"'):
            continue
        assert hidden(before + value + after) == [(whole, kind)], before + value + after


@pytest.mark.parametrize(("value", "kind"), TABLE)
def test_a_value_never_passes_where_words_are_drawn(value: str, kind: str) -> None:
    """No digit is seen under any preset."""
    for preset in ("words", "sensitive"):
        for piece in pieces(f"it was {value} then", preset):
            assert piece.action != "pass" or not any(map(str.isdigit, piece.source))


HARMLESS = """
give me 5 ideas | write 3 sentences about it | for 10 kids | in 12 steps
one of them | three weeks later | the two of us | twelve angry men | in March we met | since last October
every Monday | on Sundays | a Tuesday in April | the third man | first of all | in the second half
half of it | a quarter of an hour | past the house | ten minutes ago | see page 3 of it | in chapter 12
step 4 is next | table 2 shows it | version 3.11.2 works | a few of us | a couple of friends
several people | the dot on it | she is at home | at the shop dot on the map | the game of rock and the crown
the pound of flesh | a penny for your thoughts | he took a step back | the question was put
it was half empty | one, two, three, go | nine out of ten agree | he came first or second | one of a kind
one more time | in May and in June | he may come | they march in the street | an august man
a) this b) that | other (x) and v. w | dear all | don't you? | it's ours | they won | on the page
this version is better | who is first | hours of work | dozens of people | past and present | a grand piano
half the cake | quarter of the year | the euro fell | the yen rose | by the dozen | a real crown
the rand is weak | at last | ten of them | five apples | the twelve of us | we are seven
six feet under | nor | else | cannot | login | others | word by word | either way
is it the third or the fourth | second thoughts | the first of many | for the umpteenth time
a point in time | the time is up | money is tight | call me later | send an email | the phone is off
my account is closed | the card was lost | a document | the passport | the table | what page? | no question
in the evening | at noon | by midnight | around lunch | the year after | a decade ago | last century
wait... what | well - no | this - that | yes/no | and/or | (as agreed) | "quoted" | 'so' | a; b: c | end.
“typographic” | ‘single’ | it’s | wait… what | – dash — | • item | tab	there
"""
PASSING = [part.strip() for line in HARMLESS.splitlines() for part in line.split("|") if part.strip()]


def test_the_list_of_what_is_harmless_is_long() -> None:
    assert len(PASSING) > 100


@pytest.mark.parametrize("text", PASSING)
def test_what_says_nothing_passes(text: str) -> None:
    assert hidden(f"and {text} and") == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1. one\n2. two\n3. three", []),
        ("1) one\n2) two\n\n3) three", []),
        ("(1) one\n(2) two", []),
        ("1. one\n  a) that\n  b) this\n2. two\n  a) that\n  b) this\n3. end", []),
        ("steps: 1. this 2. that 3. end", []),
        ("1. alone", ["1"]),
        ("7. seven\n8. eight", ["7", "8"]),
        ("1. one\n3. three", ["1", "3"]),
        ("1. one\n2. two\n4. four", ["4"]),
        ("1. one\n2. two\n12) no", ["12"]),
        ("1 apple\n2 apples", ["1", "2"]),
        ("page 12 and pages 3, not 12345678901", ["12345678901"]),
        ("of 30 pages", ["30"]),
    ],
)
def test_items_that_count_from_one_pass(text: str, numbers: list[str]) -> None:
    assert [source for source, _ in hidden(text)] == numbers


def test_words_that_steer_values_are_not_read_where_words_are_drawn() -> None:
    found = {piece.source: piece.kind for piece in pieces("two hundred quid at half past nine pm", "words")}
    assert found["two hundred"] == "number"
    assert found["nine"] == "number"
    assert {"quid", "half", "past"} <= found.keys()


def test_words_that_steer_values_pass_where_words_do() -> None:
    for word in ("quid", "zloty", "quarter", "twelfth", "dozens"):
        assert hidden(f"the {word} was", "sensitive") == []


@pytest.mark.parametrize("preset", ["entities", "sensitive"])
def test_no_word_that_steers_a_value_is_drawn_or_hidden_where_words_pass(preset: str) -> None:
    """Or what becomes of the number beside it would tell it, whatever rules its kind is given."""
    policy = with_preset(load_policy(), preset)
    steering = [
        word for word in OPEN_CODES if word in policy.word_ids and policy.listed.get(word) != "person"
    ]
    budgets = dict.fromkeys(("uncommon", "instruction", *FIELDS), 4.0)
    for rules in (budgets, dict.fromkeys(budgets, "placeholder")):
        sanitizer = Sanitizer(policy.with_rules(rules))
        for word in steering:
            done = sanitizer.sanitize(f"the {word} 3 of it", placeholders=Placeholders())
            assert done.drawn == 0
            assert not [piece for piece in done.pieces if piece.kind in budgets]


PUBLIC = ["Question: ", "Answer.\n", "the", "5", "May ", "\ue000", "at", "dot", "DE89", "http://a.b/"]
PRIVATE = [
    " ",
    "\n",
    "5",
    "may",
    "Jane",
    " at example dot org",
    "3704 0044",
    "@x.de",
    "cat",
    ".",
    "\ue001",
    "h",
]
CLAIMS = ["public", "person", "health"]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PRIVATE), st.sampled_from(PUBLIC), st.sampled_from(CLAIMS)), max_size=6
    ),
    st.sampled_from(PRIVATE),
)
def test_every_span_is_a_token_of_its_own(parts: list[tuple[str, str, str]], last: str) -> None:
    text, spans = "", []
    for before, claimed, kind in parts:
        text += before
        spans.append(Span(len(text), len(text) + len(claimed), kind))
        text += claimed
    text += last
    found = pieces(text, spans=spans)
    ends = [0, *accumulate(len(piece.source) for piece in found)]
    cut = {Span(start, end, piece.kind) for start, end, piece in zip(ends, ends[1:], found, strict=False)}
    assert "".join(piece.source for piece in found) == text
    assert set(spans) <= cut
    assert all(piece.output == piece.source for piece in found if piece.kind == "public")


@pytest.mark.parametrize(
    ("public", "hides"),
    [("Answer.\n", False), ("Question: ", False), ("Say! ", False), ("the man called ", True), ("(", False)],
)
def test_public_text_says_what_a_capital_behind_it_says(public: str, hides: bool) -> None:
    found = pieces(f"{public}Apples are good", spans=[Span(0, len(public), "public")])
    assert (found[1].action == "placeholder") is hides


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    ["1", "1 ", "1-", "may ", "1. ", "a dot ", "at a dot ", "half a ", "DE89 ", "AB 1 ", "10:", "a:", "1) ",
     "half ", "two ", "(1)"],
)  # fmt: skip
def test_crafted_values_take_linear_time(text: str) -> None:
    text *= 60_000 // len(text)
    assert "".join(piece.source for piece in pieces(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "13 dogs",
        "0 dogs",
        "05 dogs",
        "3 child",
        "3, dogs",
        "x3 dogs",
        "3 Dogs",
        "£3 dogs",
        "3 pounds",
    ],
)
def test_other_numbers_before_words_are_values(text: str) -> None:
    sanitizer = Sanitizer(with_preset(load_policy(), "entities"))
    shown = sanitizer.sanitize(f"we saw {text} there", placeholders=Placeholders()).text
    assert not any(character.isdigit() for character in re.sub(r"\[[A-Z_0-9]+\]", "", shown))
