"""An answer asked for in pieces, each continuing the ids before it, of engines that cannot stream all of it.

Pieces grow with the answer: the first words come soon, and a long answer takes few requests. What an engine's
prompt cache holds makes them nearly as cheap as a stream.
Threat model: that of `http`. Does not protect: how long an answer was is seen in the requests.
Source: own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

import numpy as np

from transom.serving.engines.base import Call, Delta, Ids
from transom.serving.engines.bounds import Meter

_PIECE_TOKENS = 16
_STRIDE = 2_654_435_761  # spreads over 32 bits, so that no two pieces of 16 choices meet
Piece = Callable[[Ids, Ids, int, Meter], Awaitable[Delta]]


async def in_pieces(call: Call, piece: Piece) -> AsyncGenerator[Delta, None]:
    """The pieces of each choice in turn, whole where the call does not stream. `piece` is given the prompt,
    the ids of the answer so far, the choice and what bounds it."""
    prompts = [prompt for prompt in call.prompts for _ in range(call.n)]
    meter = Meter(call, len(prompts))
    for index, prompt in enumerate(prompts):
        pieces: list[Delta] = []
        while index in meter.unfinished:
            before = tuple(i for one in pieces for i in one.ids)
            pieces.append(await piece(prompt, before, index, meter))
            meter.take(pieces[-1])
            if call.stream:
                yield pieces[-1]
        if not call.stream:
            yield _joined(pieces)


def piece_tokens(call: Call, before: Ids) -> int:
    """How many tokens to ask for at most after these."""
    return min(max(1, len(before)), _PIECE_TOKENS, call.max_tokens - len(before))


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
