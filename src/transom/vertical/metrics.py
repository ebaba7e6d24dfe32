"""How well a model does on rows: loss, and by task AUC, accuracy, errors or deviance.

Threat model: none; whoever has the labels counts. Does not protect: metrics tell something of the rows.
Source: `report.statistics`; Student 1908; McCullagh and Nelder 1989 (Poisson deviance).
Shapes: N rows, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.report.statistics import CONFIDENCE, auc, auc_interval, interval
from transom.vertical.job import Task

Floats = NDArray[np.float64]
SCORE: dict[Task, str] = {
    "binary": "auc", "multiclass": "accuracy", "regression": "rmse", "counts": "deviance",
}  # by which a task's model is judged  # fmt: skip
_LEAST = 1e-12  # of a probability or an expected count, so that a logarithm is finite


def metrics(task: Task, scores: Floats, labels_N: NDArray[Any]) -> dict[str, float]:
    """Of `model.Top.scores` [N] or [N, C]: `loss` (nats; half the squared error for regression, in squared
    units), and `auc` and `accuracy`, `accuracy`, `rmse` and `mae` and `r2`, or `deviance` and `mae`."""
    if task == "binary":
        share_N = np.clip(scores, _LEAST, 1 - _LEAST)
        likely_N = np.where(labels_N == 1, share_N, 1 - share_N)
        right_N = (scores > 0.5) == (labels_N == 1)
        return {"loss": _nats(likely_N), "auc": auc(scores, labels_N), "accuracy": float(right_N.mean())}
    if task == "multiclass":
        likely_N = np.clip(scores[np.arange(len(labels_N)), labels_N.astype(int)], _LEAST, 1)
        return {"loss": _nats(likely_N), "accuracy": float((scores.argmax(1) == labels_N).mean())}
    errors_N = scores - labels_N
    mae = float(np.abs(errors_N).mean())
    if task == "counts":
        deviance = poisson_deviance(scores, labels_N)
        return {"loss": deviance / 2, "deviance": deviance, "mae": mae}
    mse, variance = float((errors_N**2).mean()), float(np.var(labels_N, dtype=np.float64))
    r2 = 1 - mse / variance if variance else math.nan
    return {"loss": mse / 2, "rmse": math.sqrt(mse), "mae": mae, "r2": r2}


def score_interval(task: Task, scores: Floats, labels_N: NDArray[Any]) -> tuple[float, float] | None:
    """In which the task's `SCORE` lies with 95 % confidence, over the choice of rows; None where the rows are
    too few to say. The weights are taken as they are: another seed's are not covered."""
    if task == "binary":
        return auc_interval(scores, labels_N)
    if task == "multiclass":
        right_N = scores.argmax(1) == labels_N
        return interval(int(right_N.sum()), len(right_N)) if len(right_N) else None
    if task == "counts":
        return _mean_interval(deviances(scores, labels_N))
    found = _mean_interval((scores - labels_N) ** 2)
    return found and (math.sqrt(found[0]), math.sqrt(found[1]))


def _mean_interval(values_N: Floats) -> tuple[float, float] | None:
    """Of the mean of values from 0."""
    from scipy.stats import t

    if len(values_N) < 2:
        return None
    mean, error = float(values_N.mean()), float(values_N.std(ddof=1)) / math.sqrt(len(values_N))
    reach = float(t.ppf((1 + CONFIDENCE) / 2, len(values_N) - 1)) * error
    return max(0.0, mean - reach), mean + reach


def poisson_deviance(expected_N: Floats, counts_N: NDArray[Any]) -> float:
    """Mean deviance of counts from what is expected of them."""
    return float(deviances(expected_N, counts_N).mean())


def deviances(expected_N: Floats, counts_N: NDArray[Any]) -> Floats:
    """Of each count from what is expected of it."""
    expected_N, counts_N = np.maximum(expected_N, _LEAST), counts_N.astype(np.float64)
    logs_N = counts_N * np.log(np.maximum(counts_N, _LEAST) / expected_N)
    found: Floats = 2 * (logs_N - counts_N + expected_N)
    return found


def _nats(likely_N: Floats) -> float:
    return float(-np.log(likely_N).mean())
