"""Studies: each figure against another way to it, on sets of which it is known what tells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from transom.errors import MisconfiguredError
from transom.trust.hallucination import page
from transom.trust.hallucination.fit import groups_of
from transom.trust.hallucination.states import Example, States
from transom.trust.hallucination.study import (
    Set,
    Studied,
    baselines,
    check_sets,
    curve,
    ece,
    negation,
    negations,
    risks,
    scores,
    singles,
    study,
)

from .test_detector import MODEL, drawn


def made(name: str, count: int, seed: int, signal: float = 1.2, *, question: str = "") -> Set:
    states, made_up, _ = drawn(count, seed, signal)
    stages = [{"query": np.full(3, 2.0 * label), "understanding": np.zeros(3)} for label in made_up]
    given = [States(one.families, stage) for one, stage in zip(states, stages, strict=True)]
    examples = [
        Example(f"{name} is {number}.", question and f"{question} {number}", "", label)
        for number, label in enumerate(made_up)
    ]
    return Set(name, examples, given)


@pytest.fixture(scope="module")
def studied() -> list[Studied]:
    """Two sets in which states tell alike, and one in which they tell nothing."""
    return study([made("one", 300, 0), made("two", 300, 1), made("none", 200, 2, 0.0)], model=MODEL)


def test_what_tells_is_told_of_each_set(studied: list[Studied]) -> None:
    one, two, none = studied
    assert min(one.area.value, two.area.value) > 0.8
    assert one.area.interval is not None
    assert one.area.interval[0] < one.area.value < one.area.interval[1]
    assert abs(none.area.value - 0.5) < 0.2
    assert one.answers[0] + one.answers[1] == 300
    assert one.made_up[1] <= one.answers[1] == pytest.approx(100, abs=15)
    assert one.ece < 0.2
    assert max(one.families, key=lambda name: max(one.families[name])) in ("hidden.1", "logits.own")
    assert abs(max(one.families["lookback"]) - 0.5) < 0.2


def test_the_risk_along_the_answer_ends_in_the_answers_own(studied: list[Studied]) -> None:
    one = studied[0]
    shares, made_up, rest = zip(*one.along, strict=True)
    assert shares[0] < shares[-1] == 1.0
    assert made_up[-1] - rest[-1] > 0.3
    assert made_up[-1] - rest[-1] > made_up[0] - rest[0]  # the end of what is made up gives it away
    none = studied[2].along[-1]
    assert abs(none[1] - none[2]) < 0.1


def test_single_heads_are_told_apart() -> None:
    states, made_up, _ = drawn(240, 4)
    for one, label in zip(states, made_up, strict=True):
        one.families["lookback"][:, 5] += 2 * label  # of 2 layers of 4 heads the second one's second
    examples = [Example(f"it is {number}", "", "", label) for number, label in enumerate(made_up)]
    (found,) = study([Set("one", examples, states)], model=MODEL, heads=4)
    rows = np.array(found.heads["lookback"])
    assert rows.shape == (2, 4)
    assert rows[1, 1] > 0.9
    assert np.abs(np.delete(rows.ravel(), 5) - 0.5).max() < 0.25


def test_stages_groups_and_baselines_are_told(studied: list[Studied]) -> None:
    one = studied[0]
    assert one.stages["query"] == 1.0  # which the set's question gives away
    assert one.stages["understanding"] == 0.5
    assert one.stages["generation"] > 0.7
    assert one.without["activation"] < one.area.value - 0.02
    assert abs(one.without["attention"] - one.area.value) < 0.05
    assert set(one.baselines) >= {"length", "label prior"}
    assert one.baselines["label prior"] == 0.5
    assert any("own, last" in name for name in one.baselines)  # the number that was moved


def test_what_transfers_is_between_sets_that_are_alike(studied: list[Studied]) -> None:
    one, two, none = studied
    assert one.transfer["one"] == pytest.approx(one.area.value)
    assert one.transfer["two"] > 0.8
    assert two.transfer["one"] > 0.8
    assert one.transfer["none"] < 0.75
    assert none.transfer["one"] < 0.7


def test_answers_that_are_far_from_what_was_learnt_are_ordered_still(studied: list[Studied]) -> None:
    """Where all risks are 1 to the last bit."""
    far = made("far", 120, 8)
    states = [States({name: x + 500.0 for name, x in one.families.items()}, {}) for one in far.states]
    found, labels = studied[0].detector, np.array(far.made_up, int)
    assert len(set(risks(found, states).tolist())) == 1
    near = roc_auc_score(labels, scores(found, far.states))
    assert roc_auc_score(labels, scores(found, states)) == pytest.approx(near, abs=0.1)


def test_calibration_is_what_its_parts_say() -> None:
    draw = np.random.default_rng(0)
    risk = draw.random(4000)
    labels = (draw.random(4000) < risk).astype(int)
    assert ece(risk, labels) < 0.03
    assert ece(risk**3, labels) > 0.1
    parts = curve(risk, labels)
    assert sum(count for *_, count in parts) == 4000
    assert all(abs(mean - share) < 0.05 for mean, share, _ in parts)
    assert [mean for mean, *_ in parts] == sorted(mean for mean, *_ in parts)
    assert ece(np.full(9, 0.25), np.array([1, 0, 0, 0, 0, 0, 0, 0, 1])) > 0


def test_a_baseline_is_chosen_on_what_is_learnt_from() -> None:
    train, held_out = made("a", 200, 0), made("a", 100, 5)
    found = baselines(train, held_out)
    (name,) = [one for one in found if one.startswith("best single")]
    number = name.removeprefix("best single: ")
    value = roc_auc_score(held_out.made_up, [singles(one)[number] for one in held_out.states])
    assert found[name] in (pytest.approx(value), pytest.approx(1 - value))
    lengths = [len(one.families["logits.own"]) for one in held_out.states]
    value = roc_auc_score(held_out.made_up, lengths)
    assert found["length"] in (pytest.approx(value), pytest.approx(1 - value))


def test_statements_are_turned_round_and_questions_are_not() -> None:
    assert negation("Cats can fly.") == "Cats can not fly."
    assert negation("Cats can not fly.") == "Cats can fly."
    assert negation("Cats fly.") is None
    examples = [
        Example("It is so.", made_up=True),
        Example("It is so.", "why?", made_up=True),
        Example("No."),
    ]
    assert negations(examples) == [Example("It is not so.", made_up=False)]


def test_negations_have_a_row_of_their_own() -> None:
    """States of a negation that are those of the statement are taken for it: the row says so."""
    one = made("one", 200, 0, 2.5)
    states = {example.answer: each for example, each in zip(one.examples, one.states, strict=True)}

    def read(part: list[Example]) -> tuple[list[Example], list[States]]:
        turned = negations(part)
        return turned, [states[each.answer.replace(" not", "")] for each in turned]

    (found,) = study([one], model=MODEL, negated=read)  # type: ignore[arg-type]
    assert found.negated is not None
    assert found.negated.value == pytest.approx(1 - found.area.value)
    (without,) = study([made("one", 200, 0, question="what is")], model=MODEL, negated=read)  # type: ignore[arg-type]
    assert without.negated is None


def test_sets_that_share_answers_are_refused() -> None:
    one, other = made("one", 40, 0), made("two", 40, 1)
    check_sets([one, other])
    shared = replace(other, examples=[one.examples[0], *other.examples[1:]])
    with pytest.raises(MisconfiguredError, match="one and two share 1 answers"):
        check_sets([one, shared])


def test_a_page_says_all_of_it_and_escapes_names(studied: list[Studied]) -> None:
    named = [replace(one, name=f"<b>{one.name}</b>") for one in studied]
    text = page.page(named, "a & b")
    assert "<b>one" not in text
    assert "&lt;b&gt;one" in text
    assert "What transfers" in text
    assert f"{studied[0].area.value:.3f}" in text
    assert "over the question" in text
    told = page.record(studied, "model")
    assert [one["name"] for one in told["sets"]] == ["one", "two", "none"]
    assert told["sets"][0]["auroc"] == studied[0].area.value
    assert len(told["sets"][0]["families"]["logits.own"]) == len(told["selections"])
    assert page.headline(studied).count("AUROC") == 3


def test_risks_are_of_each_answer(studied: list[Studied]) -> None:
    states = drawn(5, 9)[0]
    found = risks(studied[0].detector, states)
    assert found.shape == (5,)
    assert ((found > 0) & (found < 1)).all()


def test_answers_stay_together_by_what_was_asked_or_of_one_task_by_what_was_read() -> None:
    asked = [Example("a", f"who is {number % 10}?", f"note {number}") for number in range(20)]
    assert len(set(groups_of(asked))) == 10
    task = [replace(one, question="Summarise this.") for one in asked]
    assert len(set(groups_of(task))) == 20
    twice = [*task, *task]
    assert len(set(groups_of(twice))) == 20
    assert len(set(groups_of([replace(one, question="", context="") for one in asked]))) == 1


def test_statements_stay_together_by_their_first_words_unless_too_many_begin_alike() -> None:
    about = [Example(f"Person {number % 8} built thing {number}.") for number in range(40)]
    assert len(set(groups_of(about))) == 8
    assert len(set(groups_of([*about, *about]))) == 8
    forms = [Example(f"The capital of place {number} is big.") for number in range(40)]
    assert len(set(groups_of(forms))) == 40
    assert len(set(groups_of([*forms, *forms]))) == 40
    mixed = [*about, *(Example("an answer", f"who is {number}?") for number in range(5))]
    assert len(set(groups_of(mixed))) == 13
