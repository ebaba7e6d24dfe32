"""Values of several words: found longest first, by public words alone, and never by a word that is drawn."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.privacy.kinds import FIELDS, KINDS, SUBKINDS
from transom.privacy.packed import BIT_OF_FIELD, MODIFIER, packed, read_phrases
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer


@cache
def sanitizer(preset: str = "sensitive") -> Sanitizer:
    return Sanitizer(with_preset(load_policy(), preset))


def hidden(text: str, preset: str = "sensitive") -> str:
    """The text with its placeholders; what is drawn is shown as `_`."""
    pieces = sanitizer(preset).sanitize(text, placeholders=Placeholders()).pieces
    return "".join("_" if piece.action == "draw" else piece.output for piece in pieces)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He has bipolar disorder now.", "He has [HEALTH_1] now."),
        ("Bipolar Disorder is hard.", "[HEALTH_1] is hard."),  # with capitals
        ("It was irritable bowel syndrome.", "It was [HEALTH_1]."),  # of a phrase the longest
        ("Your credit ratings are here.", "Your [FINANCE_1] are here."),  # inflected
        ("My mixed-race friend came.", "My [ORIGIN_1] friend came."),  # a hyphen joins
        ("He has breast\ncancer now.", "He has [HEALTH_1] now."),  # within a phrase a line may end
        ("We are away for Good Friday then.", "We are away for [RELIGION_1] then."),
        ("They sent food vouchers again.", "They sent [FINANCE_1] again."),  # two halves
        ("I got redundancy pay then.", "I got [FINANCE_1] then."),  # a half behind a word of a field
        ("It was car theft again.", "It was [CRIME_1] again."),
        ("He is a climate activist now.", "He is a [POLITICS_1] now."),  # a noun before one
        ("Is he a convert to Islam now?", "Is he a [RELIGION_1] now?"),  # small words between
    ],
)
def test_a_value_of_several_words_is_one_placeholder(text: str, expected: str) -> None:
    found = hidden(text)
    assert found.replace("\n", " ") == expected
    names = Placeholders()
    sent = sanitizer("sensitive").sanitize(text, placeholders=names)
    if not sent.drawn:
        assert names.restore(sent.text) == text


@pytest.mark.parametrize(
    "text",
    [
        "The family room is on the left.",
        "We had a good time at the house.",
        "She wrote a rating.\nCredit is due.",  # halves of two lines are not read together
        "The rating, credit and order came.",  # nor beyond a comma
        "My old mother called.",  # a person keeps the adjective
    ],
)
def test_harmless_words_pass(text: str) -> None:
    expected = text.replace("mother", "[FAMILY_1]")
    assert hidden(text) == expected


@pytest.mark.parametrize("preset", ["entities", "words"])
def test_other_presets_read_no_phrases(preset: str) -> None:
    text = "my credit rating"
    pieces = sanitizer(preset).sanitize(text, placeholders=Placeholders()).pieces
    assert [piece.source for piece in pieces] == ["my", " ", "credit", " ", "rating"]
    assert preset == "words" or hidden(text, preset) == text


def test_a_capital_on_a_word_that_is_also_a_name_hides_it_anywhere() -> None:
    assert hidden("Stone fell.") == "[NAME_1] fell."
    assert hidden("A stone fell.") == "A stone fell."
    assert hidden("Dear all,") == "Dear all,"


@cache
def groups() -> list[list[str]]:
    """The words of each group that `sensitive` draws, where there are two or more."""
    policy = sanitizer("sensitive").policy
    starts = policy.partition.starts_G1.tolist()
    found = [
        [
            word
            for word in policy.words[start:end]
            if policy.rule(policy.kind_of[word]) not in ("pass", "placeholder")
        ]
        for start, end in pairwise(starts)
    ]
    return [group for group in found if len(group) > 1]


FRAMES = st.sampled_from(
    ["{} theft", "credit {}", "{} activist", "convert to {}", "cancer {} now", "good {}", "{} and debt",
     "bar {}", "my {} rating of a {}", "far {} voter", "Smith {}", "a {} of the church", "sick {}\ncancer"]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_exchanging_a_drawn_word_within_its_group_changes_nothing_else(
    frames: list[str], data: st.DataObject
) -> None:
    text = ". ".join(frames)
    texts = [text, text]
    for _ in range(text.count("{}")):
        group = data.draw(st.sampled_from(groups()))
        one, other = data.draw(st.sampled_from(group)), data.draw(st.sampled_from(group))
        texts = [texts[0].replace("{}", one, 1), texts[1].replace("{}", other, 1)]
    read = [
        [
            (piece.kind, piece.action, re.sub(r"\d", "", piece.output) if piece.action != "draw" else "")
            for piece in pieces
        ]
        for pieces in (sanitizer().sanitize(text, placeholders=Placeholders()).pieces for text in texts)
    ]
    assert read[0] == read[1]


WORDS = st.sampled_from(
    ["credit", "rating", "car", "theft", "cancer", "of", "to", "the", "a", "mother", "food", "Good",
     "voucher", "Friday", "activist", "-", ",", "\n", "Rose", "debt", "far"]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PRESETS), st.lists(WORDS, max_size=14))
def test_tokens_end_to_end_are_the_text_and_placeholders_restore_it(preset: str, words: list[str]) -> None:
    text = " ".join(words)
    names = Placeholders()
    sent = sanitizer(preset).sanitize(text, placeholders=names)
    if sanitizer(preset).policy.words_pass:
        assert "".join(piece.source for piece in sent.pieces) == text
        if not sent.drawn:
            assert names.restore(sent.text) == text


def test_reading_is_linear_in_the_text() -> None:
    """A text made of the beginnings of phrases: the work a word is bounded by the longest phrase."""
    text = "breach of the " * 5_000
    assert len(sanitizer().sanitize(text, placeholders=Placeholders()).pieces) > 10_000


def test_a_field_with_another_rule_is_left_alone() -> None:
    policy = with_preset(load_policy(), "sensitive").with_rules({"finance": "pass"})
    names = Placeholders()
    sent = Sanitizer(policy).sanitize("my credit rating and bipolar disorder", placeholders=names)
    assert sent.text == "my credit rating and [HEALTH_1]"


@pytest.mark.parametrize(
    ("entries", "bits", "problem"),
    [
        (["Debt"], [1], "malformed"),
        (["a b c d e f"], [1], "malformed"),
        (["a  b"], [1], "malformed"),
        (["bad debt"], [3], "malformed"),  # a phrase is of one field
        (["bad debt"], [MODIFIER], "malformed"),
        (["debt"], [0], "malformed"),
        (["debt"], [2 * MODIFIER], "malformed"),
        (["debt", "debt"], [1, 1], "twice"),
        (["debt"], [1, 1], "each with fields"),
    ],
)
def test_malformed_phrases_are_problems(entries: list[str], bits: list[int], problem: str) -> None:
    tensors: dict[str, Any] = {"phrases": packed(entries), "phrase_fields": np.array(bits, dtype=np.uint16)}
    _, problems = read_phrases(tensors)
    assert problem in " ".join(problems)


def test_phrases_that_are_no_text_are_problems() -> None:
    tensors: dict[str, Any] = {
        "phrases": np.array([255], np.uint8),
        "phrase_fields": np.array([1], np.uint16),
    }
    assert read_phrases(tensors)[1]
    assert read_phrases({}) == ({}, [])


def test_shipped_phrases_hold_every_field_and_no_word_that_is_drawn() -> None:
    policy = sanitizer().policy
    assert set(BIT_OF_FIELD) == set(FIELDS)
    drawn = {word for group in groups() for word in group}
    whole = [entry for entry in policy.phrases if " " in entry]
    assert not [entry for entry in whole if drawn & set(entry.split())]
    assert {policy.phrases[entry] for entry in whole} == set(BIT_OF_FIELD.values())
    assert set(KINDS) | set(SUBKINDS) >= {"part"}
