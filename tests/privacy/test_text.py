"""The lexer loses nothing, passes nothing unlisted, and reads running and tokenised text alike."""

from __future__ import annotations

import string
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from transom.privacy.characters import MASK
from transom.privacy.kinds import base_of
from transom.privacy.text import (
    _CHUNK,
    _TOKEN,
    PASSING_PUNCTUATION,
    Words,
    case_of,
    is_plain_word,
    lex,
    normalise,
    with_case,
)

ANY_TEXT = st.text(st.characters(), max_size=60)
FRAGMENTS = [
    "[NAME_1]",
    "don't",
    "ca n't",
    "3½",
    "x²",
    "a@b.de",
    "http://x.y",
    "\u200b",
    "\u0301",
    "ﷺ",
    "'",
    "ＡＢ",
    "…",
]
MIXED_TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=10).map("".join)


def kinds(text: str) -> list[tuple[str, str]]:
    return [(base_of(token.kind), token.text) for token in lex(text) if token.kind != "space"]


def marked(text: str) -> list[str]:
    return [token.text for token in lex(text) if token.marked]


@given(ANY_TEXT | MIXED_TEXT)
@example("\ud800 lone surrogate")
def test_tokens_cover_the_normalised_text_without_gap(text: str) -> None:
    assert "".join(token.text for token in lex(text)) == normalise(text)


@given(ANY_TEXT | MIXED_TEXT)
def test_only_listed_characters_can_pass(text: str) -> None:
    for token in lex(text):
        if token.kind == "space":
            assert set(token.text) <= {" ", "\n"}
        elif token.kind == "punct":
            assert token.text in PASSING_PUNCTUATION
        else:
            assert base_of(token.kind) in {"word", "number", "identifier", "name", "foreign", "symbol"}


@given(ANY_TEXT | MIXED_TEXT)
def test_every_letter_and_digit_is_in_a_protected_token(text: str) -> None:
    protected = "".join(token.text for token in lex(text) if token.kind not in ("space", "punct"))
    kept = [c for c in normalise(text) if c.isalnum() or unicodedata.category(c)[0] in "MS"]
    assert not [c for c in kept if c not in protected and c not in string.punctuation]
    if text.isascii():
        assert [c for c in text if c.isalnum()] == [c for c in protected if c.isalnum()]


@given(ANY_TEXT)
def test_nothing_invisible_survives(text: str) -> None:
    for character in normalise(text):
        assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        assert character == " " or unicodedata.category(character) != "Zs"


@given(MIXED_TEXT)
def test_a_normalised_text_reads_the_same_again(text: str) -> None:
    clean = normalise(text)
    if clean.isascii():
        assert normalise(clean) == clean


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("42", "number"), ("$1,234.56", "number"), ("€3½", "number"), ("15%", "number"),
        ("10:30pm", "number"),
        ("2024-01-05", "number"), ("31/12/1999", "number"), ("3rd", "number"), ("1990s", "number"),
        ("٣٤٥", "number"), ("１２３", "number"), ("192.168.0.1", "identifier"), ("①", "number"),
        ("a.b@c.de", "identifier"), ("https://x.y/z?q=Ada", "identifier"), ("www.x.de/a", "identifier"),
        ("@ada", "identifier"), ("#ada", "identifier"), ("B2B", "identifier"), ("im_start", "identifier"),
        ("x²", "identifier"), ("_", "identifier"), ("[NAME_1]", "identifier"),
        ("[NA\u200bME_1]", "identifier"),
        ("😀", "symbol"), ("👨‍👩‍👧", "symbol"), ("❤️", "symbol"), ("。", "symbol"), ("\ue000", "symbol"),
        ("°", "symbol"),
        ("e\u0335", "foreign"), ("a\u0301b\u0335", "foreign"),
        ("café", "word"), ("我住在北京", "word"), ("Привет", "word"), ("se\u200bcret", "word"),
        ("o'clock", "word"),
    ],
)  # fmt: skip
def test_one_token_of_the_stated_kind(text: str, kind: str) -> None:
    assert [found for found, _ in kinds(text)] == [kind]


@pytest.mark.parametrize(
    ("running", "tokenised"),
    [
        ("don't", "do n't"), ("can't", "ca n't"), ("it's", "it 's"), ("we've", "we 've"), ("DON'T", "DO N'T"),
        ("I'm", "I 'm"), ("rock's", "rock 's"), ("don’t", "do n’t"), ("won't", "wo n't"),
    ],
)  # fmt: skip
def test_contractions_read_alike_in_both_styles(running: str, tokenised: str) -> None:
    first, second = ([t for t in lex(text) if t.kind != "space"] for text in (running, tokenised))
    assert [(t.text, t.lookup, t.case) for t in first] == [(t.text, t.lookup, t.case) for t in second]
    assert len(first) == 2


