"""How much a token says: -log2 of its public frequency.

What a policy has no frequency for (a name, a number, a word of a list alone) weighs as much as its rarest
word, a pass word as the mean pass word; a token of several words is the sum of them.

Threat model: none; arithmetic on public figures. Does not know how frequent a name really is.
Source: Shannon 1948 (self-information).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

from transom.privacy.policy import Policy

_PARTS = re.compile(r"[^\W_]+")
_UNSTATED_PASS_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Rarity:
    """How much a token weighs, from the public frequencies of a policy."""

    policy: Policy = field(repr=False)

    @cached_property
    def _passes(self) -> float:
        share = self.policy.pass_share
        return _UNSTATED_PASS_SHARE if share is None else share

    @cached_property
    def _rarest(self) -> float:
        prior_V = self.policy.prior_V
        least = float(prior_V[prior_V > 0].min() / prior_V.sum())
        return -math.log2(max(1 - self._passes, 1e-3) * least)

    @cached_property
    def _pass_word(self) -> float:
        return -math.log2(max(self._passes, 1e-3) / max(1, len(self.policy.pass_words)))

    def weight(self, source: str) -> float:
        """Of a token: the sum over the words that it is made of."""
        return sum(map(self._word, _PARTS.findall(source.lower()))) or self._rarest

    def _word(self, word: str) -> float:
        policy = self.policy
        if (number := policy.word_ids.get(word)) is not None:
            share = float(policy.prior_V[number] / policy.prior_V.sum())
            return min(self._rarest, -math.log2(max((1 - self._passes) * share, 1e-300)))
        return self._pass_word if word in policy.pass_words else self._rarest
