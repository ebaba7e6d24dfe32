"""The embedded engine: answers are the model's own, whoever shares the batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import EngineDownError, EngineError, MisconfiguredError, NotYetError
from transom.net.listen import serve_in_thread
from transom.serving.engines.batch import sample
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job, Step
from transom.serving.engines.server import create_engine_app

PROMPTS = [(5, 6, 7), (300,), tuple(range(20, 60)), (9, 8), (100, 200, 300, 100), (42,) * 12]


@pytest.fixture(scope="module")
def engine(tiny: Checkpoint) -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(tiny, max_batch=3) as running:
        yield running


async def ids_of(engine: EmbeddedEngine, prompt: Any, **options: Any) -> tuple[int, ...]:
    content = {"prompt_ids": prompt} if isinstance(prompt, tuple) else {"prompt_embeds": prompt}
    options = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | options
    return tuple([i async for step in engine.generate(Job(**content, **options)) for i in step.ids])


def reference(checkpoint: Checkpoint, prompt: tuple[int, ...], max_tokens: int = 12) -> tuple[int, ...]:
    """Greedy decoding without a cache, a batch or a mask."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(max_tokens):
            ids.append(int(checkpoint.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": 6}),
        ("Qwen2", {}),
        ("Qwen3", {"tie_word_embeddings": True}),
    ],
)
async def test_concurrent_answers_of_equal_plain_decoding(
    tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    checkpoint = load(tiny_llama(tmp_path, architecture=architecture, **options))
    with EmbeddedEngine(checkpoint, max_batch=3) as engine:
        together = await asyncio.gather(
            *[ids_of(engine, p, max_tokens=4 + 3 * (i % 4)) for i, p in enumerate(PROMPTS)]
        )
    for i, (prompt, answer) in enumerate(zip(PROMPTS, together, strict=True)):
        assert answer == reference(checkpoint, prompt, 4 + 3 * (i % 4))


async def test_answers_depend_on_their_prompts(engine: EmbeddedEngine) -> None:
    answers = await asyncio.gather(*[ids_of(engine, prompt) for prompt in PROMPTS])
    assert len(set(answers)) > len(PROMPTS) // 2


async def test_embeddings_in_equal_ids_in(engine: EmbeddedEngine, tiny: Checkpoint) -> None:
    for prompt in PROMPTS[:3]:
        embeds_TD = tiny.model.get_input_embeddings()(torch.tensor(prompt)).numpy()
        assert await ids_of(engine, embeds_TD) == await ids_of(engine, prompt)


async def test_a_seed_fixes_the_sample_also_in_company(engine: EmbeddedEngine) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 7}
    alone = await ids_of(engine, PROMPTS[0], **options)
    first, *_rest = await asyncio.gather(
        ids_of(engine, PROMPTS[0], **options), *[ids_of(engine, p, temperature=1.0) for p in PROMPTS[1:]]
    )
    assert first == alone
    assert await ids_of(engine, PROMPTS[0], **options | {"seed": 8}) != alone
    assert await ids_of(engine, PROMPTS[0], temperature=1.0) != await ids_of(
        engine, PROMPTS[0], temperature=1.0
    )


def test_samples_follow_temperature_and_top_p() -> None:
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(1)
    job = Job(max_tokens=1, prompt_ids=(0,), temperature=0.5, top_p=0.95)
    draws = np.bincount([sample(logits_V, job, generator) for _ in range(4000)], minlength=4)
    weights = np.exp(np.array([2.0, 1.0, 0.0, -1.0]) / 0.5)
    assert weights[:1].sum() / weights.sum() < 0.95 < weights[:2].sum() / weights.sum()  # so two ids remain
    expected = 4000 * weights[:2] / weights[:2].sum()
    assert draws[2:].sum() == 0
    assert ((draws[:2] - expected) ** 2 / expected).sum() < 15.1  # chi-square, 1 degree: p = 0.0001


