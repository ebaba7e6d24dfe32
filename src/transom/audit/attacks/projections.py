"""Events on vectors: a learned score above a threshold.

One part of the learning samples fits the scores, the other picks the score and the threshold with the best
certificate. Scores: the difference of means whitened by the pooled covariance (the best there is for Gaussian
noise), distance from one mean less distance from the other (the best for noise that falls with a distance),
single coordinates, the norm, and whether an output is finite at all.

Threat model: as of the epsilon distinguisher, which uses these. Does not find: what no such score shows, as
two noises of one covariance and different shape.
Source: Jagielski et al. 2020, arXiv 2006.07709 (one learned statistic, its threshold on held-out samples);
Neyman and Pearson 1933.

Shapes: N outputs, D floats of each, K thresholds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from transom.report.statistics import Bools, Floats

Score = Callable[[Floats], Floats]
_RIDGE, _THRESHOLDS = 1e-3, 200
_LARGEST = 1e100  # whose square is finite; beyond it an output counts as not finite


def scores(likelier_ND: Floats, other_ND: Floats) -> dict[str, Score]:
    """Named scores [N] of outputs [N, D], each expected to be larger on the likelier input."""
    found: dict[str, Score] = {"not finite": lambda x_ND: (~_finite(x_ND)).astype(np.float64)}
    x_ND, y_ND = likelier_ND[_finite(likelier_ND)], other_ND[_finite(other_ND)]
    if min(len(x_ND), len(y_ND)) < 2:
        return found
    x_D, y_D = x_ND.mean(axis=0), y_ND.mean(axis=0)
    centre_D = (x_D + y_D) / 2
    pooled_ND = np.concatenate([x_ND - x_D, y_ND - y_D])
    scale_D = np.maximum(pooled_ND.std(axis=0), np.finfo(np.float64).tiny)
    whitened_D = _whitened(pooled_ND / scale_D, (x_D - y_D) / scale_D) / scale_D
    widest = int(np.abs((x_D - y_D) / scale_D).argmax())
    sign = np.sign(x_D[widest] - y_D[widest]) or 1.0

    def norm(z_ND: Floats) -> Floats:
        return _distance(z_ND / scale_D, centre_D / scale_D, 2)

    def extreme(z_ND: Floats) -> Floats:
        return np.asarray(np.abs((z_ND - centre_D) / scale_D).max(axis=1))

    plain: dict[str, Score] = {
        "difference of means": lambda z_ND: (z_ND - centre_D) @ whitened_D,
        "difference of distances": lambda z_ND: _distance(z_ND, y_D, 2) - _distance(z_ND, x_D, 2),
        "difference of L1 distances": lambda z_ND: _distance(z_ND, y_D, 1) - _distance(z_ND, x_D, 1),
        "one coordinate": lambda z_ND: sign * z_ND[:, widest],
        "large norm": norm,
        "small norm": lambda z_ND: -norm(z_ND),
        "large coordinate": extreme,
        "no large coordinate": lambda z_ND: -extreme(z_ND),
    }
    return found | {name: _on_finite(score) for name, score in plain.items()}


def thresholds(score_N: Floats) -> Floats:
    """Thresholds [K] that keep the one highest score, the two highest, and so on with growing steps."""
    ranks_K = np.unique(np.geomspace(1, len(score_N), _THRESHOLDS).astype(np.int64)) - 1
    picked_K = np.unique(np.sort(score_N)[::-1][ranks_K])
    return picked_K[np.isfinite(picked_K)]


def _whitened(pooled_ND: Floats, difference_D: Floats) -> Floats:
    width = pooled_ND.shape[1]
    covariance_DD = pooled_ND.T @ pooled_ND / len(pooled_ND)
    return np.asarray(np.linalg.solve(covariance_DD + _RIDGE * np.eye(width), difference_D))


def _distance(z_ND: Floats, centre_D: Floats, order: int) -> Floats:
    return np.asarray(np.linalg.norm(z_ND - centre_D, ord=order, axis=1), dtype=np.float64)


def _finite(x_ND: Floats) -> Bools:
    return np.asarray((np.abs(x_ND) < _LARGEST).all(axis=1))


def _on_finite(score: Score) -> Score:
    """`score` where all floats are finite, minus infinity elsewhere."""

    def guarded(x_ND: Floats) -> Floats:
        finite_N = _finite(x_ND)
        score_N = np.full(len(x_ND), -np.inf)
        score_N[finite_N] = score(x_ND[finite_N])
        return score_N

    return guarded
