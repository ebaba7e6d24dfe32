"""One model by each backend behind the gateway: the official client, streams, canaries, hostile bodies."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

from transom.net.listen import serve_in_thread
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.backends import open_engine
from transom.serving.engines.base import Call
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.server import create_engine_app
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

from .test_parity import SCORED, asked, both

CANARIES = ("Zebedee Quillfeather", "4111 1111 1111 1111")


class Backend:
    """An engine of SmolLM2, and every body that it was sent."""

    def __init__(self, engine: Any, url: str, bodies: list[bytes]) -> None:
        self.engine, self.url, self.bodies = engine, url, bodies


@pytest.fixture(scope="module", params=["torch", "llamacpp"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    bodies: list[bytes] = []
    with (
        open_engine("smollm2", backend=request.param, context_tokens=1024, max_batch=4) as engine,
        serve_in_thread(create_engine_app(engine, on_body=bodies.append)) as url,
    ):
        yield Backend(engine, url, bodies)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return load_tokenizer("smollm2")


@pytest.fixture
def client(backend: Backend, tokenizer: ChatTokenizer) -> Iterator[OpenAI]:
    app = create_gateway(GatewayConfig(), IdsEngine(backend.url), tokenizer)
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def test_the_official_client_chats_streams_and_stops(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "Name the capital of France."}]
    given: dict[str, Any] = {"model": "transom", "messages": question, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(**given)
    text = whole.choices[0].message.content
    assert "Paris" in text
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(**given, stream=True, n=2))
    for index in range(2):
        parts = [one.choices[0].delta.content or "" for one in chunks if one.choices[0].index == index]
        assert "".join(parts) == text
    stopped = client.chat.completions.create(**given, stop=["Paris"])
    assert stopped.choices[0].message.content == text.partition("Paris")[0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 0, **SCORED},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_p": 0.8, "seed": 6, **SCORED},
    ],
    ids=["greedy", "scored", "drawn", "drawn and scored"],
)
@pytest.mark.parametrize("text", ["Say: 🙂🙃🙂 and 世界", "List three animals."])
async def test_a_stream_equals_the_whole_answer(
    backend: Backend, tokenizer: ChatTokenizer, text: str, options: dict[str, Any]
) -> None:
    plain, streamed = await both(IdsEngine(backend.url), tokenizer, asked(text, max_tokens=20, **options))
    assert plain == streamed


def test_a_canary_reaches_neither_the_engine_nor_a_log(
    backend: Backend, tokenizer: ChatTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    sanitizer = Sanitizer(load_policy())
    app = create_gateway(GatewayConfig(mode="words"), IdsEngine(backend.url), tokenizer, sanitizer)
    before = len(backend.bodies)
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        for stream in (False, True):
            answer = client.chat.completions.create(
                model="transom",
                messages=[{"role": "user", "content": f"Thank {CANARIES[0]}, whose card is {CANARIES[1]}."}],
                max_tokens=16,
                stream=stream,
            )
            _ = list(answer) if stream else answer
    sent = backend.bodies[before:]
    assert len(sent) == 2
    texts = [backend.engine.tokenizer.decode(json.loads(body)["prompt"]) for body in sent]
    out, err = capfd.readouterr()
    for canary in CANARIES:
        for part in canary.split():
            assert all(part not in text for text in texts)
            assert part not in out + err
    assert "user" in texts[0]


async def test_answers_do_not_depend_on_neighbours_also_where_some_are_refused_or_leave(
    backend: Backend,
) -> None:
    encode = backend.engine.tokenizer.encode
    prompts = [tuple(encode(text).ids) for text in ("The sky is", "Dogs are", "Snow is", "My name is")]
    engine = IdsEngine(backend.url)
    await engine.probe()

    async def ids(prompt: tuple[int, ...], leave: int | None = None) -> list[int]:
        call = Call(prompts=(prompt,), max_tokens=12, temperature=0, stream=True)
        pieces = engine.generate(call)
        found: list[int] = []
        async for one in pieces:
            found += one.ids
            if leave is not None and len(found) >= leave:
                break
        await pieces.aclose()
        return found

    alone = [await ids(prompt) for prompt in prompts]
    too_long = Call(prompts=((5,) * 1020,), max_tokens=12, temperature=0, stream=True)

    async def refused() -> None:
        with pytest.raises(Exception, match="context"):
            _ = [one async for one in engine.generate(too_long)]

    work = [ids(prompt) for prompt in prompts] + [ids(prompt, leave=2) for prompt in prompts] + [refused()]
    together: list[Any] = await asyncio.gather(*work)
    await engine.close()
    assert together[:4] == alone
    assert all(one == whole[: len(one)] for one, whole in zip(together[4:8], alone, strict=True))


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [1], "max_tokens": 10**9},
        {"prompt": [10**9], "max_tokens": 1},
        {"prompt": [], "max_tokens": 1},
        {"prompt": [1], "max_tokens": 1, "temperature": -1},
        {"prompt": [1], "max_tokens": 1, "return_state_features": True},
        {"prompt": [1], "max_tokens": 1, "samplers": ["x"]},
        {"prompt_embeds": "AAAA", "max_tokens": 1},
    ],
    ids=["long", "out of range", "empty", "cold", "states", "unknown", "embeddings"],
)
def test_hostile_bodies_are_refused_and_the_engine_goes_on(backend: Backend, body: dict[str, Any]) -> None:
    def ask(body: dict[str, Any]) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(urlsplit(backend.url).netloc, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps({"model": "smollm2"} | body),
                           {"content-type": "application/json"})  # fmt: skip
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    status, answer = ask(body)
    assert 400 <= status < 500
    assert answer["error"]["message"]
    status, answer = ask({"prompt": [504, 3575], "max_tokens": 2, "temperature": 0})
    assert status == 200


def test_a_client_that_leaves_makes_room(backend: Backend, tokenizer: ChatTokenizer) -> None:
    """More of them than there are places, each with a long answer before it."""
    app = create_gateway(GatewayConfig(), IdsEngine(backend.url), tokenizer)
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        for _ in range(6):
            with client.chat.completions.create(
                model="transom", messages=[{"role": "user", "content": "Count to a thousand."}],
                max_tokens=900, stream=True, temperature=0,
            ) as stream:  # fmt: skip
                next(iter(stream))
        answer = client.chat.completions.create(
            model="transom", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
        )
        assert answer.choices[0].finish_reason == "length"
