"""Drawn words come back where they can mean one word alone, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.drawn_back import drawn_words, restore_words
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
