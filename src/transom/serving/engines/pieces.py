"""An answer asked for in pieces, each continuing the ids before it, of engines that cannot stream all of it.

Pieces grow until one takes about `_PIECE_S`: the first words come soon, a slow engine's come a few at a time,
and a long answer takes few requests. What an engine's prompt cache holds makes them nearly as cheap as a
stream.
Threat model: that of `http`. Does not protect: how long an answer was is seen in the requests.
Source: own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

import numpy as np

from transom.serving.engines.base import Call, Delta, Ids
from transom.serving.engines.bounds import Meter

_PIECE_S = 0.25
_STRIDE = 2_654_435_761  # spreads over 32 bits, so that no two pieces of 16 choices meet
Piece = Callable[[Ids, Ids, int, int, Meter], Awaitable[Delta]]


async def in_pieces(call: Call, piece: Piece) -> AsyncGenerator[Delta, None]:
    """The pieces of each choice in turn, whole where the call does not stream. `piece` is given the prompt,
    the ids of the answer so far, how many more to ask for, the choice and what bounds it."""
    prompts = [prompt for prompt in call.prompts for _ in range(call.n)]
    meter = Meter(call, len(prompts))
    for index, prompt in enumerate(prompts):
        pieces: list[Delta] = []
        before: Ids = ()
        length = 1
        while index in meter.unfinished:
            started_s = time.monotonic()
            pieces.append(await piece(prompt, before, length, index, meter))
            meter.take(pieces[-1])
            got, took_s = len(pieces[-1].ids), time.monotonic() - started_s
            before += pieces[-1].ids
            if len(pieces) > 1:  # the first one reads the prompt
                length = max(1, min(2 * length, int(_PIECE_S * got / max(took_s, 1e-6))))
            length = min(length, call.max_tokens - len(before))
            if call.stream:
                yield pieces[-1]
        if not call.stream:
            yield _joined(pieces)


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
