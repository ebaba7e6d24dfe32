"""EchoEngine: a public fake that answers with its own prompt. For tests, demonstrations and benchmarks.

It repeats the prompt's ids cyclically up to `max_tokens`, and its chat endpoint repeats the last user
message, so whoever talks to it can check both directions. It records every body it receives in `seen`, which
is how tests assert what a host saw.
Threat model: none; it stands for the untrusted host.
Does not protect anything: `seen` is content, kept in memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Send

from transom.serving.dialect import Limits, invalid, usage_of
from transom.serving.engines.job import Job, Step, TokenLogprob
from transom.serving.engines.server import JsonEndpoint, create_engine_app
from transom.serving.engines.wire import SSE_DONE, send_event, send_event_start, send_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(kw_only=True, eq=False)
class EchoEngine:
    """A generator without a model.

    `first_token_s` and `token_s` are delays in seconds before the first and each later step; a step holds
    `chunk_tokens` ids.
    With `record` every request body is appended to `seen`; turn it off where memory must stay flat.
    With an `embedding_size` it takes embeddings too, and answers with their positions. With a `feature_size`
    it tells features of states that it does not have: of the id i the numbers i, i + 1, ... modulo 97.
    """

    model: str = "echo"
    backend: str = "echo"
    tokenizer: Tokenizer | None = None
    vocabulary_size: int = 2**31
    context_tokens: int = 2**17
    embedding_size: int | None = None
    feature_size: int = 0
    sampling: dict[str, float] = field(default_factory=dict)
    first_token_s: float = 0.0
    token_s: float = 0.0
    chunk_tokens: int = 1
    record: bool = True
    seen: list[bytes] = field(default_factory=list, init=False, repr=False)

    def app(self, limits: Limits | None = None) -> Starlette:
        """The engine server over this echo, with `/v1/chat/completions` besides."""
        limits = limits or Limits()
        endpoint = JsonEndpoint(self._chat, limits.body_bytes, self._on_body)
        chat = Route("/v1/chat/completions", endpoint, methods=["POST"])
        return create_engine_app(self, limits=limits, on_body=self._on_body, extra_routes=[chat])

    def _on_body(self, body: bytes) -> None:
        if self.record:
            self.seen.append(body)

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Repeat the prompt. Every alternative asked for in log-probabilities is the token itself, at 0."""
        positions = range(min(job.prompt_tokens, self.vocabulary_size))
        prompt = job.prompt_ids if job.prompt_ids is not None else positions
        ids = list(islice(cycle(prompt), job.max_tokens))
        stop = next((i for i, token in enumerate(ids) if token in job.stop_ids), None)
        if stop is not None:
            ids = ids[: stop + 1]
        for start in range(0, len(ids), self.chunk_tokens):
            if delay_s := self.token_s if start else self.first_token_s:
                await asyncio.sleep(delay_s)
            chunk = tuple(ids[start : start + self.chunk_tokens])
            last = start + self.chunk_tokens >= len(ids)
            reason = None if not last else "length" if stop is None else "stop"
            told = _features(chunk, self.feature_size) if job.features else None
            yield Step(chunk, _certain(chunk, job.logprobs), reason, told)  # type: ignore[arg-type]

    async def _chat(self, body: dict[str, Any], send: Send) -> None:
        text = _last_user_text(body)
        await asyncio.sleep(self.first_token_s)
        head = {"id": "chatcmpl-echo", "created": int(time.time()), "model": self.model}
        words = [piece for piece in text.replace(" ", "\x00 ").split("\x00") if piece] or [""]
        usage = usage_of(len(words), len(words))
        if not body.get("stream"):
            whole = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            choices = [{"index": i, **whole} for i in range(body.get("n") or 1)]
            await send_json(send, head | {"object": "chat.completion", "choices": choices, "usage": usage})
            return
        head |= {"object": "chat.completion.chunk"}
        await send_event_start(send)
        for position, word in enumerate([*words, None]):
            if position and word is not None and self.token_s:
                await asyncio.sleep(self.token_s)
            delta = {} if position else {"role": "assistant"}
            delta |= {} if word is None else {"content": word}
            choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
            await send_event(send, head | {"choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await send_event(send, head | {"choices": [], "usage": usage})
        await send(SSE_DONE)


def _certain(ids: tuple[int, ...], alternatives: int | None) -> tuple[TokenLogprob, ...]:
    if alternatives is None:
        return ()
    return tuple(TokenLogprob(0.0, ((i, 0.0),) if alternatives else ()) for i in ids)


def _features(ids: tuple[int, ...], size: int) -> np.ndarray:
    return ((np.array(ids)[:, None] + np.arange(size)) % 97).astype(np.float32)


def _last_user_text(body: dict[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise invalid("messages", "messages must be a list of objects")
    contents = [message.get("content") for message in messages if message.get("role") == "user"]
    if not contents or not isinstance(contents[-1], str):
        raise invalid("messages", "messages must hold a user message of text")
    return contents[-1]
