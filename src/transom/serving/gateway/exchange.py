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

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from transom.errors import RefusedError, ReplaceableError
from transom.privacy.text import normalise
from transom.serving.annotate import Asked
from transom.serving.engines.base import Call, EngineCard
from transom.serving.engines.bounds import fits_plain
from transom.serving.gateway.annotations import Annotations, features_for
from transom.serving.gateway.answer import Choice
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.deliver import Caller, Exchange, Gateway
from transom.serving.gateway.obfuscated import placeholders
from transom.serving.gateway.requests import ChatRequest, CompletionRequest
from transom.serving.gateway.respond import Writer
from transom.serving.gateway.words import Veil, Veiled, is_long
from transom.serving.tokenizer import Encoded

COMPLETION_TOKENS = 16  # the OpenAI default of /v1/completions
MODEL_ALIAS = "transom"
_VISIBLE = re.compile("[!-~]")  # spares most texts the work of normalising
_Result = TypeVar("_Result")


async def prepare(gateway: Gateway, request: ChatRequest | CompletionRequest, caller: Caller) -> Exchange:
    """Everything up to the call. When this raises, nothing was sent."""
    card = await gateway.engine.probe()
    published = gateway.config.model or card.model
    features = features_for(gateway.annotators, card.features)
    fields = _fields(request)
    _refuse(gateway, request, fields, card, published)
    veiled, total = None, None
    if gateway.veil is not None and fields is not None:
        await _aside(fields, partial(_refuse_content, gateway, request, fields, card.context_tokens))
        async with gateway.veil.turn(caller.session or caller.repeat):
            with gateway.metrics.step("text"):
                veiled = await gateway.veil.cover(fields, caller.account, caller.session, caller.repeat)
            total = await _charge(gateway, gateway.veil, veiled, caller)
        fields = [(role, text) for (role, _), text in zip(fields, veiled.texts, strict=True)]
    with gateway.metrics.step("tokenize"):
        encoded = await _aside(fields or [], partial(_encode, gateway, request, fields))
    call = _call(gateway, request, encoded, fields or [], card.context_tokens, caller, features)
    saw = [one.text for one in encoded] or [f"{role}: {text}" for role, text in fields or []]
    annotations = None
    if gateway.annotators:
        asked = Asked(gateway.config.mode, published, tuple(saw), call.prompts)
        annotations = Annotations(gateway.annotators, asked, max(1, len(encoded)) * call.n, features)
    can_read: list[str] = []
    if gateway.substitution is not None:
        call = gateway.substitution.hide_call(call)
        can_read, saw = saw, [placeholders(ids) for ids in call.prompts]
    prompts = call.prompts
    if gateway.enclave is not None:
        with gateway.metrics.step("embed"):
            call = replace(call, prompts=(), embeds=gateway.enclave.embed(call.prompts))
        gateway.metrics.embedded_rows(gateway.enclave.meter.distinct_rows)
    choices = [
        Choice(
            i, gateway.tokenizer if encoded else None, veiled.placeholders if veiled else None, request.stops
        )
        for i in range(max(1, len(encoded)) * call.n)
    ]
    writer = Writer(
        isinstance(request, ChatRequest), published, gateway.tokenizer, request.alternatives is not None
    )
    return Exchange(
        gateway, caller, request, call, choices, writer, prompts, saw, can_read, veiled, total, annotations
    )


async def _aside(fields: Sequence[tuple[str, str]], work: Callable[[], _Result]) -> _Result:
    """Do work whose time grows with the fields; in a thread if they are long, as others wait for answers."""
    return await asyncio.to_thread(work) if is_long(fields) else work()


def _refuse(
    gateway: Gateway,
    request: ChatRequest | CompletionRequest,
    fields: Sequence[tuple[str, str]] | None,
    card: EngineCard,
    published: str,
) -> None:
    """Refuse what can be known without a look at the content."""
    if request.model not in (published, MODEL_ALIAS):
        raise RefusedError(
            "no such model here; see /v1/models", param="model", status=404, code="model_not_found"
        )
    if gateway.engine.takes == "text" and isinstance(request, CompletionRequest):
        raise ReplaceableError("this engine takes chat messages only; use /v1/chat/completions")
    if gateway.engine.takes == "ids" and gateway.tokenizer is None:
        raise ReplaceableError(
            "this engine takes token ids and the gateway has no tokenizer; give --tokenizer"
        )
    if gateway.enclave is not None:
        gateway.enclave.check(card)
    if gateway.veil is None:
        return
    if fields is None:
        message = "token ids cannot be sanitised; send the prompt as text"
        raise RefusedError(message, param="prompt", code="cannot_protect")


