"""How well a model does on rows: loss, and by task AUC, accuracy, errors or deviance.

Threat model: none; whoever has the labels counts. Does not protect: metrics tell something of the rows.
Source: Mann and Whitney 1947 (AUC by ranks, ties by half); McCullagh and Nelder 1989 (Poisson deviance).
Shapes: N rows, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.vertical.job import Task

Floats = NDArray[np.float64]
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


def auc(scores_N: Floats, labels_N: NDArray[Any]) -> float:
    """The share of pairs of a row of class 1 and one of class 0 that the scores order so, ties by half; NaN
    without either."""
    positive_N = labels_N == 1
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if not positives or not negatives:
        return math.nan
    _, place_N, count_K = np.unique(scores_N, return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(count_K) - (count_K - 1) / 2)[place_N]  # of equal ones the mean
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def poisson_deviance(expected_N: Floats, counts_N: NDArray[Any]) -> float:
    """Mean deviance of counts from what is expected of them."""
    expected_N, counts_N = np.maximum(expected_N, _LEAST), counts_N.astype(np.float64)
    logs_N = counts_N * np.log(np.maximum(counts_N, _LEAST) / expected_N)
    return float((2 * (logs_N - counts_N + expected_N)).mean())


def _nats(likely_N: Floats) -> float:
    return float(-np.log(likely_N).mean())
