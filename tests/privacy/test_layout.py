"""Layout is kept as typed where words pass: a restored text is the text, to the byte, whatever it holds."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.privacy.test_numbers import pieces, sanitizer

from transom.privacy.characters import normalise
from transom.privacy.layout import aligned
from transom.privacy.placeholders import Placeholders

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PARTS = [
    "the", "Jane", "cat", " ", "  ", "\t", "\n", "\r\n", "\r", "\n\n\n", "\u00a0", "\u202f", "“",
    "”", "‘", "’", "…", "–", "—", "-", "‐", "5", "£3", "it’s", "don’t", "O’Neil", "é", "e\u0301",
    "**", "# ", "| ", "`x`", ". ", "\u200b", "\ufeff", "\u202e", "ﬁ", "Ｊane", "😀",
    "👨\u200d👩\u200d👧", "\x00", "½", "№", "\u0301", "김", "한", "🇩🇪",
]  # fmt: skip
TYPED = st.lists(st.sampled_from(PARTS) | st.text(max_size=2), max_size=14).map("".join)
SHOWN = "".join(map(chr, range(32, 127))) + "\t\n\r\f\u00a0\u2009\u202f–—•‘’‚‛′´“”„‟«»‐‑‒−﹣―…"


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that no example waits for the policy."""
    sanitizer().sanitize("the", placeholders=Placeholders())


@settings(deadline=None)
@given(ANY_TEXT | TYPED)
@example("\r")
@example("a\u0301\u0323")
@example("\u200b")
@example("[PERSON_1] \u200b[NAME\u200b_1]")
def test_a_restored_text_is_the_text(text: str) -> None:
    placeholders = Placeholders()
    done = sanitizer().sanitize(text, placeholders=placeholders)
    assert placeholders.restore(done.text) == text
    assert "".join(piece.source for piece in done.pieces) == text


@settings(deadline=None)
@given(ANY_TEXT | TYPED)
def test_what_is_shown_is_plain_layout_or_a_public_word(text: str) -> None:
    """Nothing invisible is shown, nor a word in other characters than its own, composed or decomposed."""
    for piece in pieces(text):
        if piece.action == "pass":
            for character in unicodedata.normalize("NFC", piece.output):
                assert character in SHOWN or unicodedata.category(character)[0] == "L"
                assert character in SHOWN or normalise(character) == character


@settings(deadline=None)
@given(TYPED)
def test_every_normalised_character_has_its_place(text: str) -> None:
    clean, ends_C = aligned(text)
    assert (ends_C is None) == (clean == text)
    if ends_C:
        assert len(ends_C) == len(clean)
        assert ends_C == sorted(ends_C)
        assert ends_C[-1] <= len(text)


@settings(deadline=None)
@given(st.text(alphabet="abcdeJ .,'\t\n\r\u00a0“”’…–é5", max_size=60))
def test_alignment_normalises(text: str) -> None:
    assert aligned(text)[0] == normalise(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("He said “no”…\r\n\r\n\tthe – end — it’s", "He said “no”…\r\n\r\n\tthe – end — it’s"),
        ("th\u200be end", "[SYMBOL_1] end"),
        ("\ufeffthe end", "[SYMBOL_1]the end"),
        ("the \u200b end", "the[SYMBOL_1]end"),
        ("the ﬁrst", "the [SYMBOL_1]"),
        ("the \x00end", "the[SYMBOL_1]end"),
    ],
)
def test_layout_is_shown_and_what_may_carry_hidden_content_is_not(text: str, shown: str) -> None:
    assert sanitizer().sanitize(text, placeholders=Placeholders()).text == shown


def test_layout_is_normalised_where_words_are_drawn() -> None:
    done = sanitizer("words").sanitize("the “and”\r\n\r\n\r\n of\tit’s", placeholders=Placeholders())
    assert done.text == 'the "and"\n\nof it\'s'


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece", ["\u200b", "a\u0301", "\u0301", " \t", "\r\n", "“", "…", "ﬁ", " \u200b", "e\u200b"]
)
def test_long_runs_are_read(piece: str) -> None:
    text, placeholders = piece * 20_000, Placeholders()
    assert placeholders.restore(sanitizer().sanitize(text, placeholders=placeholders).text) == text