def _refuse_content(
    gateway: Gateway,
    request: ChatRequest | CompletionRequest,
    fields: Sequence[tuple[str, str]],
    context_tokens: int | None,
) -> None:
    """Refuse what can be known without a draw: roles, a prompt that shows nothing, one that cannot fit.

    A word between spaces is taken to be a token or more; an assistant message may go out as one placeholder.
    """
    config, texts = gateway.config, [text for _, text in fields]
    if gateway.tokenizer is not None and gateway.engine.takes == "ids" and isinstance(request, ChatRequest):
        gateway.tokenizer.check_chat(fields)
    param, visible = _param(request), map(_is_visible, texts)
    if not (any(visible) if isinstance(request, ChatRequest) else all(visible)):
        raise RefusedError("the prompt has no visible character; send text", param=param, code="empty_prompt")
    chars, most = sum(map(len, texts)), config.max_prompt_chars
    if chars > most:
        raise RefusedError(
            f"the prompt has {chars} characters, and {most} are sanitised in one request; shorten it",
            param=param,
            code="context_length_exceeded",
        )
    words = [len(text.split(None, context_tokens or most)) for role, text in fields if role != "assistant"]
    least = sum(words) if isinstance(request, ChatRequest) else max(words)
    _answer_tokens(config, request, least, context_tokens)


def _is_visible(text: str) -> bool:
    return _VISIBLE.search(text) is not None or bool(normalise(text).strip())


def _param(request: ChatRequest | CompletionRequest) -> str:
    return "messages" if isinstance(request, ChatRequest) else "prompt"


def _fields(request: ChatRequest | CompletionRequest) -> list[tuple[str, str]] | None:
    """Every content field as (role, text); None for a prompt of token ids."""
    if isinstance(request, ChatRequest):
        return [(message.template_role, message.text) for message in request.messages]
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    return [("user", str(text)) for text in prompts] if isinstance(prompts[0], str) else None


def _encode(
    gateway: Gateway, request: ChatRequest | CompletionRequest, fields: list[tuple[str, str]] | None
) -> list[Encoded]:
    """The prompts as the engine gets them; empty for an engine that takes chat messages as text."""
    if gateway.engine.takes == "text" or gateway.tokenizer is None:
        return []
    if isinstance(request, ChatRequest):
        return [gateway.tokenizer.encode_chat(fields or [])]
    if fields is not None:
        return [gateway.tokenizer.encode_text(text) for _, text in fields]
    given: list[Any] = list(request.prompt)
    prompts = [tuple(ids) for ids in (given if isinstance(given[0], list) else [given])]
    if any(max(ids) >= gateway.tokenizer.vocab_size for ids in prompts):
        raise RefusedError("a token id is outside the vocabulary", param="prompt", code="token_out_of_range")
    return [Encoded("(token ids)", ids) for ids in prompts]


def _call(
    gateway: Gateway,
    request: ChatRequest | CompletionRequest,
    encoded: Sequence[Encoded],
    fields: Sequence[tuple[str, str]],
    context_tokens: int | None,
    caller: Caller,
    features: int,
) -> Call:
    longest = max((len(one.ids) for one in encoded), default=0)
    max_tokens = _answer_tokens(gateway.config, request, longest, context_tokens)
    choices = max(1, len(encoded)) * (request.n or 1)
    return Call(
        prompts=tuple(one.ids for one in encoded),
        messages=() if encoded else tuple(fields),
        max_tokens=max_tokens,
        n=request.n or 1,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        logprobs=request.alternatives,
        features=features,
        stop_ids=gateway.tokenizer.eos_ids if gateway.tokenizer and encoded else (),
        stream=bool(request.stream or request.stops)
        or not fits_plain(choices * max_tokens, request.alternatives, features),
        tenant=caller.account,
    )


def _answer_tokens(
    config: GatewayConfig,
    request: ChatRequest | CompletionRequest,
    prompt_tokens: int,
    context_tokens: int | None,
) -> int:
    """The limit on the answer. Raises RefusedError when prompt and answer do not fit."""
    default = config.answer_tokens if isinstance(request, ChatRequest) else COMPLETION_TOKENS
    room = None if context_tokens is None else context_tokens - prompt_tokens
    wanted = request.output_tokens
    limit = config.max_prompt_tokens or None
    if (limit is not None and prompt_tokens > limit) or (room is not None and room < (wanted or 1)):
        raise RefusedError(
            f"the prompt of {prompt_tokens} tokens or more and {wanted or 1} answer tokens exceed the limit "
            f"(context {context_tokens}, prompt {limit}); shorten the conversation",
            param=_param(request),
            code="context_length_exceeded",
        )
    return wanted or (default if room is None else min(default, room))


async def _charge(gateway: Gateway, veil: Veil, veiled: Veiled, caller: Caller) -> float | None:
    """Make the charge durable, then keep the draws. Raises LedgerError; then nothing may be sent."""
    total = None
    if gateway.charger is not None:
        with gateway.metrics.step("ledger"):
            total = await gateway.charger.charge(caller.account, veiled.epsilon)
    gateway.metrics.epsilon(veiled.epsilon)
    veil.settle(veiled)
    return total
