"""Rows that come and go: each says what it says alone, whoever shares the batch, and whatever fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineError
from transom.serving.engines import batch as batches
from transom.serving.engines.batch import Batch, Row
from transom.serving.engines.job import Job, Step


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(tiny_llama(tmp_path_factory.mktemp("model"), architecture=request.param))


class Heard:
    """What a row emitted."""

    def __init__(self, prompt: tuple[int, ...], max_tokens: int, **more: Any) -> None:
        self.steps: list[Step | Exception] = []
        given = {"prompt_ids": prompt} | more
        self.row = Row(
            Job(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, logprobs=1, **given),
            self.steps.append,
        )

    @property
    def ids(self) -> list[int]:
        return [i for step in self.steps if isinstance(step, Step) for i in step.ids]

    @property
    def logprobs(self) -> list[float]:
        return [one.logprob for step in self.steps if isinstance(step, Step) for one in step.logprobs]

    @property
    def error(self) -> str:
        return next((str(one) for one in self.steps if isinstance(one, Exception)), "")


def run(batch: Batch) -> None:
    while batch.size:
        batch.prefill()
        batch.step()


def drawn(draw: random.Random, longest: int) -> tuple[tuple[int, ...], int]:
    return tuple(draw.choices(range(5, 390), k=draw.randint(1, longest))), draw.randint(1, 12)


def alone(found: Checkpoint, prompt: tuple[int, ...], count: int) -> tuple[list[int], list[float]]:
    """By whole passes, without any cache."""
    ids, told = list(prompt), []
    for _ in range(count):
        with torch.inference_mode():
            log_V = found.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
        ids.append(int(log_V.argmax()))
        told.append(float(log_V[ids[-1]]))
    return ids[len(prompt) :], told


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_come_and_go_say_what_they_say_alone(
    found: Checkpoint, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK", 16)  # so that prompts take parts, and some are read together
    draw, batch = random.Random(seed), Batch(found.model, frozenset())
    coming = [drawn(draw, 60 if seed % 2 else 14) for _ in range(14)]
    rows = []
    while len(rows) < len(coming) or batch.size:
        while len(rows) < len(coming) and batch.size < 5 and draw.random() < 0.5:
            rows.append(Heard(*coming[len(rows)]))
            batch.join(rows[-1].row)
        if rows and draw.random() < 0.05:
            draw.choice(rows).row.cancelled = True
        batch.prefill()
        batch.step()
    assert sum(one.row.cancelled for one in rows) < len(rows)
    for one, (prompt, count) in zip(rows, coming, strict=True):
        assert not one.error
        ids, told = alone(found, prompt, count)
        assert one.ids == ids[: len(one.ids)]
        assert len(one.ids) == count or one.row.cancelled
        np.testing.assert_allclose(one.logprobs, told[: len(one.ids)], atol=2e-4)


def test_a_long_prompt_is_read_in_parts_between_the_steps_of_others(
    found: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK", 10)
    batch, short, long = Batch(found.model, frozenset()), Heard((5, 6), 30), Heard(tuple(range(5, 100)), 2)
    batch.join(short.row)
    batch.prefill()
    batch.join(long.row)
    said = []
    while not long.steps:
        batch.prefill()
        batch.step()
        said.append(len(short.ids))
    assert said == list(range(2, 2 + len(said)))  # a step of the short one after every part
    assert len(said) == 10  # 95 tokens by 10
    run(batch)
    assert long.ids == alone(found, tuple(range(5, 100)), 2)[0]


def test_short_prompts_are_read_together(found: Checkpoint) -> None:
    calls = []
    hook = found.model.register_forward_pre_hook(
        lambda _module, _args, given: calls.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    batch, rows = Batch(found.model, frozenset()), [Heard(tuple(range(5, 9 + one)), 2) for one in range(5)]
    for one in rows:
        batch.join(one.row)
    run(batch)
    hook.remove()
    assert calls == [(5, 8), (5, 1)]


@pytest.fixture
def failing(found: Checkpoint) -> Any:
    """Have the model fail where `when` says so of its input."""
    hooks: list[Any] = []

    def fail(when: Callable[[torch.Tensor], bool], error: Exception) -> None:
        def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
            if when(given["input_ids"]):
                raise error

        hooks.append(found.model.register_forward_pre_hook(look, with_kwargs=True))

    yield fail
    for hook in hooks:
        hook.remove()


def test_a_prompt_that_fails_fails_alone(found: Checkpoint, failing: Any) -> None:
    failing(lambda ids_BT: bool((ids_BT == 333).any()), RuntimeError("a secret"))
    batch, rows = Batch(found.model, frozenset()), [Heard((5, 7 + one), 3) for one in range(4)]
    rows.insert(2, Heard((5, 333), 3))
    for one in rows:
        batch.join(one.row)
    run(batch)
    assert [bool(one.error) for one in rows] == [False, False, True, False, False]
    assert "RuntimeError" in rows[2].error
    assert "secret" not in rows[2].error
    assert all(len(one.ids) == 3 for one in rows if not one.error)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_refuses_the_row_that_came_last(
    found: Checkpoint, failing: Any, error: Exception
) -> None:
    failing(lambda ids_BT: len(ids_BT) > 3, error)
    batch = Batch(found.model, frozenset())
    prompts = [(5, 7 + one) for one in range(5)]
    rows = [Heard(prompt, 6) for prompt in prompts]
    for one in rows:
        batch.join(one.row)
        batch.prefill()
    run(batch)
    assert [bool(one.error) for one in rows] == [False, False, False, True, True]
    assert all("memory" in one.error for one in rows[3:])
    for one, prompt in zip(rows[:3], prompts, strict=False):
        assert one.ids == alone(found, prompt, 6)[0]


def test_numbers_that_are_not_finite_stay_with_their_row(found: Checkpoint) -> None:
    """Also where a later row takes the place, or a longer one lets the others begin earlier."""
    batch = Batch(found.model, frozenset())
    wide = found.model.config.hidden_size
    broken = Heard((), 9, prompt_ids=None, prompt_embeds=np.full((30, wide), np.nan, np.float32))
    kept = Heard((5, 6, 7), 40)
    for one in (kept, broken):
        batch.join(one.row)
    batch.prefill()
    batch.prefill()
    assert "finite" in broken.error
    later = [Heard((8, 9), 10), Heard(tuple(range(5, 65)), 10), Heard((11,), 10)]
    for one in later:
        batch.join(one.row)
        batch.prefill()
        batch.step()
    run(batch)
    for one in (kept, *later):
        assert not one.error
        assert one.ids == alone(found, one.row.job.prompt_ids, len(one.ids))[0]
        assert len(one.ids) == one.row.job.max_tokens


def test_a_row_that_cannot_be_drawn_fails_alone_and_a_cold_one_can(
    found: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = batches.sample

    def sample(logits_V: torch.Tensor, job: Job, generator: torch.Generator) -> int:
        if job.seed == 666:
            raise RuntimeError("nothing to draw from")
        return own(logits_V, job, generator)

    monkeypatch.setattr(batches, "sample", sample)
    batch, kept = Batch(found.model, frozenset()), Heard((5, 6, 7), 8)
    cold, greedy = Heard((8, 9), 8), Heard((8, 9), 8)
    cold.row.job = replace(cold.row.job, temperature=1e-42)
    broken = Heard((5,), 8)
    broken.row.job = replace(broken.row.job, temperature=1.0, seed=666)
    for one in (kept, cold, broken, greedy):
        batch.join(one.row)
    run(batch)
    assert broken.error
    assert not kept.error + cold.error
    assert cold.ids == greedy.ids
    assert kept.ids == alone(found, (5, 6, 7), 8)[0]


def test_memory_is_what_the_rows_need_and_goes_with_them(found: Checkpoint) -> None:
    batch = Batch(found.model, frozenset())
    cache: Any = batch._cache
    for rows in ([Heard((5, 6) * 40, 3), Heard((7,), 60)], [Heard((5,), 4) for _ in range(3)]):
        for one in rows:
            batch.join(one.row)
        while any(not one.steps for one in rows):
            batch.prefill()
        longest = max(one.row.job.prompt_tokens + one.row.job.max_tokens for one in rows)
        assert cache.layers[0].all_keys.shape[0] == len(rows)
        assert cache.layers[0].all_keys.shape[2] == longest
        run(batch)
        assert not cache.layers
        for one in rows:
            assert one.ids == alone(found, one.row.job.prompt_ids, one.row.job.max_tokens)[0]


def test_no_step_needs_more_memory(found: Checkpoint) -> None:
    """What a step writes has its place since the row joined."""
    batch, rows = Batch(found.model, frozenset()), [Heard((5, 6), 50), Heard((7,) * 9, 50)]
    for one in rows:
        batch.join(one.row)
    batch.prefill()
    cache: Any = batch._cache
    places = [layer.all_keys.data_ptr() for layer in cache.layers]
    while batch.size:
        assert [layer.all_keys.data_ptr() for layer in cache.layers] == places
        batch.step()


def test_a_closed_batch_lets_go_of_all_that_waits(found: Checkpoint) -> None:
    batch, rows = Batch(found.model, frozenset()), [Heard((5, 6), 5) for _ in range(3)]
    batch.join(rows[0].row)
    batch.prefill()
    batch.join(rows[1].row)
    batch.join(rows[2].row)
    assert {id(one) for one in batch.clear()} == {id(one.row) for one in rows}
    assert not batch.size
    assert all(not isinstance(step, EngineError) for one in rows for step in one.steps)
