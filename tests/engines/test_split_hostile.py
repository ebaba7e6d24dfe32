"""A vendor that answers anything: the customer refuses it in words that quote nothing, and sends no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineError, EngineGarbageError, EngineTimeoutError, TransomError
from transom.link.codec import decode, encode
from transom.serving.engines.base import Call

from .split_parties import parties

SECRET = b"SECRET"
Answer = tuple[int, bytes]
Change = Callable[[bytes], Answer]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def lying(change: Change, method: str = "POST", after: int = 0) -> Callable[[Any], Any]:
    """The server with its answers to `method` changed, but for the first `after`."""

    def wrap(app: Any) -> Any:
        answered = 0

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            nonlocal answered
            if scope["type"] != "http" or scope["method"] != method:
                await app(scope, receive, send)
                return
            said: list[bytes] = []

            async def collect(message: Any) -> None:
                said.append(message.get("body", b""))

            await app(scope, receive, collect)
            status, body = change(b"".join(said)) if answered >= after else (200, b"".join(said))
            answered += 1
            headers = [(b"content-type", b"x/y"), (b"location", b"http://127.0.0.1:1/")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return serve

    return wrap


def again(**changes: Any) -> Change:
    """The answer with its tensors or header changed."""

    def change(body: bytes) -> Answer:
        head, tensors = decode(body)
        made = changes.get("tensors", lambda tensors: tensors)(tensors)
        return 200, encode(replace(head, **changes.get("head", {})), made, changes.get("wire", "fp32"))

    return change


def spoilt(value: float) -> Change:
    return lambda body: (200, body[:-4] + torch.tensor([value]).numpy().tobytes())


BAD_ANSWERS: dict[str, Change] = {
    "garbage": lambda _body: (200, SECRET),
    "nothing": lambda _body: (200, b""),
    "json": lambda _body: (200, b'{"top": [1, 2]}'),
    "half": lambda body: (200, body[: len(body) // 2]),
    "more": lambda body: (200, body + SECRET),
    "much more": lambda body: (200, body + bytes(2**21)),
    "nan": spoilt(torch.nan),
    "infinity": spoilt(torch.inf),
    "wide": again(tensors=lambda t: {"top": torch.zeros(1, 33)}),
    "long": again(tensors=lambda t: {"top": torch.zeros(2, 32)}),
    "flat": again(tensors=lambda t: {"top": torch.zeros(32)}),
    "integers": again(tensors=lambda t: {"top": t["top"].long()}),
    "logits": again(tensors=lambda t: {"logits": t["top"]}),
    "two": again(tensors=lambda t: t | {"more": torch.zeros(1)}),
    "narrow": again(wire="bf16"),
    "another number": again(head={"number": 7}),
    "another session": again(head={"run": "ab" * 16}),
    "another tuning": again(head={"job": "ab" * 16}),
    "ours": again(head={"sender": "customer"}),
    "redirect": lambda _body: (302, SECRET),
    "failure": lambda _body: (500, SECRET),
    "gone": lambda _body: (404, SECRET),
}


async def asked(engine: Any, **options: Any) -> list[Any]:
    call = Call(**({"prompts": ((5, 6, 7),), "max_tokens": 4, "temperature": 0.0} | options))
    try:
        return [delta async for delta in engine.generate(call)]
    finally:
        await engine.close()


@pytest.mark.parametrize("name", BAD_ANSWERS)
@pytest.mark.parametrize("after", [0, 2])
async def test_a_bad_answer_ends_the_request(name: str, after: int, llama: Path) -> None:
    with parties(llama, wrap=lying(BAD_ANSWERS[name], after=after)) as both:
        with pytest.raises(EngineError) as told:
            await asked(both.engine(timeout_s=10.0), stream=True)
        assert "SECRET" not in str(told.value)
        assert len(both.seen) == after + 1
        assert len(both.server) == 0


async def test_odds_that_are_none_are_garbage(llama: Path) -> None:
    huge = again(tensors=lambda t: {"logits": torch.full_like(t["logits"], 3e38)})
    with parties(llama, layout="vendor", wrap=lying(huge)) as both:
        with pytest.raises(EngineGarbageError, match="odds"):
            await asked(both.engine(), temperature=0.01, logprobs=2)
        assert len(both.seen) == 1


def cards() -> dict[str, Change]:
    def changed(**changes: Any) -> Change:
        def change(body: bytes) -> Answer:
            (card,) = json.loads(body)["data"]
            return 200, json.dumps({"data": [card | changes]}).encode()

        return change

    return {
        "garbage": lambda _body: (200, SECRET),
        "no models": lambda _body: (200, b'{"data": []}'),
        "no list": lambda _body: (200, b'{"data": 5}'),
        "no terms": changed(split=None),
        "text": changed(split="SECRET"),
        "other": changed(split={"width": 10**6}),
        "name": changed(id=5),
        "context": changed(max_model_len="many"),
        "failure": lambda _body: (500, SECRET),
    }


@pytest.mark.parametrize("name", cards())
async def test_a_bad_card_sends_nothing(name: str, llama: Path) -> None:
    with parties(llama, wrap=lying(cards()[name], "GET")) as both:
        with pytest.raises(TransomError) as told:
            await asked(both.engine())
        assert "SECRET" not in str(told.value) or name == "text"
        assert not both.seen


async def test_a_context_that_is_too_good_is_not_believed(llama: Path) -> None:
    def boast(body: bytes) -> Answer:
        (card,) = json.loads(body)["data"]
        return 200, json.dumps({"data": [card | {"max_model_len": 10**6}]}).encode()

    with parties(llama, wrap=lying(boast, "GET")) as both:
        engine = both.engine()
        assert (await engine.probe()).context_tokens == 256
        await engine.close()


async def test_silence_is_bounded(llama: Path) -> None:
    def silent(app: Any) -> Any:
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            while scope["type"] == "http" and scope["method"] == "POST":
                if (await receive())["type"] == "http.disconnect":
                    return
            await app(scope, receive, send)

        return serve

    with parties(llama, wrap=silent) as both:
        with pytest.raises(EngineTimeoutError):
            await asked(both.engine(timeout_s=0.3))
        assert len(both.server) == 0


async def test_nobody_there(llama: Path) -> None:
    with parties(llama) as both:
        engine = both.engine(timeout_s=2.0)
    with pytest.raises(EngineError, match="no connection"):
        await asked(engine)
