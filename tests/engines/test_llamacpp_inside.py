"""llama.cpp in this process: what it answers, against torch and against its own server; its limits."""

from __future__ import annotations

import asyncio
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.llamacpp import LlamaCpp

from transom.checkpoint.source import find, packaged_smollm2
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineDownError, MisconfiguredError, RefusedError
from transom.serving.engines.backends import open_engine
from transom.serving.engines.job import Job, Step
from transom.serving.engines.llamacpp_inside import LlamaCppGenerator

SMILE = "Repeat after me: 🙂🙃🙂🙃🙂🙃"  # of which each takes several tokens


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppGenerator]:
    with LlamaCppGenerator(find("smollm2"), max_batch=3, context_tokens=512, threads=1) as engine:
        yield engine


def encoded(engine: Any, text: str) -> tuple[int, ...]:
    return tuple(engine.tokenizer.encode(text).ids)


async def said(engine: Any, prompt: tuple[int, ...], count: int = 12, **more: Any) -> list[Step]:
    job = Job(prompt_ids=prompt, max_tokens=count, **({"temperature": 0.0} | more))
    return [step async for step in engine.generate(job)]


def ids_of(steps: list[Step]) -> list[int]:
    return [i for step in steps for i in step.ids]


async def test_answers_are_those_of_llama_cpp_s_own_server(engine: LlamaCppGenerator) -> None:
    oracle = LlamaCpp(512)
    try:
        for text in ("The capital of France is", "1, 2, 3, 4,", SMILE):
            prompt = encoded(engine, text)
            body = {"prompt": prompt, "n_predict": 24, "temperature": 0, "return_tokens": True,
                    "cache_prompt": False}  # fmt: skip
            answer = oracle.ask(packaged_smollm2(), "/completion", body)
            got = await said(engine, prompt, 24)
            assert ids_of(got) == answer["tokens"]
            assert [one.finish_reason for one in got[:-1]] == [None] * (len(got) - 1)
            assert got[-1].finish_reason == ("length" if answer["stop_type"] == "limit" else "stop")
    finally:
        oracle.close()


async def test_begins_as_torch_does_and_scores_alike(engine: LlamaCppGenerator) -> None:
    prompt = encoded(engine, "The capital of France is")
    own = await said(engine, prompt, 5, logprobs=3)
    with open_engine("smollm2", backend="torch", context_tokens=512) as torch_engine:
        theirs = await said(torch_engine, prompt, 5, logprobs=3)
    assert ids_of(own) == ids_of(theirs)
    scores = [[one.logprob for step in steps for one in step.logprobs] for steps in (own, theirs)]
    np.testing.assert_allclose(*scores, atol=0.3)  # its products are rounded
    assert all(len(one.top) == 3 for step in own for one in step.logprobs)


async def test_an_answer_does_not_depend_on_its_neighbours(engine: LlamaCppGenerator) -> None:
    prompts = [encoded(engine, text) for text in ("The sky is", "Dogs are", "My name is", "Snow is", SMILE)]
    alone = [ids_of(await said(engine, prompt, 10)) for prompt in prompts]
    together = await asyncio.gather(*(said(engine, prompt, 10) for prompt in prompts))  # three at once
    assert list(map(ids_of, together)) == alone


