"""Exact Bayes: name the likeliest original of every output, from the mechanism's integers and a prior.

No attacker who looks at one output at a time can do better on text that follows the prior; what this one
reaches in expectation is computed exactly from the same integers, and stands beside the measured share.

Threat model: as in `words`; the prior is the unigram frequency of the attacker's own text. Does not prove
anything about attackers who read the context (`contextual`) or several outputs of one text (`averaging`).
Source: Bayes' rule; Tong et al., arXiv 2410.17052, section 4 (optimal reconstruction without context).
"""

from __future__ import annotations

from transom.audit.attacks.words import METRIC, WordData, WordKnowledge, WordTarget, scored
from transom.report.finding import Finding
from transom.report.statistics import Floats

NAME = "bayes"
__all__ = ["METRIC", "NAME", "attack", "guesses"]


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery of the best guess a token. `budget_s` is not used: one look-up a token."""
    note = f"theoretical optimum {target.channel.optimum:.3f} on text like the prior"
    return scored(NAME, target, data, guesses(target, knowledge.prior_V), note=note)


def guesses(target: WordTarget, prior_V: Floats) -> list[str]:
    """The word of largest prior times likelihood for each drawn token."""
    best: dict[int, str] = {}
    for output in set(target.outputs_N.tolist()):
        words_K, likelihood_K = target.channel.likelihood(output)
        best[output] = target.channel.words[words_K[(prior_V[words_K] * likelihood_K).argmax()]]
    return [best[output] for output in target.outputs_N.tolist()]
