"""Detectors: what is fitted tells, files hold all of it, and each kind computes what the library does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from transom.errors import MisconfiguredError
from transom.report.statistics import auc
from transom.trust.hallucination.combine import KINDS, Kind, combiner, linear
from transom.trust.hallucination.detector import (
    SELECTIONS,
    WINDOW,
    Detector,
    dumped,
    read_detector,
    selected,
    write_detector,
)
from transom.trust.hallucination.fit import FEWEST, Fitted, fit, folds_of, line_of
from transom.trust.hallucination.score import cut, why
from transom.trust.hallucination.states import LOGITS, States

WIDTHS = {"hidden.1": 12, **{f"logits.{name}": 1 for name in LOGITS}, "lookback": 8}
MODEL = "ab" * 32


def drawn(count: int, seed: int, signal: float = 1.2) -> tuple[list[States], list[bool], list[str]]:
    """Answers of several lengths, whose states tell a little whether they are made up."""
    draw = np.random.default_rng(seed)
    states, made_up = [], []
    for _ in range(count):
        label, steps = bool(draw.random() < 0.4), int(draw.integers(2, 15))
        families = {
            name: draw.normal(size=(steps - (name == "lookback"), width)).astype(np.float32)
            for name, width in WIDTHS.items()
        }
        families["hidden.1"][:, :2] += signal * label
        families["logits.own"][-1, 0] += 2 * signal * label
        states.append(States(families, {}))
        made_up.append(label)
    return states, made_up, [str(number) for number in range(count)]


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest) -> Fitted:
    return fit(*drawn(300, 0), model=MODEL, kind=request.param)


def risks(detector: Detector, states: list[States]) -> Any:
    return np.array([detector.risk(detector.series(one)).risk for one in states])


def test_a_detector_tells_what_it_did_not_see(made: Fitted) -> None:
    states, made_up, _ = drawn(400, 1)
    risk, labels = risks(made.detector, states), np.array(made_up, int)
    assert auc(risk, labels) > 0.85
    assert abs(auc(risk, labels) - auc(made.risk_N, np.array(drawn(300, 0)[1], int))) < 0.08
    assert abs(risk.mean() - labels.mean()) < 0.08  # calibrated
    flagged = np.array([made.detector.risk(made.detector.series(one)).flagged for one in states])
    assert flagged[labels == 0].mean() < 0.2
    assert flagged[labels == 1].mean() > 0.5


def test_where_nothing_tells_nothing_is_told() -> None:
    found = fit(*drawn(300, 0, 0.0), model=MODEL)
    states, made_up, _ = drawn(400, 1, 0.0)
    risk = risks(found.detector, states)
    assert abs(auc(risk, np.array(made_up, int)) - 0.5) < 0.1
    assert risk.std() < 0.12


@pytest.mark.parametrize("signal", [0.0, 0.5])
def test_what_is_held_out_has_the_stated_rate(signal: float) -> None:
    """Also where states tell nothing, and of few answers: no more is told of them than fresh ones say."""
    shares, told, fresh = [], [], []
    for seed in range(12):
        found = fit(*drawn(100, seed, signal), model=MODEL, rate=0.1)
        states, made_up, _ = drawn(200, 100 + seed, signal)
        risk, labels = risks(found.detector, states), np.array(made_up, int)
        shares.append((risk[labels == 0] > found.detector.about.line).mean())
        told.append(auc(found.risk_N, np.array(drawn(100, seed, signal)[1], int)))
        fresh.append(auc(risk, labels))
    assert np.mean(shares) < 0.14
    assert np.mean(told) < np.mean(fresh) + 0.05  # where nothing tells, what points the wrong way counts 0.5


def test_families_add_up_to_what_they_tell(made: Fitted) -> None:
    """The one that tells most adds most to answers that are made up."""
    states, made_up, _ = drawn(60, 3, 2.0)
    adds = dict.fromkeys(WIDTHS, 0.0)
    for one, label in zip(states, made_up, strict=True):
        for name, value in made.detector.risk(made.detector.series(one)).families:
            adds[name] += value if label else -value
    assert max(adds, key=lambda name: adds[name]) in ("hidden.1", "logits.own")
    assert adds["lookback"] < max(adds.values()) / 2


def test_a_file_holds_all_of_it(made: Fitted, tmp_path: Path) -> None:
    path = tmp_path / "detector"
    write_detector(path, made.detector)
    found, (states, _, _) = read_detector(path), drawn(20, 5)
    assert found.about == made.detector.about
    np.testing.assert_allclose(risks(found, states), risks(made.detector, states), rtol=1e-9)
    assert dumped(found) == path.read_bytes()


@pytest.mark.parametrize(
    "broken",
    ["cut", "empty", "extra", "missing", "nan", "float32", "shape", "about", "loop", "huge", "large"],
)
def test_a_file_that_is_not_wholly_one_of_ours_is_refused(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "detector"
    kind: Kind = "boosting" if broken in ("loop", "huge") else "logistic"
    data = dumped(fit(*drawn(80, 0), model=MODEL, kind=kind).detector)
    arrays = load_arrays(data)
    if broken == "extra":
        arrays["more"] = np.zeros(3)
    elif broken == "missing":
        del arrays["probe.hidden.1"]
    elif broken == "nan":
        arrays["usual_Q"] = arrays["usual_Q"] * np.nan
    elif broken == "float32":
        arrays["usual_Q"] = arrays["usual_Q"].astype(np.float32)
    elif broken == "shape":
        arrays["usual_Q"] = arrays["usual_Q"][:-1]
    elif broken == "huge":  # of no bytes
        arrays |= {name: np.zeros((0, 10**9)) for name in arrays if name.endswith("_TJ")}
    elif broken == "large":
        arrays["probe.hidden.1"] = arrays["probe.hidden.1"] + 1e300
    elif broken == "about":
        said = json.loads(arrays["about"].tobytes()) | {"kind": "pickle"}
        arrays["about"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    elif broken == "loop":  # a tree that leads back to its root
        arrays["combiner.above_TJ"] = np.where(
            arrays["combiner.below_TJ"] > 0, 0, arrays["combiner.above_TJ"]
        )
    made = {"cut": data[:200], "empty": b""}.get(broken) or save(arrays) if broken != "empty" else b""
    path.write_bytes(made)
    with pytest.raises(MisconfiguredError, match="no detector of made-up answers that can be used"):
        read_detector(path)


@pytest.mark.parametrize(
    ("labels", "rate", "message"),
    [
        ([True] * 60, 0.1, "0 answers of one kind are too few"),
        ([True] * 50 + [False] * (FEWEST - 1), 0.1, "19 answers of one kind"),
        ([], 0.1, "0 answers of one kind"),
        ([True] * 30 + [False] * 30, 0.01, "cannot be told by 30 true answers"),
        ([True] * 30 + [False] * 30, 0.02, "cannot be told by 30 true answers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labels: list[bool], rate: float, message: str) -> None:
    states = drawn(len(labels), 0)[0]
    with pytest.raises(MisconfiguredError, match=message):
        fit(states, labels, [str(one) for one in range(len(labels))], model=MODEL, rate=rate)


@pytest.mark.parametrize("count", [1, 3, WINDOW, 30])
def test_five_numbers_are_selected_of_a_series(count: int) -> None:
    series = np.random.default_rng(count).normal(size=count)
    width = min(WINDOW, count)
    windows = [series[start : start + width].mean() for start in range(count - width + 1)]
    wanted = [series[0], series[-1], series.mean(), series.max(), max(windows)]
    np.testing.assert_allclose(selected(series), wanted)
    assert len(SELECTIONS) == len(wanted)


@pytest.mark.parametrize("kind", ["boosting", "mlp"])
def test_what_is_combined_is_what_the_library_says(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.neural_network import MLPClassifier

    kept: list[Any] = []
    for each in (GradientBoostingClassifier, MLPClassifier):
        fitting = each.fit

        def spy(self: Any, x: Any, y: Any, fitting: Any = fitting) -> Any:
            kept.append((self, x))
            return fitting(self, x, y)

        monkeypatch.setattr(each, "fit", spy)
    draw = np.random.default_rng(0)
    chosen, labels = draw.normal(size=(200, 7)) * 3 + 1, draw.integers(0, 2, 200)
    ours = combiner(kind, chosen, labels, ())
    library, x = kept[0]
    share = library.predict_proba(x)[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-ours.log_odds(chosen))), share, atol=1e-6)


def test_families_are_weighed_as_the_library_weighs_them_and_never_below_zero() -> None:
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    chosen = draw.normal(size=(400, 7)) * 3 + 1
    log_odds = chosen[:, 1] - 1 + 0.5 * (chosen[:, 3] - 1) - 0.5 * (chosen[:, 5] - 1)
    labels = (draw.random(400) < 1 / (1 + np.exp(-log_odds))).astype(int)
    ours = combiner("logistic", chosen, labels, (1, 3, 5)).arrays()["weight_Q"]
    assert (ours >= 0).all()
    assert not ours[[0, 2, 4, 5, 6]].any()
    own = chosen[:, [1, 3]]
    scale = own.std(0)
    library = LogisticRegression(C=1 / (0.01 * 400), tol=1e-8, max_iter=1000)
    wanted = library.fit((own - own.mean(0)) / scale, labels).coef_[0] / scale
    np.testing.assert_allclose(ours[[1, 3]], wanted, rtol=1e-3)


def test_steps_are_counted_alike_whichever_families_there_are() -> None:
    """Of those that look at attention the first step is the second, beside others and alone."""
    late, early = np.arange(1.0, 6), np.arange(6.0)
    both = cut({"rauq": late, "lens": early}, 0, 3)
    alone = cut({"rauq": late}, 0, 3)
    assert both["rauq"].tolist() == alone["rauq"].tolist() == [1, 2]
    assert both["lens"].tolist() == [0, 1, 2]
    assert cut({"rauq": late}, 0, 1) == cut({}, 0, 1) == {}


def test_what_adds_nothing_is_not_read(tmp_path: Path) -> None:
    found = fit(*drawn(300, 0, 2.0), model=MODEL).detector
    assert set(found.probes) == set(found.about.families) < set(WIDTHS)
    assert found.usual_Q.shape == (5 * len(found.probes),)
    write_detector(tmp_path / "detector", found)
    assert set(read_detector(tmp_path / "detector").probes) == set(found.probes)


def test_a_number_that_never_moves_counts_nothing() -> None:
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(100, 3)), draw.integers(0, 2, 100)
    x[:, 1] = 5.0
    weight, _ = linear(x, labels, 1.0)
    assert weight[1] == 0
    assert np.isfinite(weight).all()


def test_answers_to_one_question_are_held_out_together() -> None:
    groups = [str(number // 4) for number in range(200)]
    folds = folds_of(np.arange(200) % 2, groups, 0)
    assert sorted(one for fold in folds for one in fold) == list(range(200))
    for fold in folds:
        inside = {groups[one] for one in fold}
        assert sum(groups[one] in inside for one in range(200)) == len(fold)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5])
def test_the_line_is_where_at_most_the_rate_reaches(rate: float) -> None:
    risk = np.random.default_rng(0).random(99)
    assert (risk > line_of(risk, rate)).mean() <= rate
    assert (risk >= line_of(risk, rate)).sum() == int(rate * 100)
    assert line_of(np.full(50, 0.3), rate) == 0.3
    assert line_of(np.ones(50), rate) == 1.0  # which a file can hold
    assert line_of(np.array([0.1, *[0.2] * 47]), 1 / 49) == 0.2


def test_a_part_of_an_answer_has_its_own_steps() -> None:
    """Those of attention begin one later."""
    series = {"hidden.1": np.arange(10.0), "lookback": np.arange(1.0, 10.0)}
    part = cut(series, 3, 6)
    assert part["hidden.1"].tolist() == part["lookback"].tolist() == [3, 4, 5]
    first = cut(series, 0, 1)
    assert first["hidden.1"].tolist() == [0]
    assert "lookback" not in first


def test_a_family_without_steps_is_as_on_average_and_reasons_are_of_flagged_answers(made: Fitted) -> None:
    states, made_up, _ = drawn(80, 7, 3.0)
    series = made.detector.series(states[0])
    without = made.detector.risk({name: one for name, one in series.items() if name != "lookback"})
    assert dict(without.families)["lookback"] == pytest.approx(0.0, abs=1e-12)
    for one, label in zip(states, made_up, strict=True):
        risk = made.detector.risk(made.detector.series(one))
        assert bool(why(risk)) == risk.flagged or not label
        assert why(replace(risk, flagged=False)) == ()


def test_answers_to_too_few_questions_are_refused() -> None:
    states, made_up, _ = drawn(100, 0)
    with pytest.raises(MisconfiguredError, match="answers to 3 questions"):
        fit(states, made_up, [str(one % 3) for one in range(100)], model=MODEL)
