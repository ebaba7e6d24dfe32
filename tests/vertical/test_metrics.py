"""Metrics are what their definitions say, counted in the slowest way; known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.vertical.metrics import auc, metrics, poisson_deviance

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
