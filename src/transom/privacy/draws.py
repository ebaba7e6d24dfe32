"""What draws words under a policy: its mechanisms, what they cost, and the attacker that knows them.

Kinds of one epsilon share a mechanism, kinds of different epsilons have tables of their own.
Threat model: the host knows policy, mechanisms, prior and which of them drew a word, and is the exact Bayes
attacker of `Draws.guess`. Does not protect: which kinds are drawn by which mechanism.
Source: Chen et al. 2023 (groups), Yu et al. 2025, arXiv 2509.09091 (noisy selection).

Shape suffixes: N draws, V vocabulary, K words of one group, X private and Y released words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from transom.privacy.channel import Floats
from transom.privacy.kinds import SUBKINDS, base_of
from transom.privacy.mechanisms import QUICK, build
from transom.privacy.partition import PartitionedMechanism, WordMechanism
from transom.privacy.policy import Policy


@dataclass(frozen=True)
class BayesGuess:
    """What the exact Bayes attacker makes of a sanitised text's drawn words.

    `guesses` pairs each released word with the guess, `recovered` of `words` are right; `success` is the
    expected share given the released words, `chance` the share by naming each group's likeliest word unseen.
    """

    guesses: tuple[tuple[str, str], ...]
    recovered: int
    words: int
    success: float
    chance: float


class Draws:
    """The mechanisms of a policy; `own` replaces them all. There is none where no kind is drawn."""

    def __init__(self, policy: Policy, own: WordMechanism | None = None) -> None:
        rules = {kind: policy.rule(kind) for kind in ("word", *SUBKINDS) if base_of(kind) == "word"}
        drawn = {kind: rule for kind, rule in rules.items() if not isinstance(rule, str)}
        epsilons = list(dict.fromkeys(drawn.values()))
        self._policy = policy
        self.mechanisms: list[WordMechanism]
        if own is not None:
            self.mechanisms, self.number_of = [own] if drawn else [], dict.fromkeys(drawn, 0)
        else:
            self.mechanisms = [build(policy.mechanism, policy.partition, epsilon) for epsilon in epsilons]
            self.number_of = {kind: epsilons.index(epsilon) for kind, epsilon in drawn.items()}
        self._posteriors: dict[tuple[str, int], tuple[int, float, float]] = {}

    @property
    def epsilon(self) -> float:
        """The most that one draw costs; 0 where nothing is drawn."""
        return max(map(_price, self.mechanisms), default=0.0)

    def prepare(self) -> None:
        """Make now the tables that first draws would wait for, where all of them take a second or less."""
        for mechanism in self.mechanisms:
            if isinstance(mechanism, PartitionedMechanism) and mechanism.name in QUICK:
                mechanism.prepare_all()

    def sample(self, kinds: Sequence[str], ids: Sequence[int]) -> list[int]:
        """A released word id for each word; one call for each mechanism."""
        released = [0] * len(ids)
        numbers = [self.number_of[kind] for kind in kinds]
        for number, mechanism in enumerate(self.mechanisms):
            at = [index for index, one in enumerate(numbers) if one == number]
            if at:
                ids_N = np.array([ids[index] for index in at], dtype=np.int64)
                for index, word_id in zip(at, mechanism.sample(ids_N).tolist(), strict=True):
                    released[index] = word_id
        return released

    def cost(self, kinds: Iterable[str]) -> float:
        """What a draw of each kind costs; a mechanism's price is asked for only where it draws."""
        counts = Counter([self.number_of[kind] for kind in kinds])
        return sum(count * _price(self.mechanisms[number]) for number, count in counts.items()) or 0.0

    def attacked(self, drawn: Sequence[tuple[str, int, int]]) -> BayesGuess:
        """The best guess for each drawn word, given as its kind, its id and the id of the released word."""
        words = self._policy.words
        guesses = [self.guess(kind, output_id) for kind, _, output_id in drawn]
        return BayesGuess(
            guesses=tuple((words[one[2]], words[q[0]]) for one, q in zip(drawn, guesses, strict=True)),
            recovered=sum(one[1] == q[0] for one, q in zip(drawn, guesses, strict=True)),
            words=len(drawn),
            success=sum(q[1] for q in guesses) / max(1, len(drawn)),
            chance=sum(q[2] for q in guesses) / max(1, len(drawn)),
        )

    def guess(self, kind: str, output_id: int) -> tuple[int, float, float]:
        """(best guess, its probability, the probability of the likeliest word unseen) for a released word."""
        if (kind, output_id) not in self._posteriors:
            self._posteriors[kind, output_id] = self._computed(kind, output_id)
        return self._posteriors[kind, output_id]

    def _computed(self, kind: str, output_id: int) -> tuple[int, float, float]:
        mechanism, prior_V = self.mechanisms[self.number_of[kind]], self._priors[self.number_of[kind]]
        if not isinstance(mechanism, PartitionedMechanism):
            attack = mechanism.bayes(prior_V)
            return int(attack.guess_Y[output_id]), attack.success, attack.chance
        group = int(self._policy.partition.group_V[output_id])
        start, end = (int(i) for i in self._policy.partition.starts_G1[group : group + 2])
        prior_K = prior_V[start:end] if prior_V[start:end].sum() > 0 else np.ones(end - start)
        joint_K = prior_K * mechanism.channel(group).p_XY[:, output_id - start]
        best = int(joint_K.argmax())
        return start + best, float(joint_K[best] / joint_K.sum()), float(prior_K.max() / prior_K.sum())

    @cached_property
    def _priors(self) -> Sequence[Floats]:
        """Frequencies [V] of the words that each mechanism draws; the attacker knows which those are."""
        number_V = np.array(
            [self.number_of.get(self._policy.kind_of[word], -1) for word in self._policy.words]
        )
        prior_V = self._policy.prior_V.astype(np.float64)
        return [prior_V * (number_V == number) for number in range(len(self.mechanisms))]


def _price(mechanism: WordMechanism) -> float:
    """What one fresh draw costs; infinite unless the mechanism promises pure differential privacy.

    A metric epsilon is a price for a unit of distance, not for a word: no ledger can add it up.
    """
    promise = mechanism.guarantee()
    return promise.epsilon if promise.kind == "pure-dp" and promise.epsilon is not None else math.inf
