"""Words and phrases of a list: whole words, folded, as many as there are."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.folded import fold, visible
from transom.privacy.phrases import Phrases, key_of


def found(entries: list[str], text: str) -> list[str]:
    phrases = Phrases({key_of(entry): "rare" for entry in entries})
    return [text[span.start : span.end] for span in phrases.find(text)]


@pytest.mark.parametrize(
    ("entry", "text", "expected"),
    [
        ("Miller", "MILLER's and Miller-Lee, not Millers", ["MILLER", "Miller"]),
        ("Jane Miller", "jane\n  MILLER, Jane-Miller", ["jane\n  MILLER"]),
        ("AT&T", "At&T at & t", ["At&T", "at & t"]),
        ("C++", "c++ and C+", ["c++"]),
        ("O'Neil", "O’Neil o'neil", ["O’Neil", "o'neil"]),
        ("Straße", "STRASSE straße Strasse", ["STRASSE", "straße", "Strasse"]),
        ("Zoë", "ZOË Zoe\u0308 Zoe", ["ZOË", "Zoe\u0308"]),
        ("Miller", "Mil\u00adler Mil\u200bler", ["Mil\u00adler", "Mil\u200bler"]),
        ("office", "o\ufb03ce", ["o\ufb03ce"]),
        ("KD-7", "kd‑7 KD 7", ["kd‑7"]),
        ("田中", "田中、様", ["田中"]),
    ],
)
def test_an_entry_is_found_by_whole_words_in_any_case(entry: str, text: str, expected: list[str]) -> None:
    assert found([entry], text) == expected


def test_at_each_word_the_longest_entry_is_found() -> None:
    entries = ["New York", "New York Times", "York", "Times Square"]
    assert found(entries, "the New York Times Square") == ["New York Times", "York", "Times Square"]
    assert found(entries, "New York Post") == ["New York", "York"]


@given(
    st.lists(st.sampled_from(["ab", "Ab", "c", "é", "-", "'", " ", "\u200b", "ß"]), max_size=12).map("".join)
)
def test_a_text_holds_itself(text: str) -> None:
    """Also when its case or its form changes."""
    if not any(map(str.isalnum, text)):
        return
    for other in (text, text.upper(), unicodedata.normalize("NFD", text)):
        spans = list(Phrases({key_of(text): "rare"}).find(f"x {other} x"))
        assert spans
        assert f"x {other} x"[spans[0].start : spans[0].end].strip("\u200b ") == other.strip("\u200b ")


@given(st.text())
def test_folded_characters_stand_in_order_inside_the_text(text: str) -> None:
    for folded in (fold(text), visible(text)):
        places = [folded.raw(index, index + 1) for index in range(len(folded.text))]
        assert all(0 <= start < end <= len(text) for start, end in places)
        assert places == sorted(places)


def test_a_crafted_entry_and_text_stay_cheap() -> None:
    """The most words an entry may have, repeated: each place looks up few keys."""
    entries = [" ".join(["a"] * count) for count in (1, 2, 32)]
    phrases = Phrases({key_of(entry): "rare" for entry in entries})
    assert sum(1 for _ in phrases.find("a " * 20_000)) == 20_000
