"""Answers and what says whether they are made up: labels, references, documents."""

from __future__ import annotations

import pytest

from transom.errors import MisconfiguredError
from transom.trust.hallucination.examples import Columns, duplicates, matched, rows_of, strays
from transom.trust.hallucination.score import sentences_of
from transom.trust.hallucination.states import Example

ROW = {
    "answer": " Paris. ",
    "question": "capital?",
    "label": "No",
    "good": "Paris; the city of Paris",
    "bad": "Rome",
}


def test_a_row_has_what_its_columns_say() -> None:
    (one,) = rows_of([ROW], Columns(label="label", correct="good", incorrect="bad"))
    assert one.example == Example("Paris.", "capital?", "", False)
    assert (one.correct, one.incorrect) == (("Paris", "the city of Paris"), ("Rome",))
    assert one.judged(grounded=False).made_up is False


@pytest.mark.parametrize("said", ["1", "yes", "TRUE", " Yes "])
def test_labels_may_be_spelled_in_several_ways(said: str) -> None:
    (one,) = rows_of([{**ROW, "label": said}], Columns(label="label"))
    assert one.example.made_up is True


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ([], Columns(), "holds no rows"),
        ([ROW], Columns(label="made_up"), "a row without 'made_up'"),
        ([ROW], Columns(correct="right"), "a row without 'right'"),
        ([ROW, {**ROW, "label": "2"}], Columns(label="label"), "row 2: 'label' is not one of"),
    ],
)
def test_what_says_nothing_is_refused(table: list[dict[str, str]], columns: Columns, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        rows_of(table, columns)


@pytest.mark.parametrize(
    ("answer", "correct", "incorrect", "wanted"),
    [
        ("It is the city of Paris", ["the city of Paris"], ["the city of Rome"], False),
        ("It is the city of Rome", ["the city of Paris"], ["the city of Rome"], True),
        ("no idea at all", ["the city of Paris"], ["the city of Rome"], None),
        ("the city", ["the city of Paris"], ["the city of Rome"], None),
        ("a long tale of the old city of Rome, told", ["the city of Paris"], ["the city of Rome"], True),
        ("the dog", ["the cat sat"], [], True),
        ("in Rome", ["Paris is the city"], ["Rome is the city", "Milan"], None),  # too little of either
        ("I think that it is Paris, or so they say", ["Paris"], [], False),
        ("the parisian", ["Paris"], [], True),
        ("", ["Paris"], [], None),
        ("Paris", [], [], None),
    ],
)
def test_references_are_matched_by_the_stated_rules(
    answer: str, correct: list[str], incorrect: list[str], wanted: bool | None
) -> None:
    assert matched(answer, correct, incorrect) is wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Officials in Leeds closed the bridge.", False),
        ("The bridge in York was closed.", True),
        ("The bridge was closed for 3 days.", True),
        ("The bridge was closed for 12 days.", False),
        ("Traffic is slow.", False),  # what begins a sentence may be any word
    ],
)
def test_a_name_or_a_number_that_the_document_lacks_is_made_up(answer: str, wanted: bool) -> None:
    assert strays(answer, "The old bridge of Leeds is closed for 12 days, officials say.") is wanted


def test_answers_that_stand_twice_are_counted() -> None:
    assert duplicates([Example("a", "q"), Example("A", "Q"), Example("a", "p"), Example("a", "q")]) == 2


def test_sentences_are_all_of_an_answer() -> None:
    text = 'He said "no." Then 3.5 m?! And\nmore  '
    spans = list(sentences_of(text))
    assert "".join(text[start:end] for start, end in spans) == text
    assert [text[start:end].strip() for start, end in spans] == [
        'He said "no."',
        "Then 3.5 m?!",
        "And",
        "more",
    ]
    assert list(sentences_of("")) == []
