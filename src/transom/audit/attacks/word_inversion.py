"""Inversion of words: name what lies nearest to the released word, or what most often became it.

Two published attacks. *Inversion* takes the nearest neighbour of the released word's vector: that is the word
itself, so its recovery is how often the mechanism keeps a word. *Learned inversion* sanitises public text a
hundred times and learns which original stands behind each output; a classifier whose only input is the output
can do no better than the commonest one, which is counted here exactly.

Threat model: as in `words`; neither looks at the context. Does not prove anything about attackers who do.
Source: Yue et al. 2021 (arXiv 2106.01221) and Chen et al. 2023 for the former; Tong et al., arXiv 2410.17052,
for both, with top-1 and one hundred sanitisations of the shadow text.

Legend: N drawn tokens, V vocabulary.
"""

from __future__ import annotations

import numpy as np

from transom.audit.attacks.word_text import drawn
from transom.audit.attacks.words import METRIC, WordData, WordKnowledge, WordTarget, scored
from transom.report.finding import Bound, Finding, not_run

NAME = "inversion"
LEARNED_NAME = "learned inversion"
__all__ = ["LEARNED", "METRIC", "NAME", "attack", "learned_attack"]
SANITISATIONS = 100
MOST_DRAWS = 10_000_000


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Share of words that are what they look like. `budget_s` is not used: nothing is computed."""
    return scored(NAME, target, data, [token.text for token in drawn(target.seen)])


def learned_attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Recovery by the commonest original of each output; an output never met stands for itself.

    `budget_s` is not used: the number of draws is bounded.
    """
    if not knowledge.text:
        return not_run(LEARNED_NAME, METRIC, "it needs text of the attacker's own, and got none")
    guesses, count = learned_guesses(target, knowledge)
    note = f"{count} sanitisations of the attacker's text"
    return scored(LEARNED_NAME, target, data, guesses, note=note)


def learned_guesses(target: WordTarget, knowledge: WordKnowledge) -> tuple[list[str], int]:
    """One word for each drawn token, and how many sanitisations it was learned from."""
    words_N = np.array([token.word for token in drawn(knowledge.text)], dtype=np.int64)
    count, size = max(1, min(SANITISATIONS, MOST_DRAWS // len(words_N))), len(target.channel.words)
    repeated_N = np.tile(words_N, count)
    pairs, counts = np.unique(knowledge.mechanism.sample(repeated_N) * size + repeated_N, return_counts=True)
    order = np.argsort(counts, kind="stable")  # so that the commonest original is written last
    original_V = np.arange(1 + max(int(pairs.max()) // size, *target.outputs_N.tolist())) % size
    original_V[pairs[order] // size] = pairs[order] % size
    return [target.channel.words[original_V[output]] for output in target.outputs_N], count


LEARNED = Bound(LEARNED_NAME, METRIC, learned_attack)
