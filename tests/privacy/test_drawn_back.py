"""Drawn words come back where they can mean one word alone, and nothing else is touched."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.drawn_back import WordsBack, drawn_words, restore_words
from transom.privacy.forms import FORM

DRAWN = {"cat": "fox", "city": "day", "sun": "person", "bus": "glass", "dog": "dog"}


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("The cat saw a Cat. CAT!", "The fox saw a Fox. FOX!"),
        ("Cats, cities and SUNS", "Foxes, days and PERSONS"),
        ("buses 'cat' cat's", "glasses 'fox' fox's"), ("concat cat9 cat_1 o'cat", "concat cat9 cat_1 o'cat"),
        ("[PERSON_1] cat [cat] <cat> {cat}", "[PERSON_1] fox [cat] <cat> {cat}"), ("dogs", "dogs"),
        ("[SUN 1] SUN_1 [sun] SUN\\_1", "[SUN 1] SUN_1 [sun] SUN\\_1"),
        ("citys catss", "citys catss"), ("", ""),
    ],
)  # fmt: skip
def test_words_come_back_in_their_case_and_number(host: str, shown: str) -> None:
    assert restore_words(host, DRAWN) == shown


def test_only_words_that_stand_for_one_word_come_back() -> None:
    pieces = [
        ("draw", "Cat", "Fox"), ("memo", "cat", "fox"),  # one source
        ("draw", "sun", "sky"), ("draw", "sun", "moon"),  # two
        ("draw", "bus", "car"), ("pass", "bus", "bus"),  # and it stands there of itself
        ("draw", "city", "city"), ("placeholder", "[NAME_1]", "Ada"), ("pass", " ", " "),
    ]  # fmt: skip
    assert drawn_words(pieces) == {"cat": "fox", "city": "city"}


FRAGMENTS = st.sampled_from(
    [
        "cat",
        "Sun",
        "SUN",
        "suns",
        "[",
        "]",
        "_1",
        " 1",
        "\\",
        "[PERSON_1]",
        "PERSON_1",
        "<",
        ">",
        " ",
        "'s",
        "&lt;",
        ";",
    ]
)


@given(st.lists(FRAGMENTS | st.text(max_size=2), max_size=12).map("".join))
def test_no_placeholder_is_made_or_unmade(text: str) -> None:
    made = restore_words(text, DRAWN)
    assert [match[0] for match in FORM.finditer(made)] == [match[0] for match in FORM.finditer(text)]
    assert restore_words(text, {}) == text


def test_many_placeholders_are_read_in_one_pass() -> None:
    text = "[PERSON_1]" * 20_000
    assert restore_words(text, DRAWN) == text


TEXTS = st.lists(
    st.sampled_from(
        ["cat", "Cats", "CAT", " ", "\n", ", ", ".", "[", "]", "\\", "_", "'", "1", "[PERSON_1]",
         "[person 1 last]", "\\[NAME\\_2\\]", "NAME_3", "<", "&lt;", "sun's", "é", "[cat 1]", "x"]
    ),
    max_size=30,
).map("".join)  # fmt: skip


@given(TEXTS, st.lists(st.integers(0, 120), max_size=12))
def test_in_a_stream_the_same_words_are_put_back(text: str, cuts: list[int]) -> None:
    drawn = {"cat": "fox", "sun": "sky"}
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    back = WordsBack(drawn)
    given_back = [back.feed(text[start:end]) for start, end in pairwise(ends)] + [back.close()]
    assert "".join(given_back) == restore_words(text, drawn)


def test_a_stream_holds_back_a_bounded_tail() -> None:
    back, sent = WordsBack({"cat": "fox"}), 0
    for _ in range(2_000):
        sent += len(back.feed("cat"))
    assert 6_000 - sent <= 259
    assert sent + len(back.close()) == 6_000
    assert WordsBack({"cat": "fox"}).feed("a cat. ") == "a fox. "
