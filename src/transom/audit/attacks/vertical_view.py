"""Vertical training as each party sees the other: embeddings one way, gradients the other, once an epoch.

Rows and batches are known to both parties, so what comes is told apart by person. A row is seen again in each
epoch, with other weights and fresh noise: `told` averages epochs that stand near each other, and leaves out
directions in which noise of the known law is all that there is.

Threat model: a party that keeps all that it receives, and knows the law of the noise and some rows of both
sides. Does not protect anything.
Source: Bai and Silverstein, Spectral Analysis of Large Dimensional Random Matrices, chapter 3 (the edge of
noise); Rifkin and Lippert 2007, MIT-CSAIL-TR-2007-025 (kernel regression and its leave-one-out errors).

Shapes: E epochs, N rows, W width, D numbers of a row in all, K known rows, F values of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from transom.report.statistics import Floats, Ints

Rows = NDArray[np.float32]
_GROUPS = 10  # of epochs, at most
_MOST_KNOWN = 2000  # rows that a regression is made of
_CHUNK = 2048  # rows
_RIDGES = np.logspace(-8, 2, 21)  # of the mean eigenvalue
_REACHES = (0.3, 1.0, 3.0)  # of a kernel, in mean distances


@dataclass(frozen=True, eq=False)
class Seen:
    """The target: what one party received of each row in each epoch [E, N, W], in which batch [E, N], and the
    noise that had been added to each number by then."""

    views_ENW: Rows
    batches_EN: Ints
    sigma: float = 0.0

    def __len__(self) -> int:
        return int(self.views_ENW.shape[1])


@dataclass(frozen=True, eq=False)
class Exchanged:
    """The target: what went to the label party, and what came back to the feature party."""

    embeddings: Seen
    gradients: Seen


@dataclass(frozen=True, eq=False)
class Known:
    """What the attacker brings. A label party: numbers of rows [K] whose columns it knows. A feature party:
    labels (classes or numbers) by row, which of two classes is the rarer one, and its own columns [N, F]
    where the audit has them."""

    rows_K: Ints
    labels: Mapping[int, float] = field(default_factory=dict)
    rarer: int = 1
    columns_NF: Floats | None = None

    @property
    def labelled_K(self) -> Ints:
        """Numbers of the rows whose labels are known."""
        return np.array(list(self.labels), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Truth:
    """For scoring, and for what the attacker knows of it: the feature party's values [N, F] with their
    columns' names, and labels [N]; what the audit does not have is None."""

    values_NF: Floats | None = None
    names: tuple[str, ...] = ()
    labels_N: Ints | Floats | None = None


def others(rows_K: Ints, count: int) -> Ints:
    """The numbers of all other rows."""
    return np.setdiff1d(np.arange(count), rows_K)


def misfit(seen: Seen, rows_K: Ints, truth: Sized | None, what: str, owner: str) -> str:
    """Why an attack on what was seen (`what`) cannot be run and scored; nothing where it can. `owner` of the
    truth is "label" or "feature"."""
    if truth is None:
        return f"the truth is the {owner} party's; give its job, here or as --partner"
    if not len(seen.views_ENW):
        return f"no epoch of {what} was kept whole; set train.record_traffic_mb, or more of it, and train"
    if len(seen) != len(truth):
        return f"{len(seen)} rows were seen, and the truth is of {len(truth)}"
    if not np.isfinite(seen.views_ENW).all():
        return f"some {what} are not finite"
    if len(rows_K) >= len(seen):
        return f"all {len(seen)} rows are known; none is left to attack"
    return ""


