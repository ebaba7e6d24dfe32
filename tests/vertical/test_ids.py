"""IDs of one person become one, and stay apart otherwise; what both parties derive of them is alike."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.vertical.ids import MAX_CHARS, canonical, is_test_N, order_hash

ANY = st.text(max_size=20)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=20)
SPACES = st.text(" \t\n\u00a0\u3000\u200b\ufeff", max_size=3)


def tried(text: str) -> str | None:
    try:
        return canonical(text)
    except MisconfiguredError:
        return None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Anna@Example.ORG", " anna@example.org"),
        ("１２３", "123"),
        ("STRASSE 7", "straße\u00a07"),
        ("e\u0301cole", "École"),
        ("\ufb01rma", "firma"),
        ("a\u200bb\ufeff", "ab"),
        ("a \t\r\n b", "A B"),
        ("İ", "i̇"),
    ],
)
def test_what_people_write_differently_is_one(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"), [("007", "7"), ("a b", "ab"), ("e", "é"), ("1.0", "1"), ("o", "0")]
)
def test_what_may_be_another_person_stays_another(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@given(ANY | TEXTS)
def test_the_spelling_of_a_spelling_is_itself(text: str) -> None:
    found = tried(text)
    assume(found is not None)
    assert found is not None
    assert canonical(found) == found
    assert found.encode()


@given(TEXTS, SPACES, SPACES)
def test_case_form_and_space_around_change_nothing(text: str, before: str, after: str) -> None:
    found = tried(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert tried(before + unicodedata.normalize(form, text) + after) == found
    assert tried(text.casefold()) == found


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20))
def test_plain_letters_go_the_same_way_as_all(text: str) -> None:
    found = tried(text)
    assume(found is not None)
    assert tried(text + "\u200b") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \u200b\t", "empty"),
        ("a\0b", "control"),
        ("a\ue000b", "unknown"),
        ("\ud800", "control"),
        ("x" * (MAX_CHARS + 1), "more than"),
        ("\ufdfa" * MAX_CHARS, "more than"),
    ],
)
def test_what_is_no_id_is_refused_without_being_shown(text: str, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message) as told:
        canonical(text)
    assert len(str(told.value)) < 60


@given(st.lists(st.text("ab\u00e9\u4e2d", min_size=1), max_size=5))
def test_an_order_hash_is_of_these_ids_in_this_order(ids: list[str]) -> None:
    found = order_hash(ids)
    assert order_hash([*ids, "x"]) != found
    assert order_hash(["x", *ids]) != found
    if ids != ids[::-1]:
        assert order_hash(ids[::-1]) != found
    if len(ids) > 1:
        assert order_hash(["".join(ids)]) != found


def test_the_test_part_is_the_share_that_was_asked_and_stays() -> None:
    ids = [f"p{number}" for number in range(20_000)]
    found = is_test_N(ids, "credit", 0.3)
    assert abs(found.mean() - 0.3) < 4 * (0.3 * 0.7 / len(ids)) ** 0.5
    assert (is_test_N(ids[::2], "credit", 0.3) == found[::2]).all()
    assert (found <= is_test_N(ids, "credit", 0.4)).all()
    other = is_test_N(ids, "other", 0.3)
    assert abs(np.corrcoef(found, other)[0, 1]) < 4 / len(ids) ** 0.5
