"""What a trained model says of rows, by their IDs.

Threat model: none; the label party's own numbers. Does not protect: a score tells of the partner's columns.
Source: own. Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.data.written import write_rows
from transom.vertical.job import VerticalJob
from transom.vertical.metrics import metrics


@dataclass(frozen=True, eq=False)
class Predicted:
    """Scores of the rows with these IDs: `model.Top.scores`, [R], or [R, C] of several classes. `labels_R`
    are the rows' own, where the file has them."""

    job: VerticalJob
    ids: tuple[str, ...]
    scores: NDArray[np.float64]
    labels_R: NDArray[Any] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One entry a row: `id`, the likeliest class and each one's probability; or what is expected."""
        classes = self.job.classes
        if not classes:
            return [
                {"id": one, "predicted": score}
                for one, score in zip(self.ids, self.scores.tolist(), strict=True)
            ]
        shares_RC = self.scores if self.scores.ndim == 2 else np.stack([1 - self.scores, self.scores], 1)
        return [
            {"id": one, "predicted": classes[best], **dict(zip(classes, shares, strict=True))}
            for one, best, shares in zip(
                self.ids, shares_RC.argmax(1).tolist(), shares_RC.tolist(), strict=True
            )
        ]

    def metrics(self) -> Mapping[str, float]:
        """As an evaluation's, where the labels are known; else nothing."""
        if self.labels_R is None or not len(self.ids):
            return {}
        return metrics(self.job.task, self.scores, self.labels_R)

    def write(self, path: Path) -> None:
        """As CSV, or as JSON if the name ends so, for its owner alone. Raises MisconfiguredError."""
        write_rows(path, self.rows(), mode=0o600)
