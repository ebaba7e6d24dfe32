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

import time

import numpy as np

from transom.audit.attack import Bound
from transom.audit.attacks.word_text import drawn
from transom.audit.attacks.words import METRIC, WordData, WordKnowledge, WordTarget, scored
from transom.audit.finding import Finding, not_run

NAME = "inversion"
LEARNED_NAME = "learned inversion"
__all__ = ["LEARNED", "METRIC", "NAME", "attack", "learned_attack"]
SANITISATIONS = 100
_CHUNK = 10


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Share of words that are what they look like. `budget_s` is not used: nothing is computed."""
    started = time.monotonic()
    return scored(NAME, target, data, [token.text for token in drawn(target.seen)], started=started)


def learned_attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Recovery by the commonest original of each output; an output that was never met stands for itself."""
    started = time.monotonic()
    words_N = np.array([token.word for token in drawn(knowledge.text)], dtype=np.int64)
    if not len(words_N):
        return not_run(LEARNED_NAME, METRIC, "it needs text of the attacker's own, and got none")
    size = len(target.channel.words)
    pairs: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    while len(pairs) * _CHUNK < SANITISATIONS and (not pairs or time.monotonic() < started + budget_s):
        repeated_N = np.tile(words_N, _CHUNK)
        pairs.append(knowledge.mechanism.sample(repeated_N) * size + repeated_N)
    found, counts = np.unique(np.concatenate(pairs), return_counts=True)
    order = np.argsort(counts, kind="stable")  # so that the commonest original is written last
    original_V = np.arange(size)
    original_V[found[order] // size] = found[order] % size
    guesses = [target.channel.words[original_V[output]] for output in target.outputs_N]
    note = f"{len(pairs) * _CHUNK} sanitisations of the attacker's text"
    return scored(LEARNED_NAME, target, data, guesses, started=started, note=note)


LEARNED = Bound(LEARNED_NAME, METRIC, learned_attack)
