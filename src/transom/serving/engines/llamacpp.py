"""Client of llama.cpp's own server: token ids in and out over its `/completion`.

Its dialect has one prompt and one answer a request, so several are asked for one after the other.
Threat model: that of `http`.
Does not protect: the server keeps prompts in its cache and shows them to whoever may ask its `/slots`.
Source: llama.cpp, tools/server/README.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

from transom.errors import EngineDownError, EngineGarbageError
from transom.serving.engines.base import (
    Call,
    Delta,
    EngineCard,
    FinishReason,
    TokenScore,
    garbage,
    token_ids,
)
from transom.serving.engines.client import read_card
from transom.serving.engines.http import EngineHttp, Guard


class LlamaCppEngine:
    """llama.cpp's server at `url`. `model` names it to clients (None: as the server does)."""

    takes: Final = "ids"
    takes_embeds: Final = False

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        guard: Guard | None = None,
    ) -> None:
        self._http = EngineHttp(url, api_key=api_key, timeout_s=timeout_s, guard=guard)
        self._model = model
        self._card: EngineCard | None = None

    async def probe(self) -> EngineCard:
        """The model's card, with the context of one slot where the server tells it."""
        if self._card is None:
            card = read_card(await self._http.get("/v1/models"), self._model)
            props = await self._http.get("/props")
            try:
                context = int(props["default_generation_settings"]["n_ctx"])
            except (TypeError, KeyError, ValueError) as error:
                raise garbage(error) from None
            self._card = EngineCard(card.model, card.owner, context)
        return self._card

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`."""
        prompts = [prompt for prompt in call.prompts for _ in range(call.n)]
        for index, prompt in enumerate(prompts):
            body = _body(call, prompt, index % call.n)
            if not call.stream:
                delta = _delta(await self._http.post("/completion", body), index)
                if delta.finish_reason is None:
                    raise EngineGarbageError("the engine left an answer unfinished")
                yield delta
                continue
            ended = False
            async for event in self._http.events("/completion", body):
                delta = _delta(event, index)
                ended = ended or delta.finish_reason is not None
                yield delta
            if not ended:
                raise EngineDownError("the engine's stream ended before the answer did")

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._http.close()


def _body(call: Call, prompt: tuple[int, ...], choice: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "n_predict": call.max_tokens,
        "temperature": call.temperature,
        "top_p": call.top_p,
        "seed": None if call.seed is None else (call.seed + choice) % 2**32,
        "n_probs": None if call.logprobs is None else max(1, call.logprobs),
        "stream": call.stream,
        "return_tokens": True,
    }


def _delta(answer: Any, index: int) -> Delta:
    try:
        ids = token_ids(answer["tokens"])
        entries = answer.get("completion_probabilities") or []
        scores = tuple(_score(entry) for entry in entries)
        reason: FinishReason | None = None
        if answer["stop"]:
            reason = "length" if answer.get("stop_type") == "limit" else "stop"
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise garbage(error) from None
    return Delta(index, ids, scores=scores[: len(ids)], finish_reason=reason)


def _score(entry: dict[str, Any]) -> TokenScore:
    top = tuple((int(one["id"]), float(one["logprob"])) for one in entry.get("top_logprobs") or [])
    return TokenScore(int(entry["id"]), float(entry["logprob"]), top)
