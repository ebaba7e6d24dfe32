"""One request's way to its call: refuse, veil, charge, encode, hide. The order protects; see `deliver`.

Threat model: the engine's host reads what it is sent. So nothing is sent before the request is wholly
checked, its private words are veiled and their charge is durable; a failure on that way sends nothing. What
can be known without a draw is refused before it; what a draw can influence (the prompt's length in tokens,
its distinct rows) is refused after its charge, and the draw is kept: a client that resends until a draw
passes would else be given draws that are likelier for some words than the charge says.
Does not protect in mode plain: the host reads everything. Lengths, timing, sampling settings and `n` are
not private in any mode.
Source: the order of steps is the design's "way of a chat request".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transom.errors import RefusedError, ReplaceableError
from transom.privacy.text import normalise
from transom.serving.annotate import Asked
from transom.serving.engines.base import Call, EngineCard, sampling_of
from transom.serving.engines.bounds import fits_plain
from transom.serving.gateway.annotations import Annotations, features_for
from transom.serving.gateway.answer import Choice
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.deliver import Caller, Exchange, Gateway
from transom.serving.gateway.marks import marks_of
from transom.serving.gateway.obfuscated import placeholders
from transom.serving.gateway.requests import AnyRequest, ChatRequest, Fields
from transom.serving.gateway.respond import Writer
from transom.serving.gateway.responses import ResponsesWriter, TranslatedRequest
from transom.serving.gateway.words import Veil, Veiled, aside
from transom.serving.tokenizer import Encoded

COMPLETION_TOKENS = 16  # the OpenAI default of /v1/completions
_ALIAS = "transom"
_VISIBLE = re.compile("[!-~]")  # spares most texts the work of normalising


async def prepare(gateway: Gateway, request: AnyRequest, caller: Caller) -> Exchange:
    """Everything up to the call. When this raises, nothing was sent."""
    way = _Way(gateway, request, caller, await gateway.engine.probe())
    features = features_for(gateway.annotators, way.card.features)
    fields, veiled, total = request.fields, None, None
    _check(way, fields)
    marks = marks_of(request, gateway.config)
    if gateway.veil is not None and fields is not None:
        await aside(fields, partial(_check_content, way, fields))
        async with gateway.veil.turn(caller.session or caller.repeat):
            with gateway.metrics.step("text"):
                veiled = await gateway.veil.cover(
                    fields, caller.account, caller.session, caller.repeat, marks
                )
            total = await _charge(gateway, gateway.veil, veiled, caller)
        fields = [(role, text) for (role, _), text in zip(fields, veiled.texts, strict=True)]
    with gateway.metrics.step("tokenize"):
        encoded = await aside(fields or [], partial(_encode, way, fields))
    call = _call(way, encoded, fields or [], features)
    saw = [one.text for one in encoded] or [f"{role}: {text}" for role, text in fields or []]
    count = max(1, len(encoded)) * call.n
    annotations = None
    if gateway.annotators:
        asked = Asked(gateway.config.mode, way.published, tuple(saw), call.prompts)
        annotations = Annotations(gateway.annotators, asked, count, features)
    can_read: list[str] = []
    if gateway.substitution is not None:
        call = gateway.substitution.hide_call(call)
        can_read, saw = saw, [placeholders(ids) for ids in call.prompts]
    prompts, promise = call.prompts, way.card.promise
    if promise is not None:
        can_read, saw = (
            saw,
            [f"<states of {len(ids)} tokens, {way.card.width} numbers each>" for ids in prompts],
        )
    if gateway.enclave is not None:
        with gateway.metrics.step("embed"):
            call = replace(call, prompts=(), embeds=gateway.enclave.embed(call.prompts))
        gateway.metrics.embedded_rows(gateway.enclave.meter.distinct_rows)
    tokenizer = gateway.tokenizer if encoded else None
    hidden = veiled.placeholders if veiled else None
    drawn = gateway.veil.drawn(veiled) if gateway.veil and veiled else {}
    scored = request.alternatives is not None
    choices = [Choice(i, tokenizer, hidden, request.stops, drawn, scored) for i in range(count)]
    writer: Writer | ResponsesWriter
    if isinstance(request, TranslatedRequest):
        writer = ResponsesWriter(request, way.published)
    else:
        writer = Writer(request.chat, way.published, gateway.tokenizer, scored, request.include_usage)
    return Exchange(
        gateway,
        caller,
        request,
        call,
        choices,
        writer,
        prompts,
        saw,
        can_read,
        veiled,
        total,
        annotations,
        promise=promise,
    )


def names_beside(config: GatewayConfig) -> tuple[str, ...]:
    """The names by which a client may ask for the model, beside the published one."""
    return (_ALIAS, *config.aliases)


@dataclass(frozen=True)
class _Way:
    """A request, and what its steps go by. `fields` is its content as (role, text), None for token ids."""

    gateway: Gateway
    request: AnyRequest
    caller: Caller
    card: EngineCard

    @property
    def published(self) -> str:
        """The model's name for clients."""
        return self.gateway.config.model or self.card.model


