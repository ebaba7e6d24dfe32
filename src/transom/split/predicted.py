"""What a tuned model says of some rows: a classifier's scores, or how well a language model foresees a text.

Threat model: none; numbers and labels, no texts. Does not protect: scores tell of what was trained on.
Source: own. Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.data.written import write_rows
from transom.split.metrics import Tally

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Predicted:
    """Scores [R, C] of a classifier, before softmax, else each row's tally. `labels` names the classes,
    `truth` holds the rows' own where they are known."""

    labels: tuple[str, ...]
    truth: tuple[int, ...]
    tallies: tuple[Tally, ...]
    scores_RC: Tensor | None

    def rows(self) -> list[dict[str, Any]]:
        """One entry a row, from 1: the likeliest label and each one's probability, or loss and tokens."""
        if self.scores_RC is None:
            return [
                {"row": number, "tokens": one.count, **one.metrics("causal")}
                for number, one in enumerate(self.tallies, 1)
            ]
        shares = self.scores_RC.double().softmax(-1).tolist()
        likeliest = self.scores_RC.argmax(-1).tolist()
        return [
            {"row": number, "predicted": self.labels[best], **dict(zip(self.labels, share, strict=True))}
            for number, (best, share) in enumerate(zip(likeliest, shares, strict=True), 1)
        ]

    def metrics(self) -> Mapping[str, float]:
        """As an evaluation's, where the truth is known; else nothing."""
        import torch

        if self.scores_RC is None:
            return sum(self.tallies, Tally()).metrics("causal")
        if not self.truth:
            return {}
        truth_R = torch.tensor(self.truth)
        loss = torch.nn.functional.cross_entropy(self.scores_RC, truth_R, reduction="sum")
        right = int((self.scores_RC.argmax(-1) == truth_R).sum())
        return Tally(float(loss), right, len(truth_R)).metrics("classification")

    def write(self, path: Path) -> None:
        """As CSV, or as JSON if the name ends so. Raises MisconfiguredError."""
        write_rows(path, self.rows())
