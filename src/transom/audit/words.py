"""Text and a mechanism as a case to attack, and the whole audit of one in a call.

    audit_mechanism(sanitize, ["bayes", "inversion"], texts, prior=public_texts).verdict

Threat model: that of `transom.audit.attacks.words`. The texts are the auditor's own; nothing is sent and
nothing is charged. Does not prove privacy: a low figure says that these attacks found no more.
Source: each attack's own docstring.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transom.audit.attack import choose, require_attack
from transom.audit.attacks import averaging, bayes, causal, contextual, word_inversion
from transom.audit.attacks.by_rule import by_rule
from transom.audit.attacks.word_text import Sentences, drawn, observe, own_sentences, with_kept_passed
from transom.audit.attacks.words import WordData, WordKnowledge, WordTarget, mounted, originals
from transom.audit.own import own_mechanism
from transom.errors import MisconfiguredError
from transom.privacy.policy import Policy, load_policy
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import Attack
from transom.report.report import Report
from transom.report.runner import run

ATTACKS: tuple[Attack, ...] = (
    bayes,
    word_inversion,
    word_inversion.LEARNED,
    averaging,
    contextual,
    causal,  # last: it takes what time the others leave
)


@dataclass(frozen=True)
class Case:
    """The audited text at one epsilon, as its attackers see it."""

    target: WordTarget
    knowledge: WordKnowledge
    data: WordData

    @property
    def drawn_share(self) -> float:
        """The share of tokens that are drawn."""
        return len(self.target.outputs_N) / sum(map(len, self.target.seen))


def sanitised_case(sanitizer: Sanitizer, texts: Sequence[str], own: Sentences, *, repeats: int = 0) -> Case:
    """`texts` through the sanitizer, and what an attacker with the sentences `own` knows.

    Raises MisconfiguredError when no word is drawn, or by budgets that the attacks cannot read.
    """
    return case_of(sanitizer, *observe(sanitizer, texts), own, repeats=repeats)


def case_of(
    sanitizer: Sanitizer, seen: Sentences, plain: Sentences, own: Sentences, *, repeats: int = 0
) -> Case:
    """The same of texts that were sanitised."""
    policy, mechanism = sanitizer.policy, by_rule(sanitizer)
    if not any(True for _ in drawn(seen)):
        raise MisconfiguredError("no word of the text is drawn under this policy; there is nothing to attack")
    seen = with_kept_passed(seen, mechanism)
    words_N = np.array([token.word for token in originals(seen, plain)], dtype=np.int64)
    again = [mechanism.sample(words_N) for _ in range(repeats)]
    costs = {price for one in sanitizer.mechanisms if (price := one.guarantee().epsilon) is not None}
    cost = sanitizer.word_epsilon if len(costs) == 1 else np.inf
    is_drawn_V = np.array([policy.kind_of[word] in sanitizer.drawn_by for word in policy.words])
    target, knowledge, data = mounted(
        policy.words,
        mechanism,
        seen,
        plain,
        own,
        policy.prior_V * is_drawn_V,
        epsilon=cost if np.isfinite(cost) else None,
        repeats_RN=np.stack(again) if again else None,
    )
    return Case(target, knowledge, data)


def audit_mechanism(
    mechanism: object,
    attacks: Sequence[str | Attack],
    texts: Sequence[str],
    *,
    prior: Sequence[str] = (),
    policy: Policy | None = None,
    epsilon: float | None = None,
    gate: float | None = None,
    budget_s: float = 600.0,
) -> Report:
    """What `attacks` recover of `texts` once `mechanism` has sanitised them; by name, or objects of your own.

    `mechanism` is a function of a word, an object as `WordMechanism` describes it, or the name of a built-in
    one, which takes `epsilon`. Without attacks all built-in ones run. `prior` are the attacker's own texts;
    `policy` says which words are drawn (the English one by default). Raises MisconfiguredError.
    """
    started, chosen = time.monotonic(), policy or load_policy()
    names = [one for one in attacks if isinstance(one, str)]
    own = [require_attack(one, type(one).__name__) for one in attacks if not isinstance(one, str)]
    picked = (*(choose(ATTACKS, names) if names or not own else ()), *own)
    made = own_mechanism(mechanism, chosen)
    if epsilon is not None and not isinstance(made, str):
        raise MisconfiguredError("a mechanism of your own has its own epsilon; leave out epsilon")
    sanitizer = Sanitizer(chosen, made, epsilon)
    case = sanitised_case(sanitizer, texts, own_sentences(chosen, prior))
    findings = run(picked, case.target, case.knowledge, case.data, budget_s=budget_s, progress=False)
    return Report(
        kind="words",
        target={
            "target": f"{len(texts)} texts",
            "policy": chosen.name,
            "mechanism": getattr(sanitizer.mechanism, "name", type(mechanism).__name__),
            "share of tokens drawn": round(case.drawn_share, 3),
        },
        findings=findings,
        gate=gate,
        cost_s=round(time.monotonic() - started, 3),
    )
