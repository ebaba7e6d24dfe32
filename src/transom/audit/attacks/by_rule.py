"""Words that are drawn by rules of their own, or not at all, as their attacker reads them.

Which words a rule draws is public, and so is the rule of each drawn word: a candidate is a word of the
output's group that is drawn by the same rule. An output is tagged with the number of its rule: rule times V
plus word.

Threat model: as in `words`. Does not protect anything.
Source: `transom.privacy.sanitize`, which draws kinds of different epsilons from tables of their own.

Legend: N drawn tokens, V vocabulary, K words of one group.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from transom.errors import MisconfiguredError
from transom.privacy.channel import BayesAttack, Weights
from transom.privacy.guarantee import Guarantee
from transom.privacy.partition import PartitionedMechanism, WordMechanism, with_passed
from transom.privacy.sanitize import Sanitizer
from transom.report.statistics import Floats, Ints


@dataclass(frozen=True, eq=False)
class ByRule:
    """A mechanism for each rule, and the number of the rule that draws each word, -1 for none."""

    parts: tuple[PartitionedMechanism, ...]
    number_V: Ints = field(repr=False)

    @property
    def name(self) -> str:
        """That of its parts."""
        return self.parts[0].name

    @property
    def size(self) -> int:
        """The number of words, V."""
        return len(self.number_V)

    def sample(self, word_ids_N: Ints) -> Ints:
        """An independent draw per word, tagged."""
        words_N = np.asarray(word_ids_N, dtype=np.int64)
        numbers_N, outputs_N = np.maximum(self.number_V[words_N], 0), np.zeros_like(words_N)
        for number, part in enumerate(self.parts):
            at = np.flatnonzero(numbers_N == number)
            if len(at):
                outputs_N[at] = part.sample(words_N[at]) + number * self.size
        return outputs_N

    def column(self, output: int, prior_V: Floats) -> tuple[Ints, Floats, Ints]:
        """Candidates [K] of a tagged output, P(output | candidate) [K], and the candidates by their prior."""
        number, word = divmod(output, self.size)
        part = self.parts[number]
        group = int(part.partition.group_V[word])
        start, end = (int(edge) for edge in part.partition.starts_G1[group : group + 2])
        words_K = start + np.flatnonzero(self.number_V[start:end] == number)
        likelihood_K = part.channel(group).p_XY[words_K - start, word - start]
        return words_K, likelihood_K, words_K[np.argsort(-prior_V[words_K], kind="stable")]

    def row(self, word_id: int) -> tuple[Ints, Weights]:
        """The tagged outputs of a word and their weights."""
        number = max(int(self.number_V[word_id]), 0)
        outputs_K, weights_K = self.parts[number].row(word_id)
        return outputs_K + number * self.size, weights_K

    def guarantee(self) -> Guarantee:
        """The weakest of its parts' promises."""
        return max((part.guarantee() for part in self.parts), key=lambda one: one.epsilon or 0.0)

    def exact_epsilon(self) -> float:
        """The largest of its parts."""
        return max(part.exact_epsilon() for part in self.parts)

    def bayes(self, prior_V: Floats, pass_share: float = 0.0) -> BayesAttack:
        """The best attacker who knows rule and group; guesses are by the tagged outputs."""
        success = chance = 0.0
        total, guesses = float(prior_V[self.number_V >= 0].sum()), []
        for number, part in enumerate(self.parts):
            masked_V = np.where(self.number_V == number, prior_V, 0.0)
            guesses.append(np.arange(self.size))
            if masked_V.sum() > 0:
                found, mass = part.bayes(masked_V), float(masked_V.sum()) / total
                success, chance = success + mass * found.success, chance + mass * found.chance
                guesses[-1] = found.guess_Y
        success, chance = (with_passed(rate, pass_share) for rate in (success, chance))
        return BayesAttack(success, chance, np.concatenate(guesses))


def by_rule(sanitizer: Sanitizer) -> WordMechanism:
    """What draws a sanitizer's words, where it does not draw all of them by one rule with the rule known.

    Raises MisconfiguredError where nothing is drawn, and for several mechanisms that are no tables of groups.
    """
    first, policy = sanitizer.mechanism, sanitizer.policy
    if first is None:
        raise MisconfiguredError("no word is drawn under this policy; there is nothing to attack")
    numbers = sanitizer.drawn_by
    number_V = np.array([numbers.get(policy.kind_of[word], -1) for word in policy.words], dtype=np.int64)
    if len(sanitizer.mechanisms) == 1 and (number_V == 0).all():
        return first
    parts = tuple(one for one in sanitizer.mechanisms if isinstance(one, PartitionedMechanism))
    if len(parts) == len(sanitizer.mechanisms):
        return ByRule(parts, number_V)
    if len(sanitizer.mechanisms) == 1:
        return first
    rules = ", ".join(f"{kind}={policy.rule(kind)}" for kind in numbers)
    raise MisconfiguredError(
        f"the attacks read several budgets ({rules}) of in-group mechanisms alone; {first.name} is none"
    )
