"""Observed states: what a host that runs the layers sees of each token, and how a reading of them is scored.

Threat model: the host keeps the activations of every request: the embedding's rows, the residual stream after
any block, the attention probabilities. Does not protect anything.
Source: arXiv 2603.01499 (token recovery from states).

Shapes: B texts, T tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.traffic import Texts, flat
from transom.errors import MisconfiguredError
from transom.report.finding import Example, Finding, clustered
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch


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


def descend(optimiser: Any, loss: Callable[[], torch.Tensor], steps: int, stop: float) -> int:
    """`steps` steps at a falling rate, until `stop`; the number taken, at least one."""
    import torch

    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if time.monotonic() > stop:
            return step
    return steps


def recovery(name: str, guess_BT: Ints, data_BT: Ints, *, note: str) -> Finding:
    """`recovered`, for texts of one length."""
    guesses, plain = (tuple(map(tuple, ids_BT.tolist())) for ids_BT in (guess_BT, data_BT))
    return recovered(name, guesses, plain, note=note)


def recovered(
    name: str, guesses: Texts, plain: Texts, *, note: str, examples: tuple[Example, ...] = ()
) -> Finding:
    """Share of tokens named rightly, interval over texts; chance deals the same guesses out at random."""
    guess_N, plain_N = flat(guesses), flat(plain)
    size = int(max(guess_N.max(), plain_N.max())) + 1
    guessed_V, plain_V = (np.bincount(ids_N, minlength=size) / len(ids_N) for ids_N in (guess_N, plain_N))
    sizes, chance = [len(text) for text in plain], float(guessed_V @ plain_V)
    return clustered(name, METRIC, guess_N == plain_N, sizes, baseline=chance, note=note, examples=examples)
