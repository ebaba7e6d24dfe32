"""The customer's side of private inference: ids stay here, states with noise leave, ids come out.

The front runs here, noise is added as in training, and a vendor (`split_server`) runs its tuned blocks. What
comes back is a top state, which the head here reads, or logits; tokens are drawn here, as the embedded engine
draws them. The states of what was drawn go up with noise, too.
A text's tokens are released once, however often it is sent (`privacy.releases`).
Threat model: that of `http`; what a vendor answers is of one shape, bounded and finite, or refused.
Does not protect: lengths, times, that texts begin alike. The vendor computes the odds of each next token from
what it gets, and so knows about as much of the answer as the noise leaves the answer to depend on.
Source: Shen et al., arXiv 2312.15603.

Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Unpack

import numpy as np
import torch
from torch import Tensor

from transom.checkpoint.cut import Front, Tail, new_cache
from transom.checkpoint.finite import is_finite
from transom.errors import (
    EngineGarbageError,
    EngineTimeoutError,
    LinkRefusedError,
    MisconfiguredError,
    TransomError,
)
from transom.link.codec import decode, encode
from transom.privacy.guarantee import Guarantee
from transom.privacy.releases import Releases
from transom.serving.engines.base import Call, Delta, EngineCard, Ids, TokenScore, sampling_of
from transom.serving.engines.batch import Row, next_step
from transom.serving.engines.checks import garbage
from transom.serving.engines.client import read_card
from transom.serving.engines.http import Common, HttpEngine
from transom.serving.engines.job import Job, Step, answers, joined
from transom.serving.split_wire import (
    CHUNK_TOKENS,
    MESSAGE,
    PATH,
    STATES,
    SplitTerms,
    answer_limits,
    header,
)

_TOTAL_S = 3600.0  # of an answer
_SMALL_BYTES = 4096
_MOST_LOGIT = 1e30  # larger ones tell no odds apart
_AT_ONCE = 8  # answers of one call, which shares the vendor with others
_DISCLOSES = (
    "lengths and times, and which texts begin alike",
    "the odds of each next token of the answer, which the receiver computes itself",
)
_GROWS = (
    "a conversation only grows: what follows a changed place, and an answer that is tokenised otherwise than "
    "it was generated, is released again"
)
_LASTING = "the folder's secret stays: with another one, all is released again"
_PASSING = "one run of the gateway, and no more text than it remembers: else all is released again"


@dataclass(frozen=True, kw_only=True)
class SplitCustomer:
    """What a customer of a split tuning has: the front, the head in layout `customer`, and its releases.

    `promise` is that of their noise for a conversation that is sent once. `eos_ids` end an answer.
    `context_tokens` is what the front's model was trained for.
    """

    terms: SplitTerms
    front: Front
    tail: Tail | None
    releases: Releases
    promise: Guarantee
    eos_ids: frozenset[int]
    context_tokens: int

    def __post_init__(self) -> None:
        if (self.tail is not None) != (self.terms.layout == "customer"):
            raise MisconfiguredError(
                f"in layout {self.terms.layout} the {self.terms.layout} has the head, and the other does not"
            )

    @property
    def guarantee(self) -> Guarantee:
        """What is promised of the tokens of a conversation."""
        once, how_long = self.promise, _LASTING if self.releases.lasting else _PASSING
        return replace(
            once,
            assumptions=(*once.assumptions, _GROWS, how_long),
            discloses=(*once.discloses, *_DISCLOSES),
        )


class SplitEngine(HttpEngine):
    """An engine whose first blocks, and perhaps head, run here."""

    takes: Final = "ids"
    takes_embeds: Final = False

    def __init__(self, url: str, customer: SplitCustomer, **common: Unpack[Common]) -> None:
        super().__init__(url, **common)
        self._customer, self._terms = customer, customer.terms
        self._farewells: set[asyncio.Task[None]] = set()

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`."""
        if self._card is None:
            await self.probe()
        jobs, turns = _jobs(call), asyncio.Semaphore(_AT_ONCE)
        whole: list[list[Step]] = [[] for _ in jobs]
        async with aclosing(answers(partial(self._answer, turns), jobs)) as steps:
            async for index, step in steps:
                if call.stream:
                    yield _delta(index, step)
                else:
                    whole[index].append(step)
        for index, some in enumerate(whole):
            if some:
                yield _delta(index, joined(some))

    async def close(self) -> None:
        """See `Engine.close`; sessions that have ended are told so before."""
        await asyncio.gather(*self._farewells, return_exceptions=True)
        await super().close()

    async def _ask_card(self) -> EngineCard:
        """Raises MisconfiguredError for a vendor of another tuning."""
        models = await self._get("/v1/models")
        card = read_card(models, self._model)
        try:
            told = next(one for one in models["data"] if one["id"] == card.model)
        except (StopIteration, LookupError, TypeError) as error:
            raise garbage(error) from None
        self._terms.check(told.get("split"))
        context = min(card.context_tokens or self._customer.context_tokens, self._customer.context_tokens)
        return replace(
            card, context_tokens=context, width=self._terms.width, promise=self._customer.guarantee
        )

    async def _answer(self, turns: asyncio.Semaphore, job: Job) -> AsyncGenerator[Step, None]:
        """One answer in its turn, a token a step."""
        async with turns, aclosing(self._session(job)) as steps:
            async for step in steps:
                yield step

    async def _session(self, job: Job) -> AsyncGenerator[Step, None]:
        """A session at the vendor, which ends with its answer, however that ends."""
        ends_s = asyncio.get_running_loop().time() + _TOTAL_S
        row, text = Row(job, _nobody), _Text(self._customer)
        session, tokens = secrets.token_hex(16), job.prompt_tokens + job.max_tokens
        try:
            asked = json.dumps({"tokens": tokens, "terms": self._terms.digest}).encode()
            await self._whole("PUT", f"{PATH}/{session}", asked, _SMALL_BYTES)
            new, length, step = job.prompt_ids or (), 0, None
            while step is None or step.finish_reason is None:
                released_TD = await asyncio.to_thread(text.extend, new)
                for piece_TD in torch.split(released_TD, CHUNK_TOKENS):
                    answer_D = await self._rise(session, length, piece_TD)
                    length += len(piece_TD)
                step = await asyncio.to_thread(self._choose, row, answer_D)
                yield step
                new = step.ids
                if asyncio.get_running_loop().time() > ends_s:
                    raise EngineTimeoutError("the answer took more than an hour; ask for fewer tokens")
        finally:
            task = asyncio.create_task(self._end(session))
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def _rise(self, session: str, length: int, states_TD: Tensor) -> Tensor:
        """The vendor's answer [D] or [V] to the states of the tokens after the first `length`."""
        terms = self._terms
        message = encode(header(terms, session, "customer", length), {STATES: states_TD}, terms.wire)
        limits, (name, _numbers) = answer_limits(terms), terms.answer
        data = await self._whole("POST", f"{PATH}/{session}", message, limits.max_bytes, MESSAGE)
        try:
            got, tensors = decode(data, limits)
        except LinkRefusedError as error:
            raise EngineGarbageError(f"the vendor's answer is none: {error}") from None
        if got != header(terms, session, "vendor", length):
            raise EngineGarbageError("the vendor's answer is to another message than was sent")
        return tensors[name][0]

    def _choose(self, row: Row, answer_D: Tensor) -> Step:
        tail, logits_V = self._customer.tail, answer_D
        if tail is not None:
            weight: Tensor = tail.parts.embedding.weight
            with torch.inference_mode():
                logits_V = tail(answer_D[None, None].to(weight.device, weight.dtype))[0, 0].float()
        if is_finite(logits_V) and float(logits_V.abs().max()) < _MOST_LOGIT:
            with suppress(RuntimeError):  # torch's, of probabilities that are none
                return next_step(row, logits_V, int(logits_V.argmax()), self._customer.eos_ids)
        raise EngineGarbageError("the vendor's answer gives no odds that can be drawn from")

    async def _end(self, session: str) -> None:
        with suppress(TransomError):
            await self._whole("DELETE", f"{PATH}/{session}", None, _SMALL_BYTES)


