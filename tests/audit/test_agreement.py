"""Agreement of next tokens: against whole distributions, and what an engine that leaves prompts out gets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from transom.audit.agreement import compare, next_scores
from transom.errors import EngineGarbageError
from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.gateway.obfuscated import Substitution


def top(p_V: np.ndarray, k: int) -> dict[int, float]:
    return {int(i): float(np.log(p_V[i])) for i in np.argsort(-p_V)[:k]}


def test_divergence_is_the_whole_one_or_less() -> None:
    rng = np.random.default_rng(0)
    p_TV, q_TV = rng.dirichlet(np.full(50, 0.3), 20), rng.dirichlet(np.full(50, 0.3), 20)
    p_TV, q_TV = (0.9 * one + 0.1 / 50 for one in (p_TV, q_TV))
    kl = float((p_TV * np.log(p_TV / q_TV)).sum(axis=1).mean())
    found = {k: compare([top(p, k) for p in p_TV], [top(q, k) for q in q_TV]) for k in (10, 30, 50)}
    assert found[50].kl == pytest.approx(kl)
    assert found[50].named == pytest.approx(1)
    assert found[10].kl < found[30].kl < kl
    assert found[10].top1 == np.mean(p_TV.argmax(axis=1) == q_TV.argmax(axis=1))
    same = compare([top(p, 10) for p in p_TV], [top(p, 10) for p in p_TV])
    assert (same.top1, same.kl, same.positions) == (1.0, pytest.approx(0, abs=1e-12), 20)


async def test_ids_are_hidden_on_the_way_and_plain_in_the_answer() -> None:
    echo, tau_V = EchoEngine(), np.random.default_rng(1).permutation(64)
    with serve_in_thread(echo.app()) as url:
        client = IdsEngine(url)
        prompts = [[i, i + 1] for i in range(20)]
        scores = await next_scores(client, prompts, 1, Substitution(tau_V))
        await client.close()
    assert [next(iter(one)) for one in scores] == list(range(20))  # the echo begins with the first id
    assert json.loads(echo.seen[0])["prompt"][0] == tau_V[[0, 1]].tolist()


async def test_a_prompt_without_scores_is_garbage() -> None:
    class Silent:
        async def generate(self, call: object):  # type: ignore[no-untyped-def]
            for delta in ():
                yield delta

    with pytest.raises(EngineGarbageError, match="0 of 1"):
        await next_scores(Silent(), [[1]], 1)  # type: ignore[arg-type]