async def test_stop_ids_and_end_of_text_end_the_answer(engine: EmbeddedEngine, tiny: Checkpoint) -> None:
    whole = reference(tiny, PROMPTS[0])
    stop = whole[3]
    stops = frozenset({stop})
    job = Job(max_tokens=12, prompt_ids=PROMPTS[0], temperature=0.0, stop_ids=stops, ignore_eos=True)
    steps = [step async for step in engine.generate(job)]
    assert tuple(i for s in steps for i in s.ids) == whole[: whole.index(stop) + 1]
    assert [s.finish_reason for s in steps][-1] == "stop"
    assert all(s.finish_reason is None for s in steps[:-1])


async def test_logprobs_are_the_models(engine: EmbeddedEngine, tiny: Checkpoint) -> None:
    job = Job(max_tokens=1, prompt_ids=PROMPTS[2], temperature=0.0, logprobs=3)
    (step,) = [step async for step in engine.generate(job)]
    expected_V = torch.log_softmax(tiny.model(torch.tensor([PROMPTS[2]])).logits[0, -1], -1)
    values, ids = expected_V.topk(3)
    assert [i for i, _ in step.logprobs[0].top] == ids.tolist()
    assert [v for _, v in step.logprobs[0].top] == pytest.approx(values.tolist(), abs=1e-4)
    assert step.logprobs[0].logprob == pytest.approx(values[0].item(), abs=1e-4)


async def test_closing_a_generator_frees_its_place(tiny: Checkpoint) -> None:
    with EmbeddedEngine(tiny, max_batch=1) as engine:
        async with aclosing(engine.generate(Job(max_tokens=200, prompt_ids=(1,), ignore_eos=True))) as steps:
            await anext(steps)
        assert await asyncio.wait_for(ids_of(engine, PROMPTS[0]), 20) == reference(tiny, PROMPTS[0])


async def test_closing_the_engine_fails_what_runs_and_what_waits(tiny: Checkpoint) -> None:
    engine = EmbeddedEngine(tiny, max_batch=1)
    streams = [engine.generate(Job(max_tokens=250, prompt_ids=(i,), ignore_eos=True)) for i in (1, 2)]
    tasks = [asyncio.create_task(_drain(stream)) for stream in streams]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], EngineDownError)
    with pytest.raises(EngineDownError):
        await ids_of(engine, (1,))


async def _drain(steps: AsyncGenerator[Step, None]) -> list[Step]:
    return [step async for step in steps]


async def test_one_failing_job_leaves_the_others_alone(engine: EmbeddedEngine, tiny: Checkpoint) -> None:
    broken = np.full(
        (3, 32), np.nan, np.float32
    )  # the server refuses these; the engine must survive them too
    good, bad = await asyncio.gather(
        ids_of(engine, PROMPTS[0]), ids_of(engine, broken), return_exceptions=True
    )
    assert good == reference(tiny, PROMPTS[0])
    assert isinstance(bad, EngineError)


def test_it_serves_text_ids_and_usage_over_http(engine: EmbeddedEngine, tiny: Checkpoint, post: Any) -> None:
    assert tiny.tokenizer is not None
    fields = {
        "model": engine.model,
        "prompt": "The quick",
        "temperature": 0,
        "max_tokens": 6,
        "ignore_eos": True,
    }
    with serve_in_thread(create_engine_app(engine)) as url:
        status, raw = post(url, fields | {"return_token_ids": True})
        too_long = post(url, fields | {"max_tokens": 256})
    answer = json.loads(raw)
    ids = tiny.tokenizer.tokenizer.encode("The quick").ids
    assert status == 200
    assert tuple(answer["choices"][0]["token_ids"]) == reference(tiny, tuple(ids), 6)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert (too_long[0], json.loads(too_long[1])["error"]["code"]) == (400, "context_length_exceeded")


def test_what_it_cannot_serve_is_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    with pytest.raises(NotYetError):
        EmbeddedEngine(load(tiny_bert(tmp_path)))
    with pytest.raises(MisconfiguredError):
        EmbeddedEngine(tiny, max_batch=0)
