"""An answer asked for in pieces, each continuing the ids before it, of engines that cannot stream all of it.

Pieces grow until one takes about `_PIECE_S`: the first words come soon, a slow engine's come a few at a time,
and a long answer takes few requests. What an engine's prompt cache holds makes them nearly as cheap as a
stream.
Threat model: that of `http`. Does not protect: how long an answer was is seen in the requests.
Source: own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import numpy as np

from transom.serving.engines.base import Call, Delta, Ids
from transom.serving.engines.bounds import Meter

_PIECE_S, _GROWTH = 0.5, 4
_SECOND = 4
_SEEDED_TOKENS = 16  # each piece has a seed of its own, and must be the same another time
_STRIDE = 2_654_435_761  # spreads over 32 bits, so that no two pieces of 16 choices meet
Piece = Callable[[Ids, Ids, int, int, Meter], Awaitable[Delta]]


async def in_pieces(call: Call, piece: Piece, *, ahead: bool = True) -> AsyncGenerator[Delta, None]:
    """The pieces of each choice in turn, whole where the call does not stream. `piece` is given the prompt,
    the ids of the answer so far, how many more to ask for, the choice and what bounds it; with `ahead` the
    next is on its way while one is delivered."""
    prompts = [prompt for prompt in call.prompts for _ in range(call.n)]
    meter = Meter(call, len(prompts))
    for index, prompt in enumerate(prompts):
        pieces: list[Delta] = []
        async with aclosing(_pieces(call, piece, prompt, index, meter, ahead)) as deltas:
            async for delta in deltas:
                pieces.append(delta)
                if call.stream:
                    yield delta
        if not call.stream:
            yield _joined(pieces)


async def _pieces(
    call: Call, piece: Piece, prompt: Ids, index: int, meter: Meter, ahead: bool
) -> AsyncGenerator[Delta, None]:
    """Of one choice."""
    before: Ids = ()
    length, coming = 1, None

    def start() -> asyncio.Task[tuple[Delta, float]]:
        return asyncio.create_task(_timed(partial(piece, prompt, before, length, index, meter)))

    try:
        while index in meter.unfinished:
            coming = coming or start()
            delta, took_s = await coming
            coming = None
            meter.take(delta)
            before += delta.ids
            most = int(_PIECE_S * len(delta.ids) / took_s) if call.seed is None else _SEEDED_TOKENS
            if len(before) == len(delta.ids):
                most = _SECOND  # the first piece read the prompt too, and tells nothing
            length = max(1, min(_GROWTH * length, most))
            length = min(length, call.max_tokens - len(before))
            if ahead and index in meter.unfinished:
                coming = start()
            yield delta
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _timed(work: Callable[[], Awaitable[Delta]]) -> tuple[Delta, float]:
    """With the seconds that it took."""
    started_s = time.monotonic()
    delta = await work()
    return delta, max(time.monotonic() - started_s, 1e-6)


def piece_seed(seed: int, choice: int, position: int) -> int:
    """Another one for each choice and piece, as pieces of one seed would repeat its draws."""
    return (seed + choice + position * _STRIDE) % (2**32 - 1)  # llama.cpp's largest means: at random


def _joined(pieces: list[Delta]) -> Delta:
    told = [one.features_TF for one in pieces if one.features_TF is not None]
    return replace(
        pieces[-1],
        ids=tuple(i for one in pieces for i in one.ids),
        scores=tuple(score for one in pieces for score in one.scores),
        features_TF=np.concatenate(told) if told else None,
    )
