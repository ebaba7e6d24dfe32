"""How alike two engines answer: agreement and divergence of next tokens, asked for as any client asks.

Each position is a prompt of its own: one token is asked for, with the log-probabilities of the k likeliest.
The divergence counts the ids that both engines name and puts everything else into one class, so it is a lower
bound of KL(plain || other), and the tighter the larger k.
Threat model: none; the text is public. Does not measure: answers of many tokens, where the first difference
decides the rest.
Source: Cover and Thomas, Elements of Information Theory, section 2.7 (classes merged lose divergence).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transom.errors import EngineGarbageError
from transom.serving.engines.base import Call, Engine
from transom.serving.gateway.obfuscated import Substitution

_BATCH = 16  # prompts a request
_LEAST = 1e-9  # what rounding leaves of a class's mass


@dataclass(frozen=True)
class Agreement:
    """Over `positions`: the share with the same likeliest token, the mean divergence in nats, and the mean
    mass that the plain engine gives to the ids counted one by one."""

    top1: float
    kl: float
    named: float
    positions: int


async def next_scores(
    engine: Engine, prompts: Sequence[Sequence[int]], k: int, substitution: Substitution | None = None
) -> list[dict[int, float]]:
    """Log-probabilities of the k likeliest next ids after each prompt, likeliest first.

    Ids are plain; a `substitution` hides them on the way. Raises EngineError.
    """
    found: list[dict[int, float]] = []
    for start in range(0, len(prompts), _BATCH):
        batch = tuple(map(tuple, prompts[start : start + _BATCH]))
        call = Call(prompts=batch, max_tokens=1, temperature=0.0, logprobs=k)
        if substitution is not None:
            call = substitution.hide_call(call)
        tops: dict[int, dict[int, float]] = {}
        async for delta in engine.generate(call):
            if delta.scores:
                delta = delta if substitution is None else substitution.reveal_delta(delta)
                ranked = sorted(delta.scores[0].top, key=lambda pair: -pair[1])
                tops[delta.index] = {int(i): logprob for i, logprob in ranked}
        if sorted(tops) != list(range(len(batch))) or not all(tops.values()):
            raise EngineGarbageError(f"the engine scored {len(tops)} of {len(batch)} prompts")
        found += [tops[i] for i in range(len(batch))]
    return found


def compare(plain: Sequence[Mapping[int, float]], other: Sequence[Mapping[int, float]]) -> Agreement:
    """Agreement of two engines' `next_scores` on the same prompts."""
    same = sum(next(iter(p)) == next(iter(q)) for p, q in zip(plain, other, strict=True))
    parts = [_divergence(p, q) for p, q in zip(plain, other, strict=True)]
    n = len(parts)
    return Agreement(same / n, sum(kl for kl, _ in parts) / n, sum(mass for _, mass in parts) / n, n)


def _divergence(p: Mapping[int, float], q: Mapping[int, float]) -> tuple[float, float]:
    """(divergence, mass of p on the ids that both name)."""
    shared = p.keys() & q.keys()
    mass_p, mass_q = (sum(math.exp(one[i]) for i in shared) for one in (p, q))
    rest_p, rest_q = max(1 - mass_p, _LEAST), max(1 - mass_q, _LEAST)
    kl = sum(math.exp(p[i]) * (p[i] - q[i]) for i in shared) + rest_p * math.log(rest_p / rest_q)
    return kl, mass_p