def test_short_forms_before_not_are_looked_up_in_full() -> None:
    assert [token.lookup for token in lex("can't ca wo n't") if token.kind == "word"] == [
        "can", "n't", "ca", "will", "n't",
    ]  # fmt: skip


def test_hyphens_part_words() -> None:
    assert kinds("well-made") == [("word", "well"), ("punct", "-"), ("word", "made")]


def test_white_space_is_normalised() -> None:
    assert normalise("a \t\u00a0b\r\n  c\n\n\n\nd\u2028e") == "a b\nc\n\nd\ne"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The dog saw Ada.", ["Ada"]),
        ("It rained. The dog slept. What? No! Yes", []),
        ("Ask Dr. Smith or J. Doe", ["Dr", "Smith", "J", "Doe"]),
        ("He said \"The dog\" and 'The cat'", []),
        ("first line\nSecond line", []),
        ("I and I'm here", []),
        ("WE ARE HERE", []),
        ("we met IBM people\nWE ARE HERE", ["IBM"]),
        ("it is an iPhone, McDonald", ["iPhone", "McDonald"]),
        ("Will Will go", ["Will", "Will"]),
        ("5 Apples", ["Apples"]),
    ],
)
def test_capitals_that_mark_a_name(text: str, names: list[str]) -> None:
    assert marked(text) == names


@pytest.mark.parametrize(
    ("word", "case"),
    [
        ("cat", "lower"),
        ("Cat", "title"),
        ("CAT", "upper"),
        ("I", "title"),
        ("cAt", "mixed"),
        ("McD", "mixed"),
        ("n't", "lower"),
    ],
)  # fmt: skip,
def test_case_patterns(word: str, case: str) -> None:
    assert case_of(word) == case
    if case_of(word) != "mixed":
        assert with_case(word.lower(), case_of(word)) == word


@pytest.mark.parametrize("word", ["cat", "n't", "'s", "o'clock", "über"])
def test_plain_words(word: str) -> None:
    assert is_plain_word(word)


@pytest.mark.parametrize(
    "word", ["", "Cat", "well-made", "u.s.", "b2b", "don't", "two words", "5", "[NAME_1]", "a\n"]
)
def test_words_that_no_vocabulary_may_hold(word: str) -> None:
    assert not is_plain_word(word)


@pytest.mark.parametrize(
    "piece",
    ["a.", "a@", "'a", "a://", "a'", "1-", "a\n", "é", "[NAME_", "☺", "x\u0301", "a-", "a.a.a", "1 A 1 A",
    "[",
     "- - -", "/a", "../", "C:\\", "a''b", "may ", "1 may ", "two-", "Will ", "Of The\n", "(a)\n", "a.B",
     "n'n"],
)  # fmt: skip
def test_crafted_text_of_many_characters_is_lexed(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    assert "".join(token.text for token in lex(text)) == normalise(text)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("part", "tail"),
    [
        ("1.", "1a"), ("a'", "a1"), ("1-", "x"), ("ab'", "_"), ("a.", "A"), ("a-", "A!"), ("/a", "!"),
        ("a''", "b"),
        ("two-", "x"), ("n'", "t"),
    ],
)  # fmt: skip
def test_parts_that_fail_at_the_very_end_are_not_tried_again(part: str, tail: str) -> None:
    """Quadratic lexing of this text would take hours."""
    text = part * 100_000 + tail
    tokens = lex(text)
    assert "".join(token.text for token in tokens) == normalise(text)
    assert {base_of(token.kind) for token in tokens} <= {"word", "number", "identifier", "punct", "space"}


@given(text=st.text(alphabet="aA1 .'-/:@é_\n\\,&(=\u0301$%~#wst", max_size=60) | MIXED_TEXT)
@pytest.mark.parametrize("open_values", [False, True])
def test_no_piece_depends_on_what_lies_beyond_white_space(open_values: bool, text: str) -> None:
    clean = normalise(text)
    masked = clean.translate(MASK)
    whole = [clean[slice(*match.span())] for match in _TOKEN[open_values].finditer(masked)]
    words = Words(open_values=open_values)
    assert [token.text for chunk in _CHUNK.findall(clean) for token in words[chunk][0]] == whole
