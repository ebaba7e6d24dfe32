"""The two nearest rows of a table, by Euclidean distance, in blocks.

Everything runs in float32, so that a vocabulary of 150,000 needs no more memory than one block against it.
Threat model: the table is public. Does not protect anything: it is the simplest attacker's tool.
Source: none; |a - b|^2 written as one product.

Shapes: S rows, V table rows, F features.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats32 = NDArray[np.float32]

_BLOCK = 1024


def two_nearest(rows_SF: Floats32, base_VF: Floats32) -> tuple[Ints, Floats32]:
    """(ids [S, 2], distances [S, 2]) of the nearest row and the one after it, which is the same in
    a table of one."""
    halves_V = np.einsum("vf,vf->v", base_VF, base_VF) / 2
    ids, distances = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.float32)]
    for start in range(0, len(rows_SF), _BLOCK):
        block = rows_SF[start : start + _BLOCK]
        away_SV = halves_V - block @ base_VF.T  # half the squared distance, less the row's own part
        first_S = away_SV.argmin(axis=1)  # twice the minimum is several times faster than a partition
        away_SV[np.arange(len(block)), first_S] = np.inf
        best = np.stack([first_S, away_SV.argmin(axis=1)], axis=1)
        two = np.linalg.norm(block[:, None] - base_VF[best], axis=2)  # again, free of cancellation
        order = two.argsort(axis=1)
        ids.append(np.take_along_axis(best, order, 1))
        distances.append(np.take_along_axis(two, order, 1))
    return np.concatenate(ids).astype(np.int64), np.concatenate(distances).astype(np.float32)
