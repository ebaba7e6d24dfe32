"""Observed states: what a host that runs the layers sees of each token, and how a reading of them is scored.

Threat model: the host keeps the activations of every request: the embedding's rows, the residual stream after
any block, the attention probabilities. Does not protect anything.
Source: arXiv 2603.01499 (token recovery from states).

Shapes: B texts, T tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.traffic import clustered_interval
from transom.audit.finding import Finding
from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]

METRIC = "ttrsr"


@dataclass(frozen=True)
class States:
    """The target: the residual stream [B, T, D] after block `layer` (0 is the embedding), attention
    probabilities [B, H, T, T] of block `layer` (counted from 0), or both."""

    layer: int
    hidden: torch.Tensor | None = None
    attention: torch.Tensor | None = None


def require_hidden(target: States) -> torch.Tensor:
    """The residual stream [B, T, D] in float32. Raises MisconfiguredError where it was not observed."""
    if target.hidden is None or target.hidden.ndim != 3:
        raise MisconfiguredError("the attack needs hidden states of shape [B, T, D]; give States(hidden=...)")
    return target.hidden.float()


def recovery(name: str, guess_BT: Ints, data_BT: Ints, *, cost_s: float, note: str) -> Finding:
    """Share of tokens named rightly, interval over texts; chance deals the same guesses out at random."""
    hit_BT = guess_BT == data_BT
    size = int(max(guess_BT.max(), data_BT.max())) + 1
    guessed_V, plain_V = (np.bincount(ids.ravel(), minlength=size) / ids.size for ids in (guess_BT, data_BT))
    low, high = clustered_interval(hit_BT.sum(axis=1), np.full(len(hit_BT), hit_BT.shape[1]))
    return Finding(
        name=name,
        metric=METRIC,
        value=float(hit_BT.mean()),
        low=low,
        high=high,
        baseline=float(guessed_V @ plain_V),
        cost_s=round(cost_s, 3),
        n=hit_BT.size,
        note=note,
    )
