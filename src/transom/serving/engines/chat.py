"""Client of any OpenAI-compatible chat endpoint: text in, text out. Serves the modes that need no token ids.

Threat model: that of `http`. Messages and sampling settings are sent, nothing else; stop strings stay in the
gateway.
Does not protect: the endpoint renders its own template and may log, train on and show to others what it
reads.
Source: OpenAI API reference, chat completions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Unpack

from transom.errors import EngineGarbageError, MisconfiguredError
from transom.serving.engines.base import Call, Delta, EngineCard, Json, TokenScore, sampling_of
from transom.serving.engines.checks import count, finish_reason, logprob, text
from transom.serving.engines.client import read_card
from transom.serving.engines.http import Common, HttpEngine

KEY_VARIABLE = "TRANSOM_ENGINE_KEY"
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")


class ChatEngine(HttpEngine):
    """A chat endpoint at `url` (its base, with or without `/v1`). `model` None: the first that it lists.

    `limit_field` is the endpoint's name for the limit on an answer, one of LIMIT_FIELDS. An endpoint that
    reports no usage counts 0 tokens.
    """

    _path = "/v1/chat/completions"
    takes: Final = "text"
    takes_embeds: Final = False

    def __init__(self, url: str, *, limit_field: str = "max_tokens", **common: Unpack[Common]) -> None:
        if limit_field not in LIMIT_FIELDS:
            raise MisconfiguredError(f"limit field {limit_field!r} is not one of {', '.join(LIMIT_FIELDS)}")
        super().__init__(url, **common)
        self._limit_field = limit_field
        if self._model is not None:  # not every endpoint lists its models
            self._card = EngineCard(self._model)

    async def _ask_card(self) -> EngineCard:
        return read_card(await self._get("/v1/models"), None)

    def _body(self, call: Call, card: EngineCard) -> Json:
        return {
            "model": card.model,
            "messages": [{"role": role, "content": text} for role, text in call.messages],
            self._limit_field: call.max_tokens,
            **sampling_of(call),
            "seed": call.seed,
            "stream": call.stream,
            "n": call.n if call.n > 1 else None,
            "stream_options": {"include_usage": True} if call.stream else None,
            "logprobs": None if call.logprobs is None else True,
            "top_logprobs": call.logprobs,
        }

    def _deltas(self, answer: Json, call: Call) -> list[Delta]:
        usage = _usage(answer.get("usage"))
        if not call.stream:
            return [_delta(one, one["message"], call.logprobs, usage) for one in answer["choices"]]
        choices = answer.get("choices") or []
        deltas = [_delta(one, one.get("delta") or {}, call.logprobs, None) for one in choices]
        return deltas if usage is None else [*deltas, Delta(0, usage=usage)]


def read_key(path: str | Path | None) -> str | None:
    """The endpoint's API key from a file, else from TRANSOM_ENGINE_KEY, else None."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(
            f"cannot read the engine's key file {path} ({type(error).__name__})"
        ) from None
    if not key or not key.isascii() or len(key.split()) != 1:
        raise MisconfiguredError(f"the engine's key file {path} must hold one key of ASCII characters")
    return key


def _delta(
    choice: Json,
    message: Json,
    alternatives: int | None,
    usage: tuple[int, int] | None,
) -> Delta:
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise EngineGarbageError("the engine's answer holds something else than text")
    hidden = message.get("reasoning_content") or message.get("reasoning")
    entries = [] if alternatives is None else (choice.get("logprobs") or {}).get("content") or []
    return Delta(
        count(choice.get("index", 0)),
        text=content,
        hidden_chars=len(hidden) if isinstance(hidden, str) else 0,
        scores=tuple(_score(entry, alternatives or 0) for entry in entries),
        finish_reason=finish_reason(choice.get("finish_reason")),
        usage=usage,
    )


def _score(entry: Json, alternatives: int) -> TokenScore:
    top = entry.get("top_logprobs") or []
    if len(top) > alternatives + 1:
        raise EngineGarbageError("the engine scored more alternatives than were asked for")
    ranked = tuple((text(one["token"]), logprob(one["logprob"])) for one in top)
    return TokenScore(text(entry["token"]), logprob(entry["logprob"]), ranked)


def _usage(usage: Json | None) -> tuple[int, int] | None:
    """The token counts, where both are there; proxies of other dialects name them otherwise."""
    counts = (usage or {}).get("prompt_tokens"), (usage or {}).get("completion_tokens")
    return None if None in counts else (count(counts[0]), count(counts[1]))
