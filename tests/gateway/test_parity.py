"""What is streamed equals what comes in one piece, byte by byte and score by score, for each kind of engine.

For llama.cpp see `test_llamacpp`, which asks the real server.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.net.listen import serve_in_thread
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.server import create_engine_app
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import ChatTokenizer

from .conftest import CHATML, chat_tokenizer
from .raw_engine import STREAM_HEAD, ask, event, host, http_answer

TEXTS = {
    "japanese": "こんにちは、世界。漢字とカナ",
    "chinese": "你好，世界！今天天气很好",
    "arabic": "مرحبا بالعالم، كيف الحال؟",
    "emoji": "🙂🎉 👩‍👩‍👧 🐞\ufffd🇯🇵",
}


async def both(engine: Any, tokenizer: ChatTokenizer | None, body: dict[str, Any]) -> tuple[Any, Any]:
    """(text, finish reason, scores) of the plain answer, and of the streamed one."""
    app = create_gateway(GatewayConfig(), engine, tokenizer)
    status, text = await ask(app, body)
    assert status == 200, text
    choice = json.loads(text)["choices"][0]
    plain = choice["message"]["content"], choice["finish_reason"], (choice["logprobs"] or {}).get("content")
    status, text = await ask(app, body | {"stream": True})
    assert status == 200, text
    assert text.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    scores = [entry for chunk in chunks for entry in (chunk["logprobs"] or {}).get("content", [])]
    await engine.close()
    text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
    return plain, (text, chunks[-1]["finish_reason"], scores if plain[2] is not None else None)


def asked(content: str, **options: Any) -> dict[str, Any]:
    return {"model": "transom", "messages": [{"role": "user", "content": content}], **options}


SCORED = {"logprobs": True, "top_logprobs": 2}


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5])
@pytest.mark.parametrize("language", TEXTS)
async def test_an_echo(language: str, chunk_tokens: int) -> None:
    with serve_in_thread(EchoEngine(chunk_tokens=chunk_tokens).app()) as url:
        plain, streamed = await both(IdsEngine(url), chat_tokenizer(), asked(TEXTS[language], **SCORED))
    assert plain == streamed
    assert plain[0] == "user\n" + TEXTS[language]
    assert len(plain[2]) >= len(plain[0].encode())


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ChatTokenizer]]:
    """The URL of a random model, whose answers are random bytes, and its tokenizer."""
    checkpoint = load(tiny_llama(tmp_path_factory.mktemp("tiny")))
    assert checkpoint.tokenizer is not None
    tokenizer = ChatTokenizer(checkpoint.tokenizer.tokenizer, CHATML)
    with EmbeddedEngine(checkpoint) as engine, serve_in_thread(create_engine_app(engine)) as url:
        yield url, tokenizer


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1.5, "seed": 5}], ids=str)
@pytest.mark.parametrize("language", TEXTS)
async def test_the_embedded_engine(
    embedded: tuple[str, ChatTokenizer], language: str, sampling: dict[str, Any]
) -> None:
    url, tokenizer = embedded
    body = asked(TEXTS[language], max_tokens=40, **SCORED, **sampling)
    plain, streamed = await both(IdsEngine(url), tokenizer, body)
    assert plain == streamed
    assert plain[2]


def cut(values: Any, seed: int) -> list[Any]:
    """Parts of one to four, at random."""
    rng, parts = random.Random(seed), []
    while values:
        size = rng.randint(1, 4)
        parts.append(values[:size])
        values = values[size:]
    return parts


def byte_ids() -> dict[int, int]:
    """The token of each byte that is in the texts, one id a byte."""
    text = "".join(TEXTS.values())
    return dict(zip(text.encode(), chat_tokenizer().encode_text(text).ids, strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("language", TEXTS)
async def test_an_engine_of_ids(language: str, seed: int) -> None:
    rng = random.Random(seed)
    known = byte_ids()
    noise = bytes(rng.choices(list(known), k=30 if seed < 3 else 0))  # bytes that are no text
    data = noise + TEXTS[language].encode()
    ids = [known[byte] for byte in data]
    scores = [-rng.random() for _ in ids]

    def choice(part: list[tuple[int, float]], reason: str | None) -> dict[str, Any]:
        logprobs = {
            "token_logprobs": [score for _, score in part],
            "tokens": [f"token_id:{i}" for i, _ in part],
        }
        return {"index": 0, "token_ids": [i for i, _ in part], "logprobs": logprobs, "finish_reason": reason}

    async def script(body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        scored = list(zip(ids, scores, strict=True))
        if not body["stream"]:
            writer.write(http_answer(json.dumps({"choices": [choice(scored, "length")]}).encode()))
            return
        parts = [event({"choices": [choice(part, None)]}) for part in cut(scored, seed)]
        writer.write(STREAM_HEAD + b"".join(parts) + event({"choices": [choice([], "length")]}))
        writer.close()

    async with host(script) as url:
        plain, streamed = await both(IdsEngine(url), chat_tokenizer(), asked("x", max_tokens=200, **SCORED))
    assert plain == streamed
    assert plain[0] == data.decode("utf-8", "replace")
    assert [entry["logprob"] for entry in plain[2]] == scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("language", TEXTS)
async def test_a_chat_endpoint(language: str, seed: int) -> None:
    scores = [{"token": part, "logprob": -0.25 * i} for i, part in enumerate(cut(TEXTS[language], seed))]

    def choice(part: list[dict[str, Any]], reason: str | None, name: str) -> dict[str, Any]:
        content = {"content": "".join(score["token"] for score in part)}
        return {"index": 0, name: content, "logprobs": {"content": part}, "finish_reason": reason}

    async def script(body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        if not body["stream"]:
            writer.write(http_answer(json.dumps({"choices": [choice(scores, "stop", "message")]}).encode()))
            return
        parts = [event({"choices": [choice(part, None, "delta")]}) for part in cut(scores, seed + 1)]
        data = b"".join(parts) + event({"choices": [choice([], "stop", "delta")]})
        writer.write(STREAM_HEAD)
        for part in cut(data, seed):  # also where a character of the stream is cut
            writer.write(part)
        writer.close()

    async with host(script) as url:
        plain, streamed = await both(ChatEngine(url), None, asked("x", **SCORED))
    assert plain == streamed
    assert plain[0] == TEXTS[language]
