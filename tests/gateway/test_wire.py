"""Valid streams that are unusual, and what an engine does to time: pings, trickles, closed connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

from .conftest import chat_tokenizer
from .raw_engine import STREAM_HEAD, Script, ask, event, host, http_answer

ENGINES = [ChatEngine, IdsEngine, LlamaCppEngine]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def piece(text: str = "", reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason} | more]}


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
HEAD, LAST, END, DONE = (
    piece("The answer "),
    piece("is four.", "stop"),
    piece("", "stop"),
    b"data: [DONE]\n\n",
)
STREAMS = {
    "empty reasons": event(piece("The answer ", "")) + event(piece("is four.", "")) + event(END) + DONE,
    "usage without choices": event(HEAD) + event(LAST) + event({"usage": USAGE}) + DONE,
    "choices null": event(HEAD) + event(LAST) + event({"choices": None, "usage": USAGE}),
    "a delta that is null": event(HEAD) + event(piece(delta=None)) + event(LAST) + DONE,
    "no delta": event(HEAD) + event({"choices": [{"index": 0}]}) + event(LAST) + DONE,
    "lone CRs": (event(HEAD) + event(LAST) + DONE).replace(b"\n", b"\r"),
    "CRLFs": (event(HEAD) + event(LAST) + DONE).replace(b"\n", b"\r\n"),
    "two data lines": event(HEAD).replace(b'"delta"', b'\ndata: "delta"') + event(LAST) + DONE,
    "comments and fields": b": hi\n\nevent: message\nid: 1\nretry: 9\n" + event(HEAD)
    + b":\n\n" + event(LAST) + DONE,
    "a byte order mark": b"\xef\xbb\xbf" + event(HEAD) + event(LAST) + DONE,
    "no end mark": event(HEAD) + event(LAST),
    "more after the end": event(HEAD) + event(LAST) + event(piece("NOT THIS")) + DONE,
    "reasoning": event(piece(delta={"reasoning_content": "hm"})) + event(HEAD) + event(LAST),
}  # fmt: skip


@pytest.fixture
async def engines() -> AsyncIterator[Callable[..., Any]]:
    """`engines(kind, url, timeout_s)` is an engine, closed when the test ends."""
    opened: list[Any] = []

    def new(kind: Any, url: str, timeout_s: float = 20) -> Any:
        opened.append(kind(url, timeout_s=timeout_s))
        return opened[-1]

    yield new
    for engine in opened:
        await engine.close()


def gateway(engine: Any) -> Any:
    return create_gateway(GatewayConfig(), engine, chat_tokenizer())


def told(text: str) -> tuple[str, list[str], Any]:
    """(content, finish reasons, the last event) of a streamed answer."""
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    choices = [choice for one in events for choice in one.get("choices", [])]
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    return content, [c["finish_reason"] for c in choices if c["finish_reason"]], events[-1]


@pytest.mark.parametrize("cut", [1, 7, 10**6])
@pytest.mark.parametrize("name", STREAMS)
async def test_valid_streams_are_understood(engines: Any, name: str, cut: int) -> None:
    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for start in range(0, len(STREAMS[name]), cut):
            writer.write(STREAMS[name][start : start + cut])
            await asyncio.sleep(0)
        writer.close()

    async with host(script) as url:
        status, text = await ask(gateway(engines(ChatEngine, url)), CHAT | {"stream": True})
    assert status == 200
    assert told(text)[:2] == ("The answer is four.", ["stop"])
    assert text.endswith("[DONE]\n\n")


def trickle(data: bytes, step_s: float = 0.02) -> Script:
    """Sends a byte at a time, for much longer than the gateway's patience."""

    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(step_s)
        writer.close()

    return script


PINGS = b": ping\n\n" * 20 + event(piece("late", "stop"))
EMPTIES = event(piece()) * 5 + event(piece("late", "stop"))
WHOLE = {"choices": [{"index": 0, "message": {"content": "late"}, "finish_reason": "stop"}]}
TRICKLES = {
    "headers": (http_answer(json.dumps(WHOLE).encode()), False),
    "headers without end": (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50, False),
    "answers that are none": (b"HTTP/1.1 100 Continue\r\n\r\n" * 12, False),
    "a plain body": (http_answer(b" " * 400 + json.dumps(WHOLE).encode()), False),
    "comments": (STREAM_HEAD + PINGS, True),
    "empty pieces": (STREAM_HEAD + EMPTIES, True),
}


