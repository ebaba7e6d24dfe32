"""TFMA: match ids to tokens by how often they occur.

A fixed permutation of ids keeps every count. The attacker sorts observed ids by count and plain tokens by
their frequency in a prior, and guesses for the r-th id the tokens around rank r.

Threat model: the host sees every id; three priors say what text it owns (see `traffic.Prior`).
Does not protect anything. It ignores order, which `sda` uses.
Source: AloePri, arXiv 2603.01499, token-frequency matching.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from transom.audit.attacks.traffic import Prior, Texts, Traffic, by_frequency, flat
from transom.report.finding import Finding, clustered, share
from transom.report.statistics import Bools, Ints

Over = Literal["tokens", "types"]
TOP = (1, 10, 100)


def ranks(target: Traffic, knowledge: Prior) -> tuple[Ints, Ints]:
    """(rank by observed id [V], rank by plain id [V]); known pairs share the rank of the observed id."""
    seen_V = np.argsort(by_frequency(target.texts, target.vocabulary)[0])
    order = by_frequency(knowledge.texts, target.vocabulary)[0]
    order = order[~np.isin(order, list(knowledge.known.values()))]
    for observed, plain in sorted(knowledge.known.items(), key=lambda pair: seen_V[pair[0]]):
        order = np.insert(order, min(seen_V[observed], len(order)), plain)
    return seen_V, np.argsort(order)


def findings(target: Traffic, knowledge: Prior, data: Texts, budget_s: float) -> tuple[Finding, ...]:
    """Top-1, top-10 and top-100 recovery over tokens and over types; `data` are the plain texts.

    `budget_s` is not used: the attack sorts two lists.
    """
    return tuple(
        attack(target, knowledge, data, budget_s, top=top, over=over)
        for over in ("tokens", "types")
        for top in TOP
    )


def attack(
    target: Traffic, knowledge: Prior, data: Texts, budget_s: float, *, top: int = 1, over: Over = "tokens"
) -> Finding:
    """Share of tokens (or types) whose plain token is among the `top` guesses nearest in rank."""
    seen_V, plain_V = ranks(target, knowledge)
    observed, plain = cases(target, data, over)
    first = np.clip(seen_V[observed] - top // 2, 0, max(0, target.vocabulary - top))
    hit = (plain_V[plain] >= first) & (plain_V[plain] < first + top)
    below = np.append(0, np.cumsum(np.bincount(plain_V[plain], minlength=target.vocabulary)))
    chance = (below[np.minimum(first + top, target.vocabulary)] - below[first]).mean() / len(plain)
    return scored(f"tfma/{knowledge.level}", f"top-{top} recovery of {over}", target, hit, chance, over)


def token_finding(name: str, target: Traffic, data: Texts, guess_V: Ints, over: Over) -> Finding:
    """Share of tokens (or types) that `guess_V`, plain id by observed id, gets right."""
    observed, plain = cases(target, data, over)
    guess = guess_V[observed]
    dealt = np.where(guess >= 0, np.bincount(plain, minlength=target.vocabulary)[guess], 0)
    chance = dealt.mean() / len(plain)
    return scored(name, f"recovery of {over}", target, guess == plain, chance, over)


def cases(target: Traffic, data: Texts, over: Over) -> tuple[Ints, Ints]:
    """Pairs (observed id, plain id): one a token, or each distinct pair once."""
    observed, plain = flat(target.texts), flat(data)
    if over == "tokens":
        return observed, plain
    pairs = np.unique(observed * target.vocabulary + plain)
    return pairs // target.vocabulary, pairs % target.vocabulary


def scored(name: str, metric: str, target: Traffic, hit: Bools, chance: float, over: Over) -> Finding:
    """The finding of one guess; its interval is of what this guess reads, not of what other traffic gives."""
    note = f"{len(target.texts)} texts; the baseline deals the same guesses out at random"
    if over == "types":
        return share(name, metric, hits=int(hit.sum()), n=len(hit), baseline=float(chance), note=note)
    sizes = [len(text) for text in target.texts]
    return clustered(name, metric, hit, sizes, baseline=float(chance), note=note)