def told(seen: Seen) -> Floats:
    """All that the views tell of each row [N, D], with noise of one in every direction, or numbers of about
    one without noise."""
    parts = np.array_split(seen.views_ENW, min(_GROUPS, len(seen.views_ENW)))
    means = [part_ENW.mean(0, dtype=np.float64) for part_ENW in parts]
    means = [mean_NW - mean_NW.mean(0) for mean_NW in means]
    levels = [
        seen.sigma / len(part_ENW) ** 0.5 or float(mean_NW.std()) or 1.0
        for part_ENW, mean_NW in zip(parts, means, strict=True)
    ]
    x_ND = np.concatenate([mean_NW / level for mean_NW, level in zip(means, levels, strict=True)], axis=1)
    variances_D, axes_DD = np.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
    edge = (1 + (x_ND.shape[1] / len(x_ND)) ** 0.5) ** 2 if seen.sigma else 0.0
    kept_D = variances_D > max(edge, 1e-9 * variances_D[-1])
    kept_D[-1] = True  # of noise alone something is read, too: nothing
    found_ND: Floats = x_ND @ axes_DD[:, kept_D]
    return found_ND


def regress(x_ND: Floats, rows_K: Ints, values_KF: Floats) -> Floats:
    """What rows let expect [N, F], learnt from those that are known: for each column the kernel and the ridge
    whose leave-one-out error is least, within what is known; the mean where none beats it."""
    rows_K, values_KF = rows_K[:_MOST_KNOWN], values_KF[:_MOST_KNOWN]
    known_KD, mean_F = x_ND[rows_K], values_KF.mean(0)
    found_NF = np.tile(mean_F, (len(x_ND), 1))
    count = len(rows_K)
    least_F = (((values_KF - mean_F) * count / max(1, count - 1)) ** 2).mean(0)
    for reach in _reaches(known_KD):
        kernel_KK = kernel(known_KD, known_KD, reach)
        error_F, weights_KF = ridge_of(kernel_KK, values_KF - mean_F)
        better_F = error_F < least_F
        least_F = np.where(better_F, error_F, least_F)
        if better_F.any():
            for start in range(0, len(x_ND), _CHUNK):
                piece = slice(start, start + _CHUNK)
                guess_BF = kernel(x_ND[piece], known_KD, reach) @ weights_KF + mean_F
                found_NF[piece] = np.where(better_F, guess_BF, found_NF[piece])
    within_NF: Floats = np.clip(found_NF, values_KF.min(0), values_KF.max(0))
    return within_NF


def _reaches(known_KD: Floats) -> Iterator[float]:
    """Of the kernels that are tried: 0 for the linear one."""
    yield 0.0
    mean = float((2 * known_KD.var(0).sum()) ** 0.5)
    yield from (one * mean for one in _REACHES if mean)


def kernel(one_AD: Floats, other_BD: Floats, reach: float) -> Floats:
    """Products, or a Gaussian of distances."""
    products_AB: Floats = one_AD @ other_BD.T
    if not reach:
        return products_AB
    squares_AB = (one_AD**2).sum(1)[:, None] + (other_BD**2).sum(1) - 2 * products_AB
    found_AB: Floats = np.exp(-np.maximum(squares_AB, 0) / (2 * reach**2))
    return found_AB


def ridge_of(kernel_KK: Floats, values_KF: Floats) -> tuple[Floats, Floats]:
    """The least mean leave-one-out error of each column [F], and the weights [K, F] that have it."""
    power_K, axes_KK = np.linalg.eigh(kernel_KK)
    power_K, turned_KF = np.maximum(power_K, 0), axes_KK.T @ values_KF
    least_F, weights_KF = np.full(values_KF.shape[1], np.inf), np.zeros_like(values_KF)
    for ridge in _RIDGES * max(float(power_K.mean()), 1e-300):
        inverse_K = 1 / (power_K + ridge)
        tried_KF = axes_KK @ (inverse_K[:, None] * turned_KF)
        left_K = (axes_KK**2) @ inverse_K
        error_F = ((tried_KF / left_K[:, None]) ** 2).mean(0)
        better_F = error_F < least_F
        least_F = np.where(better_F, error_F, least_F)
        weights_KF = np.where(better_F, tried_KF, weights_KF)
    return least_F, weights_KF
