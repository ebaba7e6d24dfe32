"""An engine's HTTP face: the part of vLLM's `/v1/completions` dialect that Transom speaks, for any generator.

Threat model: hostile request bodies (see `request`). The engine itself reads all it is sent: what it may
be sent is decided by the gateway in front of it.
Does not protect against: anyone who can reach the port; there is no authentication and no TLS here.
Nothing of a request is logged. A client that leaves cancels its generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from transom.errors import EngineError, MisconfiguredError, TransomError
from transom.serving.dialect import Limits, usage_of
from transom.serving.engines.base import Json
from transom.serving.engines.embeds import packed_floats
from transom.serving.engines.job import Generator, Step, answers, joined
from transom.serving.engines.request import Work, parse_completion
from transom.serving.engines.wire import (
    SSE_DONE,
    Failure,
    answered,
    envelope,
    no_such_route,
    parse_json_object,
    read_body,
    require_json,
    send_event,
    send_event_start,
    send_json,
    until_gone,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Answer = Callable[[Json, Send], Any]


def create_engine_app(
    generator: Generator,
    *,
    limits: Limits | None = None,
    on_body: Callable[[bytes], None] | None = None,
    extra_routes: Sequence[BaseRoute] = (),
) -> Starlette:
    """The engine server for a generator. `on_body` sees every request body (the fakes record with it)."""
    limits = limits or Limits()
    if generator.feature_size > limits.features:
        raise MisconfiguredError(
            f"the engine tells {generator.feature_size} features a token; at most {limits.features} are sent"
        )

    async def answer(body: Json, send: Send) -> None:
        work = parse_completion(body, generator, limits)
        await (_stream if work.asked.stream else _complete)(generator, work, send)

    async def models(_request: Request) -> Response:
        card: Json = {"id": generator.model, "object": "model", "created": 0, "owned_by": "transom"}
        card |= {"max_model_len": generator.context_tokens, "backend": generator.backend}
        card["sampling"] = dict(generator.sampling)
        told = {"hidden_size": generator.embedding_size, "state_features": generator.feature_size or None}
        card |= {name: size for name, size in told.items() if size is not None}
        return JSONResponse({"object": "list", "data": [card]})

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/completions", JsonEndpoint(answer, limits.body_bytes, on_body), methods=["POST"]),
        Route("/v1/models", models),
        Route("/healthz", healthz),
        *extra_routes,
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: no_such_route("/v1/models")})


class JsonEndpoint:
    """An ASGI endpoint that reads one JSON object, answers it, and stops working when the client leaves."""

    def __init__(
        self, answer: Answer, limit_bytes: int, on_body: Callable[[bytes], None] | None = None
    ) -> None:
        self._answer = answer
        self._limit_bytes = limit_bytes
        self._on_body = on_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work(send: Send) -> None:
            require_json(scope, "unsupported_media")
            body = await read_body(scope, receive, self._limit_bytes)
            if self._on_body is not None:
                self._on_body(body)
            value = parse_json_object(body)
            async with until_gone(receive):
                await self._answer(value, send)

        await answered(send, work, _failure)


def _failure(error: Exception) -> Failure:
    known = error if isinstance(error, TransomError) else EngineError("the engine failed on this job")
    return *envelope(known), {}


class _Choice:
    def __init__(self, index: int, work: Work, tokenizer: Tokenizer | None) -> None:
        self.index = index
        self._asked = work.asked
        self._tokenizer = tokenizer
        self._decoder: Any = None
        if tokenizer is not None:
            from tokenizers.decoders import DecodeStream

            self._decoder = DecodeStream(skip_special_tokens=True)

    def render(self, step: Step) -> Json:
        shown = step.ids[:-1] if step.finish_reason == "stop" else step.ids
        choice: Json = {
            "index": self.index,
            "text": self._text(shown),
            "logprobs": self._logprobs(step) if step.logprobs else None,
            "finish_reason": step.finish_reason,
        }
        if self._asked.return_token_ids:
            choice["token_ids"] = list(step.ids)
        if step.features_TF is not None:
            choice["state_features"] = packed_floats(step.features_TF)
        return choice

    def _text(self, ids: Sequence[int]) -> str:
        if self._decoder is None:
            return ""
        return "".join(self._decoder.step(self._tokenizer, i) or "" for i in ids)

    def _name(self, token_id: int) -> str:
        if self._tokenizer is None or self._asked.return_tokens_as_token_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.decode([token_id], skip_special_tokens=False)

    def _logprobs(self, step: Step) -> Json:
        return {
            "tokens": [self._name(i) for i in step.ids],
            "token_logprobs": [entry.logprob for entry in step.logprobs],
            "top_logprobs": [{self._name(i): value for i, value in entry.top} for entry in step.logprobs],
        }


_serial = count()


def _head(generator: Generator) -> Json:
    created = time.time()
    identity = f"cmpl-{int(created)}-{next(_serial)}"
    return {"id": identity, "object": "text_completion", "created": int(created), "model": generator.model}


async def _complete(generator: Generator, work: Work, send: Send) -> None:
    collected: list[list[Step]] = [[] for _ in work.jobs]
    async with aclosing(answers(generator.generate, work.jobs)) as steps:
        async for index, step in steps:
            collected[index].append(step)
    whole = [joined(steps_of_choice) for steps_of_choice in collected]
    choices = [_Choice(i, work, generator.tokenizer).render(step) for i, step in enumerate(whole)]
    usage = usage_of(work.prompt_tokens, sum(len(step.ids) for step in whole))
    await send_json(send, _head(generator) | {"choices": choices, "usage": usage})


async def _stream(generator: Generator, work: Work, send: Send) -> None:
    head, completion_tokens = _head(generator), 0
    choices = [_Choice(i, work, generator.tokenizer) for i in range(len(work.jobs))]
    async with aclosing(answers(generator.generate, work.jobs)) as steps:
        opened = False
        async for index, step in steps:
            if not opened:  # the status line waits for the first step, so that an early failure has its own
                await send_event_start(send)
                opened = True
            completion_tokens += len(step.ids)
            await send_event(send, head | {"choices": [choices[index].render(step)]})
    if work.asked.stream_options.include_usage:
        await send_event(
            send, head | {"choices": [], "usage": usage_of(work.prompt_tokens, completion_tokens)}
        )
    await send(SSE_DONE)
