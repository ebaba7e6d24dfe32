"""One entity, one number, where the text shows it, and never more than the text shows."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.entities import MOST_WORDS, SHARED_LIMIT, Linker, form_of, words_of
from transom.privacy.placeholders import Placeholders


def hidden(*values: str, kind: str = "person") -> list[str]:
    placeholders = Placeholders()
    return [placeholders.hide(kind, value)[1:-1] for value in values]


@pytest.mark.parametrize(
    ("value", "suffix"),
    [
        ("Miller", "_LAST"), ("Jane", "_FIRST"), ("JANE MILLER", "_B"), ("J. Miller", "_B"),
        ("Millers", "_PLURAL"),
        ("Miller, Jane", "_B"), ("MILLER", "_LAST"), ("Jane M.", "_B"), ("jane", "_FIRST"),
        ("Jane A. Miller", "_FULL"),
        ("J Miller", "_B"),
    ],
)  # fmt: skip
def test_a_form_of_a_name_is_the_same_person(value: str, suffix: str) -> None:
    assert hidden("Jane Miller", value, value, "Jane Miller") == [
        "PERSON_1",
        *[f"PERSON_1{suffix}"] * 2,
        "PERSON_1",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "Bob",
        "Bob Miller",
        "K. Miller",
        "J.",
        "Jane Smith",
        "Mill",
        "Miller Jane",
        "M",
        "J. M.",
        "Millerson",
        "...",
        "",
    ],
)
def test_what_does_not_fit_is_another_person(value: str) -> None:
    assert hidden("Jane Miller", value) == ["PERSON_1", "PERSON_2"]


def test_names_in_any_order_are_linked_as_they_come() -> None:
    assert hidden("Miller", "Jane Miller", "Jane", "J. Miller") == [
        "PERSON_1", "PERSON_1_FULL", "PERSON_1_FIRST", "PERSON_1_B",
    ]  # fmt: skip
    assert hidden("J. Miller", "Jane Miller", "John Miller") == ["PERSON_1", "PERSON_1_B", "PERSON_2"]
    assert hidden("Jan van der Berg", "van der Berg", "Berg", "Jan", "Jan v. d. Berg") == [
        "PERSON_1", "PERSON_1_LAST", "PERSON_1_B", "PERSON_1_FIRST", "PERSON_1_C",
    ]  # fmt: skip
    assert hidden("Jane Jones", "Joneses") == ["PERSON_1", "PERSON_1_PLURAL"]


def test_where_several_fit_it_is_a_person_of_its_own() -> None:
    assert hidden("Jane Miller", "Bob Miller", "Miller", "Jane", "J. Miller", "Millers") == [
        "PERSON_1", "PERSON_2", "PERSON_3", "PERSON_1_FIRST", "PERSON_4", "PERSON_5",
    ]  # fmt: skip
    assert hidden("Jane Miller", "Miller", "Bob Miller", "Miller")[1::2] == ["PERSON_1_LAST"] * 2


def test_a_name_of_unknown_type_is_linked_to_the_person_who_has_its_words() -> None:
    placeholders = Placeholders()
    placeholders.hide("person", "Jane Miller")
    given_names = ["Miller", "Jane", "Berlin", "Millers", "Jane Miller Ltd", "JANE MILLER"]
    assert [placeholders.hide("name", value)[1:-1] for value in given_names] == [
        "PERSON_1_LAST", "PERSON_1_FIRST", "NAME_1", "PERSON_1_PLURAL", "NAME_2", "PERSON_1_B",
    ]  # fmt: skip
    assert placeholders.hide("person", "Miller") == placeholders.hide("name", "Miller") == "[PERSON_1_LAST]"
    assert placeholders.hide("place", "Miller") == "[PLACE_1]"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("card", ("4111 1111 1111 1111", "4111111111111111", "4111-1111-1111-1111")),
        ("phone", ("+49 (30) 123-456", "+4930123456", "+49 30 123456")),
        ("account", ("DE89 3704 0044", "de8937040044", "DE89-37040044")),
        ("document", ("AB 12.34", "ab1234", "AB1234")), ("number", ("1 000", "1000", "10 00")),
        ("email", ("Ada@X.org", "ada@x.org", "ADA@X.ORG")), ("url", ("HTTP://x.org", "http://X.org", "http://x.ORG")),
    ],
)  # fmt: skip
def test_a_number_or_address_in_another_spelling_is_the_same(kind: str, values: tuple[str, str, str]) -> None:
    label = kind.upper()
    assert hidden(*values, kind=kind) == [f"{label}_1", f"{label}_1_B", f"{label}_1_C"]


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [("number", "1.5", "15"), ("number", "$5", "5%"), ("phone", "+49", "49"), ("place", "Rome", "ROME"),
     ("card", "4111 1111", "4111 1112"), ("date", "8 May", "8  May"), ("card", "-", "--")],
)  # fmt: skip
def test_what_may_mean_something_else_stays_apart(kind: str, one: str, other: str) -> None:
    first, second = hidden(one, other, kind=kind)
    assert (first[-2:], second[-2:]) == ("_1", "_2")


def test_more_forms_than_letters_begin_a_new_number() -> None:
    made = hidden(*(" " * i + "1" for i in range(60)), kind="number")
    assert len(set(made)) == 60
    assert (made[25], made[26]) == ("NUMBER_1_Z", "NUMBER_2")


WORDS = st.lists(st.sampled_from(["jane", "j", "miller", "m", "millers", "bob", "ann", "a"]), max_size=4).map(
    tuple
)


@given(WORDS, WORDS)
def test_no_link_without_a_word_in_common(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    form = form_of(one, other)
    if form not in (None, "_PLURAL"):
        assert {word for word in one if len(word) > 1} & set(other)


@given(
    st.lists(st.tuples(st.sampled_from(["person", "name"]), WORDS.map(" ".join)), max_size=12),
    st.integers(0, 12),
)
def test_a_conversation_that_goes_on_keeps_its_placeholders(values: list[tuple[str, str]], more: int) -> None:
    def made(some: list[tuple[str, str]]) -> list[str]:
        placeholders = Placeholders()
        return [placeholders.hide(kind, value) for kind, value in some]

    assert made(values)[:more] == made(values[:more])


def test_a_name_that_too_many_bear_links_nothing_and_costs_no_more() -> None:
    linker = Linker()
    for i in range(SHARED_LIMIT + 1):
        linker.place("PERSON", f"P{i}x Miller")
    began_s = time.process_time()
    for i in range(5000):
        linker.place("PERSON", f"Q{i}x Miller")
    assert time.process_time() - began_s < 60  # with a search of all persons it would take minutes
    assert linker.place("PERSON", "Miller") == ("PERSON", SHARED_LIMIT + 5002, "")
    assert linker.place("PERSON", "P3x") == ("PERSON", 4, "_FIRST")


@pytest.mark.parametrize("words", [MOST_WORDS, MOST_WORDS + 1, 2000])
def test_long_names_that_share_their_words_cost_no_more(words: int) -> None:
    middle = [f"W{i}x" for i in range(words - 2)]
    names = [" ".join(["Jane", *middle[i:], *middle[:i], "Miller"]) for i in range(SHARED_LIMIT)]
    linker = Linker()
    began_s = time.process_time()
    placed = [linker.place("PERSON", name) for name in names]
    assert time.process_time() - began_s < 10  # with a search word by word it would take an hour
    assert len(set(placed)) == len(set(names))
    linked = linker.place("PERSON", names[0].upper())[:2] == placed[0][:2]
    assert linked == (words <= MOST_WORDS)


def test_names_are_read_without_case_order_and_full_stops() -> None:
    assert words_of("MILLER,  J.R.") == ("j", "r", "miller")
    assert "Miller" not in repr(Linker().place("PERSON", "Jane Miller")) + repr(Linker())
