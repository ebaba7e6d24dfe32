"""How well a model does on rows, summed batch by batch.

Threat model: none; whoever has the labels counts. Does not protect: a loss tells something of the rows.
Source: own. Shapes: B batch, T tokens, C classes, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.split.job import Task

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Tally:
    """Summed loss (nats), right guesses and targets: rows of a classifier, tokens of a language model."""

    loss_sum: float = 0.0
    right: int = 0
    count: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.loss_sum + other.loss_sum, self.right + other.right, self.count + other.count)

    def metrics(self, task: Task) -> dict[str, float]:
        """`loss` and `accuracy` per target, and a language model's `perplexity`; NaN without targets."""
        loss, accuracy = (
            value / self.count if self.count else math.nan for value in (self.loss_sum, self.right)
        )
        found = {"loss": loss, "accuracy": accuracy}
        if task == "causal":
            found["perplexity"] = math.exp(min(loss, 700.0)) if self.count else math.nan
        return found


def targets(task: Task, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, C or V] and what they are for [N]: rows of [B, C] and [B], or each token's next one of
    [B, T, V] and [B, T]. Labels of -100 count for nothing."""
    if task == "causal":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return logits, labels


def count_targets(task: Task, labels: Tensor) -> int:
    """How many targets the labels hold: what a batch's summed loss is divided by."""
    return int(((labels[:, 1:] if task == "causal" else labels) != IGNORED).sum())


def text_labels(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """A language model's labels [B, T]: the ids, where a token and the one before it are no padding."""
    labels_BT = ids_BT.masked_fill(mask_BT == 0, IGNORED)
    labels_BT[:, 1:][mask_BT[:, :-1] == 0] = IGNORED
    return labels_BT