@pytest.mark.parametrize("name", TRICKLES)
async def test_pings_and_trickles_do_not_break_the_silence(engines: Any, name: str) -> None:
    data, stream = TRICKLES[name]
    async with host(trickle(data)) as url:
        status, text = await ask(gateway(engines(ChatEngine, url, timeout_s=0.5)), CHAT | {"stream": stream})
    assert (status, json.loads(text)["error"]["code"]) == (504, "engine_timeout")


async def test_slow_pieces_that_bring_something_are_waited_for(engines: Any) -> None:
    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for one in [piece(delta={"reasoning_content": "hm"}), *[piece("a")] * 4, END]:
            writer.write(event(one))
            await writer.drain()
            await asyncio.sleep(0.25)
        writer.close()

    async with host(script) as url:
        status, text = await ask(gateway(engines(ChatEngine, url, timeout_s=0.5)), CHAT | {"stream": True})
    assert (status, told(text)[0]) == (200, "aaaa")


@pytest.mark.parametrize("after", [b": ping\n\n", event(piece("more")), event(USAGE), b" "])
@pytest.mark.parametrize("kind", [ChatEngine, IdsEngine])
async def test_a_stream_is_left_soon_after_its_end(engines: Any, kind: Any, after: bytes) -> None:
    left = asyncio.Event()

    async def script(_body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = piece("a", "stop") if kind is ChatEngine else {"choices": [IDS]}
        writer.write(STREAM_HEAD + event(end))
        gone = asyncio.create_task(reader.read())
        for _ in range(200):
            writer.write(after)
            await asyncio.wait([gone], timeout=0.05)
            if gone.done():
                left.set()
                break
        writer.close()

    async with host(script) as url:
        status, text = await ask(gateway(engines(kind, url)), CHAT | {"stream": True})
        assert (status, told(text)[:2]) == (200, ("a", ["stop"]))
        await asyncio.wait_for(left.wait(), 5)


IDS = {"index": 0, "token_ids": [64], "finish_reason": "stop"}
PIECE = {"tokens": [64], "tokens_predicted": 1, "stop": True, "stop_type": "eos"}
PLAIN = {ChatEngine: WHOLE, IdsEngine: {"choices": [IDS]}, LlamaCppEngine: PIECE}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nX: y\r\n"])
@pytest.mark.parametrize("kind", ENGINES)
async def test_a_prompt_is_never_sent_again_on_a_new_connection(
    engines: Any, kind: Any, half: bytes, stream: bool
) -> None:
    seen: list[Any] = []

    async def script(body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        writer.write(half)
        writer.close()

    async with host(script) as url:
        engine = engines(kind, url)
        await engine.probe()
        await engine.close()  # no connection is kept
        status, _ = await ask(gateway(engine), CHAT | {"stream": stream})
    assert status == 502
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_kept_connection_that_was_closed_is_replaced_once(engines: Any, kind: Any) -> None:
    """A hang-up on the kept connection and on the new one after it, then one on a kept connection alone."""
    seen: list[Any] = []

    async def script(body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        seen.append(body)
        if len(seen) in (2, 3, 5):
            writer.close()
        else:
            writer.write(http_answer(json.dumps(PLAIN[kind]).encode()))

    async with host(script) as url:
        app = gateway(engines(kind, url))
        answers = [((await ask(app, CHAT))[0], len(seen)) for _ in range(4)]
    assert answers == [(200, 1), (502, 3), (200, 4), (200, 6)]
    assert seen[1] == seen[2]
    assert seen[4] == seen[5]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 3},
        {"prompt_tokens": 3, "completion_tokens": None},
        {"input_tokens": 3, "output_tokens": 1},
    ],
)
async def test_usage_of_another_dialect_does_not_spoil_the_answer(
    engines: Callable[..., Any], usage: dict[str, Any], stream: bool
) -> None:
    whole = {
        "choices": [{"index": 0, "message": {"content": "Yes."}, "finish_reason": "stop"}],
        "usage": usage,
    }
    streamed = STREAM_HEAD + event(piece("Yes.", "stop")) + event({"choices": [], "usage": usage}) + DONE

    async def script(_body: Any, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(streamed if stream else http_answer(json.dumps(whole).encode()))
        writer.close()

    async with host(script) as url:
        status, text = await ask(gateway(engines(ChatEngine, url)), CHAT | {"stream": stream})
    assert status == 200
    assert "Yes." in text
    assert "error" not in text