async def test_a_seed_repeats_and_stop_ids_end(engine: LlamaCppGenerator) -> None:
    prompt = encoded(engine, "Once upon a time")
    draws = [ids_of(await said(engine, prompt, 20, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    greedy = ids_of(await said(engine, prompt, 20))
    stopped = await said(engine, prompt, 20, stop_ids=frozenset({greedy[7]}))
    assert ids_of(stopped) == greedy[: greedy.index(greedy[7]) + 1]
    assert stopped[-1].finish_reason == "stop"


async def test_an_answer_ends_where_the_model_ends_it(engine: LlamaCppGenerator) -> None:
    chat = "<|im_start|>user\nSay yes.<|im_end|>\n<|im_start|>assistant\n"
    steps = await said(engine, encoded(engine, chat), 200)
    assert steps[-1].finish_reason == "stop"
    assert steps[-1].ids[-1] == engine.tokenizer.token_to_id("<|im_end|>")  # type: ignore[union-attr]


async def test_a_client_that_leaves_frees_its_slot(engine: LlamaCppGenerator) -> None:
    prompt = encoded(engine, "Once upon a time")
    for _ in range(7):  # more often than there are slots
        steps = engine.generate(Job(prompt_ids=prompt, max_tokens=400, temperature=0.0, ignore_eos=True))
        await anext(steps)
        await steps.aclose()
    assert len(ids_of(await said(engine, prompt, 3))) == 3


async def test_what_is_larger_than_its_budget_is_refused() -> None:
    with LlamaCppGenerator(find("smollm2"), max_batch=2, cache_tokens=64, threads=1) as engine:
        assert engine.context_tokens == 32
        with pytest.raises(RefusedError, match="budget of 32"):
            await said(engine, (5,) * 30, 5)
        together = await asyncio.gather(
            *(said(engine, (504, 3575), 30, ignore_eos=True) for _ in range(3))
        )  # one by one
        assert [len(ids_of(one)) for one in together] == [30] * 3
    with pytest.raises(EngineDownError):
        await said(engine, (5,), 1)


async def test_an_engine_that_is_closed_ends_what_runs_and_what_waits() -> None:
    engine = LlamaCppGenerator(find("smollm2"), max_batch=1, context_tokens=512, threads=1)
    jobs = [asyncio.create_task(said(engine, (504, 3575), 400, ignore_eos=True)) for _ in range(3)]
    await asyncio.sleep(0.3)
    await asyncio.wait_for(asyncio.to_thread(engine.close), 30)
    for one in await asyncio.gather(*jobs, return_exceptions=True):
        assert isinstance(one, EngineDownError)


def test_a_context_that_was_asked_for_is_given_or_refused() -> None:
    with LlamaCppGenerator(find("smollm2"), max_batch=1, threads=1) as engine:
        assert engine.context_tokens == 8192
    with LlamaCppGenerator(find("smollm2"), max_batch=2, context_tokens=6000, threads=1) as engine:
        assert engine.context_tokens == 6000
    with pytest.raises(MisconfiguredError, match="--cache-tokens 6000 are 3000"):
        LlamaCppGenerator(find("smollm2"), max_batch=2, context_tokens=6000, cache_tokens=6000)


def test_its_port_is_closed_to_all_without_the_key(engine: LlamaCppGenerator) -> None:
    address = urlsplit(engine._url)
    assert address.hostname == "127.0.0.1"
    for path in ("/v1/models", "/slots", "/props", "/metrics", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status in (200, 401, 403, 404, 501)
        assert answer.status != 200 or (path == "/v1/models" and b"prompt" not in body)
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
    connection.request("POST", "/completion", '{"prompt": "x", "n_predict": 1}')
    assert connection.getresponse().status == 401
    connection.close()


def test_auto_takes_llama_cpp_where_it_can(tmp_path: Path) -> None:
    with open_engine("smollm2", context_tokens=64) as engine:
        assert engine.backend == "llamacpp"
    folder = tiny_llama(tmp_path)
    with open_engine(str(folder)) as engine:
        assert engine.backend == "torch"
    with open_engine("smollm2", dtype="float32", context_tokens=64) as engine:
        assert engine.backend == "torch"


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"dtype": "bfloat16"}, "--dtype"), ({"device": "cuda"}, "not on cuda"), ({"watch": len}, "detector")],
)
def test_llama_cpp_says_by_name_what_it_cannot(more: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=reason):
        open_engine("smollm2", backend="llamacpp", **more)
    with pytest.raises(MisconfiguredError, match="safetensors"):
        open_engine(str(tiny_llama(tmp_path)), backend="llamacpp")


def test_a_file_that_llama_cpp_does_not_load_is_refused(tmp_path: Path) -> None:
    whole = packaged_smollm2().read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MisconfiguredError):
        open_engine(str(broken), backend="llamacpp")


@pytest.mark.parametrize(
    ("own", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_compute_threads_wait_briefly_for_each_other(own: dict[str, str], spins: str) -> None:
    """As libgomp itself says when it is loaded; the environment stays as it was."""
    code = (
        "import os; before = dict(os.environ); from transom.serving.engines.llamacpp_inside import library; "
    )
    code += "library(); assert before == dict(os.environ)"
    told = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT",)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=told | {"OMP_DISPLAY_ENV": "verbose"} | own, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
