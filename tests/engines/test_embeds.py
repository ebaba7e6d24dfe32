"""Embeddings in the place of ids: the same answer, on a real engine over pinned TLS, or a clear refusal."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_safetensors

from transom.checkpoint.load import Checkpoint
from transom.errors import EngineError, MisconfiguredError, MissingExtraError
from transom.net.listen import serve_in_thread
from transom.serving.engines.base import Call
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.embeds import as_safetensors, as_torch_save
from transom.serving.engines.http import Pinned
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.engines.server import create_engine_app

from .tls_fixtures import background, engine, make_key

PROMPTS = ((5, 6, 7), (300, 2), tuple(range(20, 60)))


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_key(tmp_path_factory.mktemp("key"))


@asynccontextmanager
async def echoing(**options: Any) -> AsyncIterator[tuple[EchoEngine, IdsEngine]]:
    echo = EchoEngine(**options)
    async with background(serve_in_thread(echo.app())) as url:
        client = IdsEngine(url)
        yield echo, client
        await client.close()


def rows(tiny: Checkpoint, prompt: tuple[int, ...]) -> np.ndarray:
    table_VD: Any = tiny.model.get_input_embeddings().weight.detach().float().numpy()  # type: ignore[operator]
    return table_VD[list(prompt)]


async def answers(client: IdsEngine, call: Call) -> dict[int, tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}
    async for delta in client.generate(call):
        found[delta.index] = found.get(delta.index, ()) + delta.ids
    return found


@pytest.mark.parametrize("stream", [False, True])
async def test_embeddings_in_equal_ids_in(tiny: Checkpoint, key: Any, stream: bool) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0, "stream": stream, "n": 2}
    with EmbeddedEngine(tiny, max_batch=4) as running:
        async with engine(key, app=create_engine_app(running)) as served:
            client = IdsEngine(served.url, guard=Pinned(key.pin))
            by_ids = await answers(client, Call(prompts=PROMPTS, **options))
            by_rows = await answers(client, Call(embeds=tuple(rows(tiny, p) for p in PROMPTS), **options))
            one = await answers(client, Call(embeds=(rows(tiny, PROMPTS[2]),), **options | {"n": 1}))
            await client.close()
    assert by_rows == by_ids
    assert len(set(by_ids.values())) == len(PROMPTS)  # else any answer would do
    assert one == {0: by_ids[4]}


async def test_the_card_tells_the_width(tiny: Checkpoint) -> None:
    with EmbeddedEngine(tiny) as running:
        async with background(serve_in_thread(create_engine_app(running))) as url:
            client = IdsEngine(url)
            assert (await client.probe()).width == tiny.model.config.hidden_size
            await client.close()
    async with echoing() as (_, client):
        assert (await client.probe()).width is None


async def test_another_width_is_refused_before_anything_is_sent() -> None:
    async with echoing(embedding_size=8) as (echo, client):
        call = Call(embeds=(np.ones((3, 8), np.float32), np.ones((3, 4), np.float32)), max_tokens=2)
        with pytest.raises(MisconfiguredError, match="width 4, the engine's model 8"):
            await answers(client, call)
        assert echo.seen == []


async def test_an_engine_that_takes_none_refuses() -> None:
    async with echoing() as (_, client):
        with pytest.raises(EngineError, match="embeddings"):
            await answers(client, Call(embeds=(np.ones((3, 4), np.float32),), max_tokens=2))


async def test_what_is_sent_are_the_rows_and_nothing_of_the_table_around_them() -> None:
    table_VD = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    view_TD = table_VD[10:13]
    async with echoing(embedding_size=4) as (echo, client):
        await answers(client, Call(embeds=(view_TD,), max_tokens=2))
    body = json.loads(echo.seen[0])
    sent = base64.b64decode(body["prompt_embeds"])
    assert "prompt" not in body
    assert np.array_equal(load_safetensors(sent)["prompt_embeds"], view_TD)
    saved = base64.b64decode(as_torch_save(view_TD))
    for data in (sent, saved):
        assert view_TD.tobytes() in data
        assert not any(table_VD[i].tobytes() in data for i in range(50) if not 10 <= i < 13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_both_forms_carry_float32(dtype: Any) -> None:
    values_TD = np.arange(12).reshape(3, 4).astype(dtype)[:, ::2]
    plain = load_safetensors(base64.b64decode(as_safetensors(values_TD)))["prompt_embeds"]
    saved = torch.load(
        io.BytesIO(base64.b64decode(as_torch_save(values_TD))), weights_only=True
    )  # as vLLM does
    assert plain.dtype == np.float32
    assert saved.dtype == torch.float32
    assert np.array_equal(plain, values_TD)
    assert np.array_equal(saved.numpy(), values_TD)


def test_without_torch_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtraError, match="models"):
        as_torch_save(np.ones((1, 2), np.float32))


@pytest.mark.parametrize("encoded", [[], [[]], [5], ["AAAA", None], "", [""]])
async def test_lists_of_no_embeddings_are_refused(encoded: Any, post: Any) -> None:
    with serve_in_thread(EchoEngine(embedding_size=4).app()) as url:
        status, raw = post(url, {"model": "echo", "prompt_embeds": encoded, "max_tokens": 2})
    assert (status, json.loads(raw)["error"]["param"]) == (400, "prompt_embeds")


def test_who_takes_embeddings() -> None:
    url = "http://127.0.0.1:1"
    found = {
        type(one).__name__: one.takes_embeds for one in (IdsEngine(url), ChatEngine(url), LlamaCppEngine(url))
    }
    assert found == {"IdsEngine": True, "ChatEngine": False, "LlamaCppEngine": False}


def test_a_call_never_shows_its_embeddings() -> None:
    call = Call(embeds=(np.full((1, 2), 0.8125, np.float32),), max_tokens=1)
    assert "8125" not in repr(call)
