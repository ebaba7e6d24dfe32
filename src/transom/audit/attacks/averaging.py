"""Repeated queries: the same text sanitised again and again, and the product of what all outputs say.

Every draw costs its epsilon again; this attack shows what that sum means.

Threat model: as in `words`; in addition the host sees several independent sanitisations of one text and knows
that they are. A memo (`transom.privacy.memo`) keeps a session from sending them. Does not prove anything
about attackers who read the context too.
Source: Bayes' rule over independent observations; sequential composition, Dwork and Roth 2014, theorem 3.16.

Legend: N drawn tokens, R observations, K candidates.
"""

from __future__ import annotations

import numpy as np

from transom.audit.attacks.words import METRIC, Channel, WordData, WordKnowledge, WordTarget, right, scored
from transom.report.finding import Finding, not_run
from transom.report.statistics import Floats, Ints

NAME = "averaging"
__all__ = ["METRIC", "NAME", "attack"]
_STEPS = (1, 2, 3, 5, 10, 20, 50, 100)
_UNKNOWN = 1e-3  # of the smallest likelihood known, for a candidate that a column leaves out


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery from the target and its repeats together; "not run" where there are none."""
    if not len(target.repeats_RN):
        return not_run(NAME, METRIC, "each text was sent once; it needs several outputs (--repeats)")
    outputs_RN = np.vstack([target.outputs_N, target.repeats_RN])
    counts = [count for count in _STEPS if count < len(outputs_RN)] + [len(outputs_RN)]
    guesses: dict[int, list[str]] = {count: [] for count in counts}
    for outputs_R in outputs_RN.T.tolist():
        words_K, logs_RK = _evidence(target.channel, outputs_R)
        scores_RK = np.log(knowledge.prior_V[words_K]) + np.cumsum(logs_RK, axis=0)
        for count in counts:
            guesses[count].append(target.channel.words[words_K[scores_RK[count - 1].argmax()]])
    shares = ", ".join(f"{right(target, data, guesses[count]).mean():.3f}" for count in counts)
    note = f"{shares} after {', '.join(map(str, counts))} observations"
    if target.epsilon is not None:
        note += f", each for epsilon {target.epsilon:g}: {counts[-1] * target.epsilon:g} in all"
    return scored(NAME, target, data, guesses[counts[-1]], note=note)


def _evidence(channel: Channel, outputs_R: list[int]) -> tuple[Ints, Floats]:
    """All candidates [K] of the outputs, and log P(output | candidate) [R, K]."""
    columns = {output: channel.likelihood(output) for output in set(outputs_R)}
    words_K = np.unique(np.concatenate([words for words, _ in columns.values()]))
    logs = {}
    for output, (words, likelihood) in columns.items():
        log_K = np.full(len(words_K), np.log(max(likelihood.min(), 1e-300) * _UNKNOWN))
        log_K[np.searchsorted(words_K, words)] = np.log(np.maximum(likelihood, 1e-300))
        logs[output] = log_K
    return words_K, np.array([logs[output] for output in outputs_R])
