"""Whatever an engine answers: a sound answer, or a 502 that quotes nothing; memory bounded, others served."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import math
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from transom.errors import EngineGarbageError
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Delta
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.answer import ANSWER_CHARS, Choice
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

from .conftest import chat_tokenizer
from .raw_engine import STREAM_HEAD, ask, event, host, http_answer

SECRET = "ENGINE-SAID-THIS"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "logprobs": True,
        "top_logprobs": 1}  # fmt: skip

SCORES = {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
ID_SCORES = {"token_logprobs": [-0.5], "tokens": ["token_id:64"], "top_logprobs": [{"token_id:64": -0.5}]}
PROBABILITY = {"id": 64, "logprob": -0.5, "top_logprobs": [{"id": 64, "logprob": -0.5}]}
ENDED = {"index": 0, "finish_reason": "stop"}
PLAIN = {
    ChatEngine: {"choices": [ENDED | {"message": {"content": "a"}, "logprobs": SCORES}], "usage": USAGE},
    IdsEngine: {"choices": [ENDED | {"token_ids": [64], "logprobs": ID_SCORES}]},
    LlamaCppEngine: {"tokens": [64], "tokens_predicted": 1, "stop": True, "stop_type": "eos",
                     "completion_probabilities": [PROBABILITY]},
}  # fmt: skip
STREAMED = {
    ChatEngine: {"choices": [ENDED | {"delta": {"content": "a"}, "logprobs": SCORES}], "usage": USAGE},
    IdsEngine: PLAIN[IdsEngine],
}
DIALECTS = [(kind, False) for kind in PLAIN] + [(kind, True) for kind in STREAMED]
GONE = object()
MARKS = {"<digits>": "9" * 5000, "<nan>": "NaN", "<inf>": "-Infinity", "<exp>": "-1e999"}
HOSTILE = [
    GONE, None, True, "", SECRET, -1, 0.5, 10**400, -(10**400), 2**31, [], {}, [[]], [SECRET], {"a": SECRET},
    {SECRET: 1}, [[[[]]]], "\ud800", *MARKS,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside, the whole included."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def mutated(value: Any) -> Iterator[bytes]:
    """The answer with every place replaced by every hostile value, or gone, or doubled."""
    for path in places(value):
        for wrong in HOSTILE:
            whole = [copy.deepcopy(value)]
            at: Any = whole
            *way, last = (0, *path)
            for key in way:
                at = at[key]
            if wrong is GONE:
                del at[last]
            else:
                at[last] = wrong
            text = json.dumps(whole[0] if whole else None)
            for mark, raw in MARKS.items():
                text = text.replace(json.dumps(mark), raw)
            yield text.encode()


@pytest.fixture
async def gateways() -> AsyncIterator[Callable[..., Any]]:
    """`gateways(kind, url)` is a gateway before that engine."""
    engines: list[Any] = []

    def new(kind: Any, url: str, timeout_s: float = 20) -> Any:
        engines.append(kind(url, timeout_s=timeout_s))
        return create_gateway(GatewayConfig(), engines[-1], chat_tokenizer())

    yield new
    for engine in engines:
        await engine.close()


def refuse(name: str) -> Any:
    raise ValueError(name)


def check_outcome(status: int, text: str, stream: bool) -> bool:
    """Whether it is an answer; asserts that it is a sound one, or an error that quotes nothing."""
    assert status in (200, 502, 504), text[:200]
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line] if stream else [text]
    if status == 200 and stream and lines[-1] == "[DONE]":
        lines.pop()
    values = [json.loads(line, parse_constant=refuse) for line in lines]
    if "error" in values[-1]:
        assert SECRET not in json.dumps(values[-1])
        assert values[-1]["error"]["code"] in (
            "engine_garbage",
            "engine_down",
            "engine_error",
            "engine_timeout",
        )
        assert not text.endswith("[DONE]\n\n")
        return False
    choices = [choice for value in values for choice in value["choices"]]
    assert choices[-1]["finish_reason"] in ("stop", "length", "content_filter")
    for entry in (one for choice in choices for one in (choice["logprobs"] or {}).get("content", [])):
        assert math.isfinite(entry["logprob"])
        assert entry["logprob"] <= 0
    return True


@pytest.mark.parametrize(("kind", "stream"), DIALECTS)
async def test_no_wrong_value_anywhere_breaks_more_than_its_request(
    gateways: Callable[..., Any], kind: Any, stream: bool
) -> None:
    good = (STREAMED if stream else PLAIN)[kind]
    answers = [json.dumps(good).encode(), *mutated(good), json.dumps(good).encode()]
    turn = iter(answers)
    current = b""

    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        if stream:
            writer.write(STREAM_HEAD + b"data: " + current + b"\n\ndata: [DONE]\n\n")
            writer.close()
        else:
            writer.write(http_answer(current))

    outcomes = []
    async with host(script) as url:
        app = gateways(kind, url)
        for current in turn:
            status, text = await ask(app, CHAT | {"stream": stream})
            try:
                outcomes.append(check_outcome(status, text, stream))
            except (AssertionError, ValueError, KeyError) as error:
                raise AssertionError(f"{current[:300]!r}: {error!r}") from None
        status, page = await ask(app, {}, "/metrics")
    assert outcomes[0]
    assert outcomes[-1]
    assert outcomes.count(False) > len(outcomes) / 3
    figures = [float(line.split()[-1]) for line in page.splitlines() if not line.startswith("#")]
    assert all(math.isfinite(figure) and 0 <= figure < 2**40 for figure in figures)


CARDS = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "x", "max_model_len": 512, "hidden_size": 8}]},
    "/props": {"default_generation_settings": {"n_ctx": 512}},
}


@pytest.mark.parametrize("path", CARDS)
async def test_no_wrong_value_in_a_card_breaks_more_than_its_request(
    gateways: Callable[..., Any], path: str
) -> None:
    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(json.dumps(PLAIN[LlamaCppEngine]).encode()))

    cards = {place: json.dumps(card) for place, card in CARDS.items()}
    outcomes = []
    async with host(script, cards) as url:
        for text in mutated(CARDS[path]):
            cards[path] = text.decode()
            status, answer = await ask(gateways(LlamaCppEngine, url), CHAT)
            # A card of another name, or with less room, is a sound one.
            outcomes.append(status in (400, 404) or check_outcome(status, answer, stream=False))
    assert outcomes.count(False) > len(outcomes) / 3


def piece(text: str, reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]})


FLOODS = {
    "small pieces": (STREAM_HEAD, piece("a") * 100, True),
    "empty pieces": (STREAM_HEAD, piece("") * 100, True),
    "comments": (STREAM_HEAD, b": ping\n\n" * 1000, True),
    "empty lines": (STREAM_HEAD, b"\r" * 10_000, True),
    "a line": (STREAM_HEAD, b"x" * 10_000, True),
    "data lines": (STREAM_HEAD, b"data\n" * 2000, True),
    "choices": (STREAM_HEAD + b'data: {"choices": [', b'{"index": 0, "delta": {}},' * 400, True),
    "brackets": (b"HTTP/1.1 200 OK\r\n\r\n[", b"[]," * 3000, False),
    "depth": (b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 10_000, False),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000, False),
    "one header": (b"HTTP/1.1 200 OK\r\nX-A: ", b"b" * 10_000, False),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_cut_off_in_bounded_memory_while_others_are_answered(
    gateways: Callable[..., Any], name: str
) -> None:
    head, flood, stream = FLOODS[name]
    answered = 0

    async def script(body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        if body["max_tokens"] == 1:
            writer.write(http_answer(json.dumps(PLAIN[ChatEngine]).encode()))
            return
        writer.write(head)
        for _ in range(200 << 20):
            writer.write(flood)
            await writer.drain()

    async with host(script) as url:
        app = gateways(ChatEngine, url)
        await ask(app, CHAT | {"max_tokens": 1})
        tracemalloc.start()
        try:
            hostile = asyncio.create_task(ask(app, CHAT | {"max_tokens": 100, "stream": stream}))
            while not hostile.done():
                status, _ = await ask(app, CHAT | {"max_tokens": 1})
                answered += status == 200
            status, text = hostile.result()
            assert tracemalloc.get_traced_memory()[1] < 32 << 20
        finally:
            tracemalloc.stop()
    assert not check_outcome(status, text, stream)
    assert answered >= (5 if name in ("small pieces", "empty pieces") else 1)


LIMITS = {
    ChatEngine: [({"message": {"content": "a" * (8 * 128 + 1024)}}, 200),
                 ({"message": {"content": "a" * (8 * 128 + 1025)}}, 502),
                 ({"message": {"content": "a", "reasoning": "b" * 5000}}, 502),
                 ({"message": {"content": "a"}, "logprobs": {"content": SCORES["content"] * 8}}, 200),
                 ({"message": {"content": "a"}, "logprobs": {"content": SCORES["content"] * 9}}, 502)],
    IdsEngine: [({"token_ids": [64] * n, "logprobs": {"token_logprobs": [-1.0] * n}}, code)
                for n, code in ((8, 200), (9, 502))],
}  # fmt: skip


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("stream", [False, True])
async def test_no_engine_sends_more_than_it_was_asked_for(
    gateways: Callable[..., Any], kind: Any, stream: bool
) -> None:
    for choice, expected in LIMITS[kind]:
        body = {"choices": [ENDED | choice]}

        async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter, body: Any = body) -> None:
            if stream:
                body = json.loads(json.dumps(body).replace('"message"', '"delta"'))
                writer.write(STREAM_HEAD + event(body))
                writer.close()
            else:
                writer.write(http_answer(json.dumps(body).encode()))

        async with host(script) as url:
            status, text = await ask(gateways(kind, url), CHAT | {"stream": stream})
        assert status == expected, text[:300]


@pytest.mark.parametrize(("ids", "predicted"), [([64] * 2, 2), ([64], 2), ([], 0), ([64], 1.0)])
async def test_llamacpp_sends_every_id_of_a_piece_and_no_more(
    gateways: Callable[..., Any], ids: list[int], predicted: Any
) -> None:
    answer = PLAIN[LlamaCppEngine] | {"tokens": ids, "tokens_predicted": predicted, "stop_type": "limit"}

    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(json.dumps(answer).encode()))

    async with host(script) as url:
        status, text = await ask(gateways(LlamaCppEngine, url), CHAT)
    assert (status, json.loads(text)["error"]["code"]) == (502, "engine_garbage")


@pytest.mark.parametrize("pieces", [1, 300])
def test_a_repeated_placeholder_does_not_grow_beyond_any_answer(pieces: int) -> None:
    placeholders = Placeholders()
    quote = placeholders.quote("q" * 500_000)
    choice = Choice(0, None, placeholders)
    tracemalloc.start()
    try:
        with pytest.raises(EngineGarbageError):
            [choice.feed(Delta(0, text=f"{quote} " * (300 // pieces))) for _ in range(pieces)]
        assert tracemalloc.get_traced_memory()[1] < 4 * ANSWER_CHARS
    finally:
        tracemalloc.stop()
    assert len(choice.text) <= ANSWER_CHARS


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_bound_on_restored_text_is_for_all_choices_together(stream: bool, n: int) -> None:
    quotes = 300 if n == 1 else 2
    texts = [
        {"index": i, "finish_reason": "stop", "message": {"content": "[QUOTE_1] " * quotes}} for i in range(n)
    ]

    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        whole = json.dumps({"choices": texts})
        if stream:
            writer.write(STREAM_HEAD + b"data: " + whole.replace('"message"', '"delta"').encode() + b"\n\n")
            writer.close()
        else:
            writer.write(http_answer(whole.encode()))

    history = [{"role": "assistant", "content": "q" * 500_000}, {"role": "user", "content": "Go on."}]
    async with host(script) as url:
        engine = ChatEngine(url)
        app = create_gateway(GatewayConfig(mode="words"), engine, None, Sanitizer(load_policy()))
        status, text = await ask(app, {"model": "m", "messages": history, "n": n, "stream": stream})
        await engine.close()
    assert status == (502 if n == 1 or not stream else 200)
    assert not check_outcome(status, text, stream)
    assert len(text) < 2 * ANSWER_CHARS


@pytest.mark.parametrize("stream", [False, True])
async def test_a_compressed_answer_does_not_unfold(gateways: Callable[..., Any], stream: bool) -> None:
    body = gzip.compress(b"data: " * stream + json.dumps(PLAIN[ChatEngine]).encode() + b" " * 10**6 + b"\n\n")

    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(body).replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1))

    async with host(script) as url:
        status, text = await ask(gateways(ChatEngine, url), CHAT | {"stream": stream})
    assert (status, json.loads(text)["error"]["code"]) == (502, "engine_garbage")


async def test_what_nobody_counted_is_not_reported_as_nothing(gateways: Callable[..., Any]) -> None:
    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + piece("one two three") + piece(" four"))

    async with host(script) as url:
        app = gateways(ChatEngine, url)
        body = {"model": "m", "messages": CHAT["messages"], "stop": "two"}
        answer = json.loads((await ask(app, body))[1])
        streamed = await ask(app, body | {"stream": True, "stream_options": {"include_usage": True}})
        page = (await ask(app, {}, "/metrics"))[1]
    assert (answer["choices"][0]["message"]["content"], answer["usage"]) == ("one ", None)
    assert '"usage":{' not in streamed[1]
    assert "transom_tokens_total{" not in page


async def test_usage_that_comes_after_a_stop_string_at_the_end_is_kept(gateways: Callable[..., Any]) -> None:
    async def script(_body: Any, _reader: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + piece("one two", "stop") + event({"choices": [], "usage": USAGE}))

    async with host(script) as url:
        body = {"model": "m", "messages": CHAT["messages"], "stop": "two"}
        answer = json.loads((await ask(gateways(ChatEngine, url), body))[1])
    assert (answer["choices"][0]["message"]["content"], answer["usage"]) == ("one ", USAGE)
