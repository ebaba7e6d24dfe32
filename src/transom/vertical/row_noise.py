"""Noise of a row that predictions carry: the same whenever the row is asked, so that a repeat tells nothing.

It is a function of the run's secret, the row's ID and values, and the weights: equal rows of equal weights
leave as the same numbers in every run of `predict`, and their mean has the noise of one. A row whose values
changed, or whose weights did, or for which later versions find another strength, has noise of its own.
Threat model: the label party keeps all that it gets, of every run of `predict`, and asks as often as it can.
Does not protect: that a row's values changed shows; values of one person at several times are several rows,
each of which costs what one does. The last bits of an embedding may differ with the rows that it was computed
with, and in the difference of two such messages they stand without noise.
Source: as `transom.split.privatise`; own. Shapes: B rows, F columns, W width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError, extra
from transom.link.mechanisms import Mechanism
from transom.privacy.stream import Stream

with extra("link", "torch"):
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class RowNoise:
    """Adds it. `secret` is that of the training's record; `weights` is any bytes that tell the weights."""

    mechanism: Mechanism
    secret: bytes = field(repr=False)
    weights: bytes = field(repr=False)

    def __call__(self, ids_B: Sequence[str], rows_BF: NDArray[np.float32], embedding_BW: Tensor) -> Tensor:
        """The embeddings to send. Raises LinkRefusedError for those that are not finite."""
        if not is_finite(embedding_BW):
            raise LinkRefusedError("embeddings of a prediction are not finite; nothing left. Train again")
        released = [
            self.mechanism.privatise(one_1W, Stream(self.secret, self._label(name, row_F)))
            for name, row_F, one_1W in zip(ids_B, rows_BF, embedding_BW.double()[:, None], strict=True)
        ]
        return torch.cat([*released, embedding_BW.double()[:0]]).to(embedding_BW.dtype)

    def _label(self, name: str, row_F: NDArray[np.float32]) -> str:
        parts = (name.encode(), row_F.tobytes(), self.weights, repr(self.mechanism).encode())
        digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts))
        return f"vertical/predict/{digest.hexdigest()}"
