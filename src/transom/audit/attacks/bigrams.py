"""A language of pairs of ids, from the attacker's own texts.

Counts of pairs, smoothed by `weight` ids drawn from all of them, a twentieth of which are drawn evenly.

Threat model: the attacker has text like the target's. Does not protect anything.
Source: MacKay and Peto 1995, "A hierarchical Dirichlet language model" (the smoothing).

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Bigrams:
    """Counts of what follows what; the id before a text is `start_id`, one past the vocabulary."""

    followers: dict[int, Counter[int]]
    share_V: Floats
    weight: float

    @classmethod
    def of(cls, texts: Iterable[tuple[int, ...]], vocabulary: int, *, weight: float = 2.0) -> Bigrams:
        """Counted in `texts`, whose ids are below `vocabulary`."""
        followers: dict[int, Counter[int]] = {}
        counts_V = np.zeros(vocabulary)
        for text in texts:
            for before, after in zip((vocabulary, *text), text, strict=False):
                followers.setdefault(before, Counter())[after] += 1
                counts_V[after] += 1
        counts_V += max(1.0, counts_V.sum()) / (19 * vocabulary)
        return cls(followers, (counts_V / counts_V.sum()).astype(np.float32), weight)

    @property
    def start_id(self) -> int:
        """The id before a text."""
        return len(self.share_V)

    def row(self, before: int) -> Floats:
        """log P(next | before) [V]."""
        follow = self.followers.get(before, Counter())
        row_V = self.weight * self.share_V
        row_V[list(follow)] += np.array(list(follow.values()), dtype=np.float32)
        return np.asarray(np.log(row_V / (self.weight + follow.total())), dtype=np.float32)

    def log(self, before: int, after: int) -> float:
        """log P(after | before)."""
        follow = self.followers.get(before, Counter())
        mass = self.weight * float(self.share_V[after]) + follow[after]
        return math.log(mass / (self.weight + follow.total()))

    def log_of(self, text: tuple[int, ...]) -> float:
        """log P of a whole text."""
        return sum(map(self.log, (self.start_id, *text), text))
