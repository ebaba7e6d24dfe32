"""The letters of `benchmarks/words_letters.py` are sound, and its scores are what they say."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import _letters as made  # noqa: E402
from _letters_score import Judged, Read, parts, scores  # noqa: E402
from _letters_values import iban, luhn  # noqa: E402

sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def letters() -> list[made.Letter]:
    return made.letters()


def letter(text: str, *values: tuple[str, str]) -> made.Letter:
    found = [(kind, value, text.index(value)) for kind, value in values]
    spans = tuple(made.Value(kind, value, at, at + len(value)) for kind, value, at in found)
    return made.Letter(0, "note", text, spans)


def test_every_value_stands_where_it_is_said_to_and_none_overlaps(letters: list[made.Letter]) -> None:
    for one in letters:
        end = 0
        for value in one.values:
            assert one.text[value.start : value.end] == value.text
            assert value.start >= end
            assert value.text == value.text.strip()
            assert any(parts(value)), value
            end = value.end


def test_there_are_enough_of_everything(letters: list[made.Letter]) -> None:
    kinds = Counter(value.kind for one in letters for value in one.values)
    assert len(letters) == 200
    assert kinds.total() >= 1520
    assert kinds.keys() == {*made.COVERED, *made.SENSITIVE}
    assert min(kinds.values()) >= 30
    assert set(Counter(one.kind for one in letters).values()) == {10}
    assert Counter((one.kind, one.held_out) for one in letters).most_common()[-1][1] == 5
    assert all(60 <= len(one.text.split()) <= 250 for one in letters)


def test_frames_are_many_and_pools_are_large() -> None:
    pools, sections = made.book()
    people = [name for name in pools if name.endswith(("girls", "boys", "family", "names", "towns", "orgs"))]
    assert sum(len(one.frames) for one in sections.values()) >= 250
    assert all(len(set(pools[name])) >= 40 for name in (*people, *made.SENSITIVE[:-1], "household", "drugs"))


def test_a_seed_gives_the_same_letters_and_another_one_others(letters: list[made.Letter]) -> None:
    assert made.letters() == letters
    others = made.letters(seed=15)
    assert not {one.text for one in others} & {one.text for one in letters}
    assert len({one.text for one in letters}) == 200


def test_the_held_out_half_has_frames_and_values_of_its_own(letters: list[made.Letter]) -> None:
    for kinds in (made.SENSITIVE, ("organisation",)):
        halves: list[set[str]] = [set(), set()]
        for one in letters:
            halves[one.held_out].update(v.text.lower() for v in one.values if v.kind in kinds)
        assert not halves[0] & halves[1]
    harmless = made.book()[1]["harmless"].frames
    for half in (0, 1):
        assert not any(
            line in one.text for line in harmless[half::2] for one in letters if one.held_out != half
        )


def test_no_slot_or_mark_of_a_frame_is_left(letters: list[made.Letter]) -> None:
    assert not any(mark in one.text for one in letters for mark in ("{", "}", " // ", " a a"))


def test_check_digits_are_right() -> None:
    assert luhn("555555555555444") == "4"
    assert iban("DE", "370400440532013000") == "DE89370400440532013000"


def test_the_scores_go_by_place() -> None:
    note = letter(
        "Will it be Will Long of Rio de Janeiro?", ("person", "Will Long"), ("place", "Rio de Janeiro")
    )
    everything = scores([Judged(note, Read([[(0, 39)]], True, 2.0))], None)
    assert (everything["hidden"], everything["harmless_changed"], everything["restored"]) == (1, 1, 1)
    elsewhere = scores([Judged(note, Read([[(0, 4)]], False, 2.0))], None)
    assert (elsewhere["hidden"], elsewhere["harmless_changed"]) == (0, 1 / 4)
    without_function_word = scores([Judged(note, Read([[(24, 27), (31, 38)]], False, 2.0))], ("place",))
    assert (without_function_word["hidden"], without_function_word["hidden_all"]) == (1, 1 / 2)


def test_the_worst_draw_counts() -> None:
    note = letter("Ask May today", ("person", "May"))
    good, bad = [(4, 7)], [(8, 13)]
    found = scores([Judged(note, Read([good, good, bad], False, 1.0))], None)
    assert (found["hidden"], found["harmless_changed"]) == (0, 1 / 2)
