"""What attacks on weights share: products row by row, quantiles, column assignment, nearest neighbours.

Everything runs in float32 and in blocks, so that a vocabulary of 150,000 times a width of 5,000 needs no more
memory than one such matrix.

Threat model: see `weights`. Does not protect anything.

Shapes: V vocabulary, S sampled rows, N columns (neurons), F features, Q quantiles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.privacy.nearest import two_nearest
from transom.report.statistics import Ints

Floats = NDArray[np.float32]

MOST_ASSIGNED = 4096  # rows whose assignment is not too slow
_BLOCK = 1024


def unit(rows_SF: Floats) -> Floats:
    """Rows of length 1 (a zero row stays zero)."""
    lengths_S = np.sqrt(np.einsum("sf,sf->s", rows_SF, rows_SF)) + np.float32(1e-12)
    return np.asarray(rows_SF / lengths_S[:, None], dtype=np.float32)


def quantiles(rows_SF: Floats, count: int) -> Floats:
    """[S, count]: each row's quantiles at i / (count + 1); the whole sorted row where F <= count.

    The extremes stay out: under noise they vary more than all the rest together.
    """
    width = rows_SF.shape[1]
    inner = np.arange(1, count + 1) / (count + 1) * (width - 1)
    picks = inner.round().astype(int) if width > count else np.arange(width)
    blocks = range(0, len(rows_SF), _BLOCK)
    return np.concatenate([np.sort(rows_SF[start : start + _BLOCK], axis=1)[:, picks] for start in blocks])


def product_quantiles(left_SD: Floats, right_DN: Floats, count: int) -> Floats:
    """`quantiles` of the rows of left @ right, without ever holding that product."""
    blocks = range(0, len(left_SD), _BLOCK)
    return np.concatenate([quantiles(left_SD[start : start + _BLOCK] @ right_DN, count) for start in blocks])


def nearest(rows_SF: Floats, base_VF: Floats) -> tuple[Ints, Floats]:
    """(ids [S], margins [S]): the nearest base row by Euclidean distance, and 1 - first / second distance."""
    ids_S2, away_S2 = two_nearest(rows_SF, base_VF)
    return ids_S2[:, 0], 1 - away_S2[:, 0] / (away_S2[:, 1] + np.float32(1e-30))


def assign(rows_NF: Floats, base_NF: Floats) -> Ints:
    """[N]: for each base row the row assigned to it, least total squared distance; or its nearest."""
    if len(base_NF) > MOST_ASSIGNED:
        return nearest(base_NF, rows_NF)[0]
    squares = (rows_NF**2).sum(1)[None] + (base_NF**2).sum(1)[:, None]
    costs_NN = squares - 2 * base_NF @ rows_NF.T
    return assigned(costs_NN)


def assigned(costs_NM: NDArray[Any]) -> Ints:
    """[N]: a column of its own for each row, at the least total cost (Hungarian); N is at most M.

    Of too many rows each takes its cheapest: nothing stops what runs for minutes in compiled code.
    """
    from scipy.optimize import linear_sum_assignment

    best_N: Any = costs_NM.argmin(axis=1)
    if len(np.unique(best_N)) < len(best_N) <= MOST_ASSIGNED:  # else nothing is left to assign
        best_N = linear_sum_assignment(costs_NM)[1]
    return np.asarray(best_N, dtype=np.int64)


def with_others(ids_S: Ints, vocabulary: int, count: int) -> Ints:
    """`ids_S` and, up to `count` in all, other ids at random (always the same ones)."""
    others = np.setdiff1d(np.arange(vocabulary), ids_S)
    drawn = np.random.default_rng(1).permutation(others)[: max(0, count - len(ids_S))]
    return np.concatenate([ids_S, drawn]).astype(np.int64)
