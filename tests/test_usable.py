"""What `benchmarks/words_usable.py` says is what its definitions say: bits, recovery, gains, and readings."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.startswith(("_usable", "words_usable"))]:
        del sys.modules[name]


def row(recovery: float, *correct: float) -> dict[str, Any]:
    return {"best": recovery, "correct": [list(correct)]}


def test_a_gain_is_taken_at_equal_recovery_between_two_points_of_the_other_method(bench: Any) -> None:
    gain = bench("words_usable").gain
    found = gain(row(0.5, 1, 1), [row(0.4, 0, 0), row(0.8, 1, 1)])
    assert found["gain"] == pytest.approx(0.75)  # theirs is a quarter of the way from 0 to 1
    assert found["overlaps"]
    assert found["their_recovery"] == pytest.approx(0.5)


def test_without_a_point_on_either_side_the_nearest_stands_for_the_method(bench: Any) -> None:
    found = bench("words_usable").gain(row(0.5, 1, 0), [row(0.9, 1, 1), row(0.7, 0, 0)])
    assert not found["overlaps"]
    assert (found["gain"], found["their_recovery"]) == (0.5, 0.7)


def test_rare_words_weigh_more_and_a_value_of_several_words_weighs_their_sum(bench: Any) -> None:
    weights = bench("_usable_recovery").Weights(["the", "a", "house"])
    assert weights("the") < weights("house") < weights("okafor")
    assert weights("the house") == pytest.approx(weights("the") + weights("house"))


def test_text_that_passes_is_read_whole_and_a_placeholder_only_where_its_value_is_guessed(bench: Any) -> None:
    ways, recovery = bench("_usable_ways"), bench("_usable_recovery")
    weights = recovery.Weights(["the", "a", "house"])
    plain, entities = ways.plain(), ways.own_ways()["entities"]()
    nouns = ("house", "garden", "kitchen", "street", "market", "office", "school", "church", "river", "car")
    verbs = ("met", "saw", "heard", "found", "lost", "called", "left", "helped", "followed")
    own = [f"We {verb} Anna in the {noun}." for verb in verbs for noun in nouns]
    own += [f"We {verb} Peter in the house." for verb in verbs]
    texts = ["I saw Anna in the house.", "I saw Peter in the house."]
    assert recovery.recovery(plain, plain.send(texts), plain.send(own), weights, None).best == 1.0
    found = recovery.recovery(entities, entities.send(texts), entities.send(own), weights, None)
    anna = weights("anna") / sum(map(weights, ["i", "saw", "anna", "in", "the", "house", "."]))
    assert found.best == pytest.approx(
        1 - anna / 2
    )  # the likelier of the two names is guessed, and is right once
    assert found.hidden == pytest.approx(anna)


def test_every_instruction_stands_once(bench: Any) -> None:
    made = bench("_usable_tasks").instructions()
    assert len(set(made)) == len(made) == 100
    assert min(len(one.split()) for one in made) > 8


def test_stored_readings_agree_with_their_shares() -> None:
    stored = json.loads((BENCHMARKS / "results" / "words_usable_readings.json").read_text(encoding="utf-8"))
    useful = {
        name: {one["instruction"] for one in stored["readings"] if one["useful"] and name in one["settings"]}
        for name in stored["summary"]["answers_useful"]
    }
    for name, kept in stored["summary"]["answers_kept_of"].items():
        assert kept == pytest.approx(len(useful[name] & useful["plain"]) / len(useful["plain"]))