class _Text:
    """A text that grows: the front's cache, and where its releases stand."""

    def __init__(self, customer: SplitCustomer) -> None:
        self._front, self._releases = customer.front, customer.releases
        self._cache, self._before = new_cache(), customer.releases.start

    def extend(self, ids: Ids) -> Tensor:
        """What is released [T, D] of the text's next tokens."""
        device = self._front.parts.embedding.weight.device
        with torch.inference_mode():
            states_1TD = self._front(torch.tensor([ids], device=device), None, self._cache)
        rows_TD = states_1TD[0].float().cpu().numpy()
        self._before, released_TD = self._releases.extend(self._before, ids, rows_TD)
        return torch.from_numpy(np.ascontiguousarray(released_TD))


def _nobody(_step: Any) -> None:
    """A row's steps are yielded."""


def _jobs(call: Call) -> list[Job]:
    """One for each choice; of several with a seed each has the next one."""
    several = call.n > 1 and call.seed is not None
    return [
        Job(
            prompt_ids=prompt,
            max_tokens=call.max_tokens,
            **{name: value for name, value in sampling_of(call).items() if value is not None},
            seed=call.seed + number if several and call.seed is not None else call.seed,
            stop_ids=frozenset(call.stop_ids),
            logprobs=call.logprobs,
        )
        for prompt in call.prompts
        for number in range(call.n)
    ]


def _delta(index: int, step: Step) -> Delta:
    scores = tuple(
        TokenScore(token, min(0.0, score.logprob), tuple((i, min(0.0, value)) for i, value in score.top))
        for token, score in zip(step.ids, step.logprobs, strict=False)
    )
    return Delta(index, step.ids, scores=scores, finish_reason=step.finish_reason)
