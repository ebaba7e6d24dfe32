"""Client of llama.cpp's own server: token ids in and out over its `/completion`.

Its dialect has one prompt and one answer a request, so several are asked for one after the other. And its
streams are not complete: of a character that takes several tokens only the last id (and score) is sent, and
what is missing cannot be asked for again once it was sampled. So nothing is streamed from it: an answer is
asked for in pieces, each continuing the ids before it, which the server's prompt cache makes as cheap as a
stream and equal to the last bit. Pieces are single tokens where log-probabilities are wanted, as the server
leaves out those of tokens that end inside a character; such a token's score is read from the alternatives of
the same position when a token of no text is forced there.
Its penalties are of prompt and answer, the last 64 tokens of them, or all for `repetition_penalty`.
The server knows no stop ids: an answer is cut at the first of them here, and nothing more is asked for.
Threat model: that of `http`.
Does not protect: the server keeps prompts in its cache and shows them to whoever may ask its `/slots`.
Source: llama.cpp, tools/server/README.md and server.cpp (`process_token`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from transom.errors import EngineGarbageError
from transom.serving.engines.base import (
    Call,
    Delta,
    EngineCard,
    FinishReason,
    Ids,
    Json,
    TokenScore,
    sampling_of,
)
from transom.serving.engines.bounds import Meter
from transom.serving.engines.checks import count, garbage, logprob, text, token_ids
from transom.serving.engines.client import read_card
from transom.serving.engines.http import HttpEngine
from transom.serving.engines.pieces import in_pieces, piece_seed

_FIELDS = ("tokens", "tokens_predicted", "stop", "stop_type", "completion_probabilities")
_NAMES = {"repetition_penalty": "repeat_penalty"}
_RANKED = 1000  # far more than the server samples from (top_k 40, unless it was started otherwise)
_FORCE = 1000.0


class LlamaCppEngine(HttpEngine):
    """llama.cpp's server at `url`. `model` names it to clients (None: as the server does)."""

    takes: Final = "ids"
    takes_embeds: Final = False

    async def _ask_card(self) -> EngineCard:
        card = read_card(await self._get("/v1/models"), self._model)
        props = await self._get("/props")
        try:
            context = count(props["default_generation_settings"]["n_ctx"], least=1)
        except (TypeError, KeyError) as error:
            raise garbage(error) from None
        return EngineCard(card.model, card.owner, context)

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`."""
        async with aclosing(self.pieces(call, {})) as deltas:
            async for delta in deltas:
                yield delta

    def pieces(self, call: Call, more: Json) -> AsyncGenerator[Delta, None]:
        """The same, with further fields of llama.cpp's own in each request."""
        return in_pieces(call, partial(self._piece, call, more))

    async def _piece(
        self, call: Call, more: Json, prompt: Ids, before: Ids, length: int, index: int, meter: Meter
    ) -> Delta:
        """The next ids of an answer of which `before` is there."""
        length = 1 if call.logprobs is not None else length
        body = _body(call, prompt + before, len(before), index % call.n) | {"n_predict": length} | more
        if call.repetition_penalty is not None:  # of all that there is; -1, which is documented, is refused
            body["repeat_last_n"] = len(prompt + before) + length
        answer = await self._post("/completion", body, meter.plain_bytes)
        try:
            ids, reason = _ids(answer, length, length + len(before) == call.max_tokens)
            scores: tuple[TokenScore, ...] = ()
            if call.logprobs is not None:
                scores = (_score(answer, ids[0], call.logprobs) or await self._forced(call, body, ids[0]),)
        except (TypeError, LookupError, AttributeError) as error:
            raise garbage(error) from None
        stop = next((at for at, token in enumerate(ids) if token in call.stop_ids), None)
        if stop is not None:
            ids, reason = ids[: stop + 1], "stop"
        return Delta(index, ids, scores=scores, finish_reason=reason)

    async def _forced(self, call: Call, body: Json, token: int) -> TokenScore:
        force = {"logit_bias": [[stop, _FORCE] for stop in call.stop_ids[:1]], "n_probs": _RANKED}
        answer = await self._post("/completion", body | force)
        for entry in answer.get("completion_probabilities") or []:
            for one in entry["top_logprobs"]:
                if one["id"] == token:
                    return TokenScore(token, logprob(one["logprob"]), _top(entry, call.logprobs or 0))
        raise EngineGarbageError(
            "the engine gave no log-probability for a token that ends inside a character"
        )


def _body(call: Call, prompt: Ids, position: int, choice: int) -> Json:
    return {
        "prompt": prompt,
        **{_NAMES.get(name, name): value for name, value in sampling_of(call).items()},
        "seed": None if call.seed is None else piece_seed(call.seed, choice, position),
        "n_probs": None if call.logprobs is None else max(1, call.logprobs),
        "stream": False,
        "response_fields": _FIELDS,
        "return_tokens": True,
        # Scores differ by some tenths with what the cache held before; what this answer itself left is exact.
        "cache_prompt": call.logprobs is None or position > 0,
    }


def _ids(answer: Any, length: int, last: bool) -> tuple[Ids, FinishReason | None]:
    """The ids of a piece of at most `length`, all of those sampled, and whether they end the answer."""
    ids = token_ids(answer["tokens"])
    if not 1 <= len(ids) <= length or count(answer["tokens_predicted"]) != len(ids):
        raise EngineGarbageError(f"the engine sent {len(ids)} of at most {length} tokens, or not all of them")
    if answer["stop"] is not True:
        raise EngineGarbageError("the engine left an answer unfinished")
    if text(answer["stop_type"]) != "limit":
        return ids, "stop"
    return ids, "length" if last or len(ids) < length else None


def _score(answer: Json, token: int, alternatives: int) -> TokenScore | None:
    """The score of the one token of a piece; None where the server left it out."""
    entries = answer.get("completion_probabilities") or []
    if not entries:
        return None
    if len(entries) != 1 or entries[0]["id"] != token:
        raise EngineGarbageError("the engine's log-probabilities are of other tokens than it sent")
    return TokenScore(token, logprob(entries[0]["logprob"]), _top(entries[0], alternatives))


def _top(entry: Json, alternatives: int) -> tuple[tuple[int | str, float], ...]:
    top = entry.get("top_logprobs") or []
    return tuple((count(one["id"]), logprob(one["logprob"])) for one in top[:alternatives])
