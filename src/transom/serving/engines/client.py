"""Client of the one dialect, token ids in and out over `/v1/completions`: the embedded engine and vLLM.

Embeddings may take the place of ids. vLLM's extras are options: a version floor (earlier ones crash or
corrupt memory on hostile prompt embeddings) and a `cache_salt` per tenant (a shared prefix cache tells
tenants' prompts apart by timing).
Threat model: that of `http`.
Does not protect: the ids are text to whoever has the tokenizer, as hosts do; embeddings are ids to whoever
has the table.
Source: vLLM's OpenAI-compatible server, `return_token_ids`, `return_tokens_as_token_ids`, `prompt_embeds`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Any, Final, Unpack

from transom.errors import EngineGarbageError, MisconfiguredError
from transom.serving.dialect import FEATURES
from transom.serving.engines.base import SAMPLING, Call, Delta, EngineCard, Ids, Json, TokenScore, sampling_of
from transom.serving.engines.checks import (
    count,
    features,
    finish_reason,
    garbage,
    logprob,
    named_id,
    number,
    text,
    token_ids,
)
from transom.serving.engines.embeds import as_safetensors, as_torch_save
from transom.serving.engines.http import Common, HttpEngine

VLLM_FLOOR = (0, 24)


class IdsEngine(HttpEngine):
    """An engine that takes token ids or embeddings, and gives token ids.

    `vllm` turns on the version check, the cache salt, and vLLM's form of embeddings.
    """

    takes: Final = "ids"
    takes_embeds: Final = True

    def __init__(self, url: str, *, vllm: bool = False, **common: Unpack[Common]) -> None:
        super().__init__(url, **common)
        self._vllm, self._salt_key = vllm, secrets.token_bytes(32)

    async def _ask_card(self) -> EngineCard:
        if self._vllm:
            check_vllm_version(await self._get("/version"))
        return read_card(await self._get("/v1/models"), self._model)

    def _body(self, call: Call, card: EngineCard) -> Json:
        """Raises MisconfiguredError for embeddings that do not fit the model."""
        for embeds_TD in call.embeds:
            if card.width not in (None, embeds_TD.shape[1]):
                raise MisconfiguredError(
                    f"the embeddings have width {embeds_TD.shape[1]}, the engine's model {card.width}; "
                    "is it the model the bundle was cut from? Nothing was sent"
                )
        as_text = as_torch_save if self._vllm else as_safetensors
        prompts: list[Any] = [as_text(one) for one in call.embeds] or list(call.prompts)
        n = call.n
        if call.temperature == 0:  # vLLM refuses n > 1 where all would be equal; the indices stay the same
            prompts, n = [prompt for prompt in prompts for _ in range(n)], 1
        salt = hmac.new(self._salt_key, call.tenant.encode(), hashlib.sha256)
        return {
            "model": card.model,
            "prompt_embeds" if call.embeds else "prompt": prompts[0] if len(prompts) == 1 else prompts,
            "max_tokens": call.max_tokens,
            **sampling_of(call),
            "seed": call.seed,
            "logprobs": call.logprobs,
            "stop_token_ids": call.stop_ids or None,
            "stream": call.stream,
            "return_token_ids": True,
            "n": n if n > 1 else None,
            "return_state_features": True if call.features else None,
            "return_tokens_as_token_ids": None if call.logprobs is None else True,
            "cache_salt": salt.hexdigest() if self._vllm else None,
        }

    def _deltas(self, answer: Json, call: Call) -> list[Delta]:
        choices = answer.get("choices") or [] if call.stream else answer["choices"]
        return [_delta(choice, call) for choice in choices]


def check_vllm_version(answer: object) -> None:
    """Raises MisconfiguredError below the version floor, EngineGarbageError for an unreadable version."""
    version = answer.get("version") if isinstance(answer, dict) else None
    match = re.match(r"v?([0-9]{1,6})\.([0-9]{1,6})", version) if isinstance(version, str) else None
    if match is None:
        raise EngineGarbageError("the engine tells no vLLM version at /version; choose another --engine-kind")
    found = (int(match[1]), int(match[2]))
    if found < VLLM_FLOOR:
        raise MisconfiguredError(
            f"vLLM {found[0]}.{found[1]} has known memory-safety holes; 0.24 is the first to run"
        )


def read_card(models: object, wanted: str | None) -> EngineCard:
    """The card of `wanted`, or of the first model, from a `/v1/models` answer. Raises EngineGarbageError."""
    try:
        cards = {text(card["id"]): card for card in models["data"]}  # type: ignore[index]
        if wanted is None and not cards:
            raise EngineGarbageError("the engine lists no model")
        name = wanted if wanted is not None else next(iter(cards))
        card = cards.get(name, {})
        context, width = (
            None if value is None else count(value, least=1)
            for value in map(card.get, ("max_model_len", "hidden_size"))
        )
        told = count(card.get("state_features") or 0)
        if told > FEATURES:
            raise EngineGarbageError(f"the engine tells of {told} state features, more than {FEATURES}")
        owner, usual = text(card.get("owned_by") or ""), _sampling(card.get("sampling"))
        return EngineCard(name, owner, context, width, told, usual)
    except (TypeError, KeyError, AttributeError) as error:
        raise garbage(error) from None


def _sampling(told: object) -> dict[str, float]:
    """What the engine takes where nobody says; nothing from an engine that does not tell."""
    if not isinstance(told, dict):
        return {}
    return {name: number(told[name]) for name in SAMPLING if name in told}


def _delta(choice: Json, call: Call) -> Delta:
    reason = finish_reason(choice.get("finish_reason"))
    ids = token_ids(choice.get("token_ids") or [] if reason else choice.get("token_ids"))
    scores = () if call.logprobs is None else _scores(choice.get("logprobs"), ids, call.logprobs)
    told = None
    if call.features and ids:
        told = features(choice.get("state_features"), len(ids), call.features)
    return Delta(count(choice["index"]), ids, scores=scores, finish_reason=reason, features_TF=told)


def _scores(logprobs: Json | None, ids: Ids, alternatives: int) -> tuple[TokenScore, ...]:
    """One score an id. Where the tokens beside the scores are named by their ids, they must be these."""
    if not ids:
        return ()
    if not logprobs:
        raise EngineGarbageError("the engine sent no log-probabilities, which were asked for")
    values = logprobs["token_logprobs"]
    names = logprobs.get("tokens") or [None] * len(ids)
    tops = logprobs.get("top_logprobs") or [None] * len(ids)
    if not len(values) == len(tops) == len(names) == len(ids):
        raise EngineGarbageError("the engine's log-probabilities do not match its tokens")
    named = [None if name is None else text(name) for name in names]
    if any(
        name and name.startswith("token_id:") and named_id(name) != i
        for name, i in zip(named, ids, strict=True)
    ):
        raise EngineGarbageError("the engine's log-probabilities are of other tokens than it sent")
    return tuple(
        TokenScore(token, logprob(value), _top(top or {}, alternatives))
        for token, value, top in zip(ids, values, tops, strict=True)
    )


def _top(top: Json, alternatives: int) -> tuple[tuple[int, float], ...]:
    """The alternatives; vLLM adds the token itself where it is none of them."""
    if len(top) > alternatives + 1:
        raise EngineGarbageError("the engine scored more alternatives than were asked for")
    return tuple((named_id(name), logprob(value)) for name, value in top.items())
