"""A vLLM that writes states: what is asked, what is told, and a host that writes something else."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineGarbageError, EngineTimeoutError, MisconfiguredError, TransomError
from transom.net.listen import serve_in_thread
from transom.serving.engines.base import Call, Delta
from transom.serving.engines.vllm_states import VllmStatesEngine

from .vllm_like import VllmLike

PROMPT = (5, 9, 14, 20)


class Sums:
    """A teller: sums over the width, by layer."""

    layers, size, probe = (1, 2), 2, (3, 4, 5)

    def __init__(self, width: int) -> None:
        self.width = width
        self.checked: list[tuple[int, ...]] = []
        self.firsts: list[bool] = []

    def check(self, states_TLD: Any) -> None:
        self.checked.append(tuple(states_TLD.shape))

    def rows(self, states_SLD: Any, ids: tuple[int, ...], *, first: bool) -> np.ndarray:
        assert len(states_SLD) == len(ids)
        self.firsts.append(first)
        return states_SLD.sum(2).numpy()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(tiny_llama(tmp_path_factory.mktemp("model")))


@pytest.fixture
def like(found: Checkpoint, tmp_path: Path) -> VllmLike:
    return VllmLike(found.model, tmp_path, (1, 2))


@pytest.fixture
def teller(found: Checkpoint) -> Sums:
    return Sums(found.model.config.hidden_size)


@pytest.fixture
def url(like: VllmLike) -> Iterator[str]:
    with serve_in_thread(like.app()) as url:
        yield url


async def heard(engine: VllmStatesEngine, call: Call) -> list[Delta]:
    try:
        await engine.probe()
        return [delta async for delta in engine.generate(call)]
    finally:
        await engine.close()


def call_of(**more: Any) -> Call:
    return Call(**({"prompts": (PROMPT,), "max_tokens": 21, "temperature": 0, "features": 2} | more))


@pytest.mark.parametrize("stream", [False, True])
async def test_features_are_of_the_step_before_each_token(
    url: str, like: VllmLike, teller: Sums, found: Checkpoint, stream: bool
) -> None:
    engine = VllmStatesEngine(url, teller, like.folder)
    deltas = await heard(engine, call_of(prompts=(PROMPT, PROMPT[::-1]), n=2, stream=stream))
    assert teller.checked == [(3, 2, teller.width)]
    assert len(deltas) > 4 if stream else len(deltas) == 4
    assert teller.firsts.count(True) == 4
    for index, prompt in enumerate([PROMPT, PROMPT, PROMPT[::-1], PROMPT[::-1]]):
        own = [one for one in deltas if one.index == index]
        ids = [i for one in own for i in one.ids]
        assert len(ids) == 21
        assert [one.finish_reason for one in own] == [None] * (len(own) - 1) + ["length"]
        told_SF = np.concatenate([one.features_TF for one in own])
        with torch.no_grad():
            whole = found.model(
                input_ids=torch.tensor([[*prompt, *ids[:-1]]]), output_hidden_states=True
            ).hidden_states[1][0, len(prompt) - 1 :]
        np.testing.assert_allclose(told_SF[:, 0], whole.sum(1).numpy(), atol=1e-4)
    assert not list(like.folder.iterdir())  # states and locks are gone


async def test_a_call_without_features_is_an_ordinary_stream(url: str, like: VllmLike, teller: Sums) -> None:
    engine = VllmStatesEngine(url, teller, like.folder)
    deltas = await heard(engine, call_of(features=0))
    assert len(deltas) == 1
    assert deltas[0].features_TF is None
    assert "kv_transfer_params" not in like.asked[-1]


async def test_an_answer_ends_at_its_stop_id(url: str, like: VllmLike, teller: Sums) -> None:
    first = await heard(VllmStatesEngine(url, teller, like.folder), call_of())
    stop = first[0].ids[6]
    (ended,) = await heard(VllmStatesEngine(url, teller, like.folder), call_of(stop_ids=(stop,)))
    place = first[0].ids.index(stop)
    assert ended.ids == first[0].ids[: place + 1]
    assert ended.finish_reason == "stop"


async def test_embeddings_are_refused(url: str, like: VllmLike, teller: Sums) -> None:
    embeds = (np.zeros((3, teller.width), np.float32),)
    with pytest.raises(MisconfiguredError, match="embeddings"):
        await heard(VllmStatesEngine(url, teller, like.folder), call_of(prompts=(), embeds=embeds))


def link(file: Path, _tensors: dict[str, Any]) -> None:
    file.symlink_to("/etc/hostname")


def pipe(file: Path, _tensors: dict[str, Any]) -> None:
    os.mkfifo(file)


def large(file: Path, _tensors: dict[str, Any]) -> None:
    file.write_bytes(b"\0" * (1 << 20))


def other_tokens(_file: Path, tensors: dict[str, Any]) -> None:
    tensors["token_ids"] = tensors["token_ids"] + 1


def other_layers(_file: Path, tensors: dict[str, Any]) -> None:
    tensors["hidden_states"] = tensors["hidden_states"][:, :1].contiguous()


def not_finite(_file: Path, tensors: dict[str, Any]) -> None:
    tensors["hidden_states"][0, 0, 0] = float("nan")


def whole_numbers(_file: Path, tensors: dict[str, Any]) -> None:
    tensors["hidden_states"] = tensors["hidden_states"].long()


def unnamed(_file: Path, tensors: dict[str, Any]) -> None:
    tensors["others"] = tensors.pop("hidden_states")


def held(_file: Path, _tensors: dict[str, Any]) -> str:
    return "held"


def elsewhere(_file: Path, _tensors: dict[str, Any]) -> str:
    return "/elsewhere/../cmpl-none.safetensors"


def odd_name(_file: Path, _tensors: dict[str, Any]) -> str:
    return "states.safetensors/.."


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (link, EngineGarbageError, "cannot be read"),
        (pipe, EngineGarbageError, "cannot be read"),
        (large, EngineGarbageError, "cannot be read"),
        (other_tokens, EngineGarbageError, "other tokens"),
        (other_layers, MisconfiguredError, r"layer_ids\": \[1, 2\]"),
        (not_finite, EngineGarbageError, "not finite"),
        (whole_numbers, MisconfiguredError, "expected"),
        (unnamed, EngineGarbageError, "KeyError"),
        (held, EngineTimeoutError, "in time"),
        (elsewhere, MisconfiguredError, "wrote no states to"),
        (odd_name, MisconfiguredError, "writes no states"),
    ],
)
async def test_what_a_host_writes_instead_is_refused_and_not_left_behind(
    url: str, like: VllmLike, teller: Sums, spoil: Any, error: type[TransomError], message: str
) -> None:
    like.spoil = spoil
    with pytest.raises(error, match=message):
        await heard(VllmStatesEngine(url, teller, like.folder, timeout_s=2), call_of())
    kept = {elsewhere: 2, odd_name: 2}.get(spoil, 0)  # no name of them came
    assert len(list(like.folder.iterdir())) == kept
    assert len(like.asked) == 1  # the probe; nothing of the prompt left


async def test_an_engine_that_writes_none_is_told_how(url: str, like: VllmLike, teller: Sums) -> None:
    like.writes = False
    with pytest.raises(MisconfiguredError, match="extract_hidden_states") as caught:
        await heard(VllmStatesEngine(url, teller, like.folder), call_of())
    assert str(like.folder) in str(caught.value)
    like.writes, like.lock = True, False
    with pytest.raises(MisconfiguredError, match="disk that both see"):
        await heard(VllmStatesEngine(url, teller, like.folder), call_of())


async def test_a_client_that_leaves_leaves_no_states_behind(url: str, like: VllmLike, teller: Sums) -> None:
    engine = VllmStatesEngine(url, teller, like.folder)
    await engine.probe()
    for _ in range(3):
        deltas = engine.generate(call_of(stream=True, max_tokens=200))
        await anext(deltas)
        before, coming = len(like.asked), asyncio.ensure_future(anext(deltas))
        for _ in range(5000):  # until the host has it
            if len(like.asked) > before:
                break
            await asyncio.sleep(0.001)
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await coming
        await deltas.aclose()
    for _ in range(200):
        if not list(like.folder.iterdir()):
            break
        await asyncio.sleep(0.02)
    await engine.close()
    assert not list(like.folder.iterdir())


async def test_what_an_earlier_gateway_left_is_swept(url: str, like: VllmLike, teller: Sums) -> None:
    old, new = like.folder / "cmpl-old.safetensors", like.folder / "cmpl-new.safetensors"
    model = like.folder / "model.safetensors"  # which somebody keeps there
    for one in (old, new, model):
        one.write_bytes(b"states")
    for one in (old, model):
        os.utime(one, (1, 1))
    await heard(VllmStatesEngine(url, teller, like.folder), call_of())
    assert not old.exists()
    assert new.exists()
    assert model.exists()


async def test_a_host_cannot_have_another_file_deleted(url: str, like: VllmLike, teller: Sums) -> None:
    model = like.folder / "model.safetensors"
    model.write_bytes(b"weights")
    like.spoil = lambda _file, _tensors: str(model)
    with pytest.raises(MisconfiguredError, match="writes no states"):
        await heard(VllmStatesEngine(url, teller, like.folder), call_of())
    assert model.read_bytes() == b"weights"
