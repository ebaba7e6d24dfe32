"""What the feature party has under way: units, an evaluation, and how old gradients were that were applied.

Threat model: none of its own. Does not protect anything. Source: own.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Going:
    """A unit under way: its attempt, the count of steps when its embedding was asked of a worker, which one,
    when it was sent, and whether its gradient is here."""

    attempt: int
    made_at: int
    sent_s: float = math.inf
    worker: int | None = None
    answered: bool = False


@dataclass
class Evaluation:
    """One under way: messages sent, answered, when the last one was sent, and whether the budget refused one:
    then what was sent is answered, and no more."""

    attempt: int = 0
    sent: int = 0
    answered: int = 0
    sent_s: float = math.inf
    refused: bool = False


@dataclass
class Ages:
    """How old gradients were that were applied, in steps."""

    counts: Counter[int] = field(default_factory=Counter)

    def report(self) -> dict[str, float]:
        total = sum(self.counts.values())
        mean = sum(age * count for age, count in self.counts.items()) / total if total else 0.0
        return {"mean": mean, "most": max(self.counts, default=0)}