def _check(way: _Way, fields: Fields | None) -> None:
    """Refuse what can be known without a look at the content."""
    gateway = way.gateway
    if way.request.model not in (way.published, *names_beside(gateway.config)):
        raise RefusedError(
            "no such model here; see /v1/models", param="model", status=404, code="model_not_found"
        )
    if gateway.engine.takes == "text" and not way.request.chat:
        raise ReplaceableError("this engine takes chat messages only; use /v1/chat/completions")
    if gateway.engine.takes == "ids" and gateway.tokenizer is None:
        raise ReplaceableError(
            "this engine takes token ids and the gateway has no tokenizer; give --tokenizer"
        )
    if gateway.enclave is not None:
        gateway.enclave.check(way.card)
    if gateway.veil is not None and fields is None:
        message = "token ids cannot be sanitised; send the prompt as text"
        raise RefusedError(message, param="prompt", code="cannot_protect")


def _check_content(way: _Way, fields: Fields) -> None:
    """Refuse what can be known without a draw: roles, a prompt that shows nothing, one that cannot fit.

    A word between spaces is taken to be a token or more; an assistant message may go out as one placeholder.
    """
    gateway, request = way.gateway, way.request
    if gateway.tokenizer is not None and gateway.engine.takes == "ids" and request.chat:
        gateway.tokenizer.check_chat(fields)
    texts = [text for _, text in fields]
    if not (any if request.chat else all)(map(_is_visible, texts)):
        message = "the prompt has no visible character; send text"
        raise RefusedError(message, param=request.content, code="empty_prompt")
    chars = sum(map(len, texts))
    most = gateway.config.max_prompt_chars
    if chars > most:
        raise RefusedError(
            f"the prompt has {chars} characters, and {most} are sanitised in one request; shorten it",
            param=request.content,
            code="context_length_exceeded",
        )
    limit = way.card.context_tokens or most
    words = [len(text.split(None, limit)) for role, text in fields if role != "assistant"]
    _answer_tokens(way, sum(words) if request.chat else max(words))


def _encode(way: _Way, fields: Fields | None) -> list[Encoded]:
    tokenizer, request = way.gateway.tokenizer, way.request
    if way.gateway.engine.takes == "text" or tokenizer is None:
        return []
    if isinstance(request, ChatRequest):
        return [tokenizer.encode_chat(fields or [])]
    if fields is not None:
        return [tokenizer.encode_text(text) for _, text in fields]
    given: list[Any] = list(request.prompt)
    prompts = [tuple(ids) for ids in (given if isinstance(given[0], list) else [given])]
    if any(max(ids) >= tokenizer.vocab_size for ids in prompts):
        message = "a token id is outside the vocabulary"
        raise RefusedError(message, param="prompt", code="token_out_of_range")
    return [Encoded("(token ids)", ids) for ids in prompts]


def _call(way: _Way, encoded: Sequence[Encoded], fields: Fields, features: int) -> Call:
    """What the engine is asked, in plain ids."""
    request, tokenizer = way.request, way.gateway.tokenizer
    max_tokens = _answer_tokens(way, max((len(one.ids) for one in encoded), default=0))
    tokens = max(1, len(encoded)) * (request.n or 1) * max_tokens
    return Call(
        prompts=tuple(one.ids for one in encoded),
        messages=() if encoded else tuple(fields),
        max_tokens=max_tokens,
        n=request.n or 1,
        **sampling_of(request),
        seed=request.seed,
        logprobs=request.alternatives,
        features=features,
        stop_ids=tokenizer.eos_ids if tokenizer and encoded else (),
        stream=bool(request.stream or request.stops)
        or not fits_plain(tokens, request.alternatives, features),
        tenant=way.caller.account,
    )


def _answer_tokens(way: _Way, prompt_tokens: int) -> int:
    config = way.gateway.config
    context_tokens = way.card.context_tokens
    default = config.answer_tokens if way.request.chat else COMPLETION_TOKENS
    room = None if context_tokens is None else context_tokens - prompt_tokens
    wanted = way.request.output_tokens
    limit = config.max_prompt_tokens or None
    if (limit is not None and prompt_tokens > limit) or (room is not None and room < (wanted or 1)):
        raise RefusedError(
            f"the prompt of {prompt_tokens} tokens or more and {wanted or 1} answer tokens exceed the "
            f"limit (context {context_tokens}, prompt {limit}); shorten the conversation",
            param=way.request.content,
            code="context_length_exceeded",
        )
    return wanted or (default if room is None else min(default, room))


def _is_visible(text: str) -> bool:
    return _VISIBLE.search(text) is not None or bool(normalise(text).strip())


async def _charge(gateway: Gateway, veil: Veil, veiled: Veiled, caller: Caller) -> float | None:
    """Make the charge durable, then keep the draws. Raises LedgerError; then nothing may be sent."""
    total = None
    if gateway.charger is not None:
        with gateway.metrics.step("ledger"):
            total = await gateway.charger.charge(caller.account, veiled.epsilon)
    gateway.metrics.epsilon(veiled.epsilon)
    gateway.metrics.public(sum(map(len, veiled.public)))
    veil.settle(veiled)
    return total
