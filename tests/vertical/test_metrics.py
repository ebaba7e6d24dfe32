"""Metrics are what their definitions say, counted in the slowest way; known values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from transom.report.statistics import auc, interval
from transom.vertical.metrics import metrics, poisson_deviance, score_interval

ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]), st.integers(0, 1)), min_size=1, max_size=20
)


@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, int]]) -> None:
    ones, zeros = ([score for score, label in rows if label == of] for of in (1, 0))
    pairs = [(one > zero) + (one == zero) / 2 for one in ones for zero in zeros]
    found = auc(np.array([score for score, _ in rows]), np.array([label for _, label in rows]))
    assert found == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(found)


def test_known_values() -> None:
    """Of the examples in scikit-learn's reference (AUC, R2), and by hand."""
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    found = metrics("binary", scores, labels)
    assert found == pytest.approx({"auc": 0.75, "loss": 0.4722879, "accuracy": 0.75})
    assert poisson_deviance(np.array([2.0, 0.5, 2.0]), np.array([2, 0, 1])) == pytest.approx(0.5379019)
    found = metrics("regression", np.array([2.5, 0.0, 2, 8]), np.array([3, -0.5, 2, 7]))
    assert found["r2"] == pytest.approx(0.9486081)
    assert (found["mae"], found["rmse"], found["loss"]) == pytest.approx((0.5, math.sqrt(0.375), 0.1875))


def test_of_classes_the_likeliest_counts() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])
    assert metrics("multiclass", scores, np.array([0, 1])) == pytest.approx(
        {"accuracy": 0.5, "loss": -(math.log(0.7) + math.log(0.2)) / 2}
    )


@pytest.mark.parametrize("task", ["binary", "counts", "multiclass"])
def test_certainty_that_is_wrong_costs_much_and_not_everything(task: str) -> None:
    scores = np.array([[0.0, 1.0]]) if task == "multiclass" else np.array([1.0 if task == "binary" else 0.0])
    labels = np.array([3 if task == "counts" else 0])
    assert 20 < metrics(task, scores, labels)["loss"] < 200  # type: ignore[arg-type]


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=2, max_size=8),
    st.lists(st.sampled_from([0.2, 0.3, 0.4, 0.5, 0.6]), min_size=2, max_size=8),
)
def test_the_interval_of_auc_is_delongs_of_all_pairs(zeros: list[float], ones: list[float]) -> None:
    """Its components counted pair by pair."""
    won = np.array([[(one > zero) + (one == zero) / 2 for zero in zeros] for one in ones])
    scores, labels = np.array(zeros + ones), np.array([0] * len(zeros) + [1] * len(ones))
    found = score_interval("binary", scores, labels)
    assert found is not None
    if won.mean() in (0.0, 1.0):
        assert found == interval(int(won.mean()) * min(won.shape), min(won.shape))
        return
    error = math.sqrt(won.mean(1).var(ddof=1) / len(ones) + won.mean(0).var(ddof=1) / len(zeros))
    wanted = max(0, won.mean() - 1.959964 * error), min(1, won.mean() + 1.959964 * error)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "counts"])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(task: Any) -> None:
    draw, times, held = np.random.default_rng(5), 400, 0
    truth = {"binary": norm.cdf(1 / math.sqrt(2)), "multiclass": 0.7, "regression": 2.0}
    if task == "counts":
        large = draw.poisson(3.0, 10**6)
        truth["counts"] = metrics("counts", np.full(10**6, 3.0), large)["deviance"]
    for _ in range(times):
        labels: Any
        scores: Any
        if task == "binary":
            labels = draw.integers(0, 2, 300)
            scores = labels + draw.normal(size=300)
        elif task == "multiclass":
            labels = draw.integers(0, 3, 300)
            right = draw.random(300) < 0.7
            scores = np.eye(3)[np.where(right, labels, (labels + 1) % 3)]
        elif task == "regression":
            labels, scores = 2 * draw.normal(size=300), np.zeros(300)
        else:
            labels, scores = draw.poisson(3.0, 300), np.full(300, 3.0)
        found = score_interval(task, scores, labels)
        assert found is not None
        held += found[0] <= truth[task] <= found[1]
    assert held / times > 0.9


@pytest.mark.parametrize("task", ["binary", "regression", "counts"])
def test_of_one_row_no_interval_is_told(task: Any) -> None:
    assert score_interval(task, np.array([0.3]), np.array([1])) is None
