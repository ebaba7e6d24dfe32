"""What an engine may send for one call: bytes, tokens, characters; and how long it may be silent.

Every bound follows from what was asked for. An engine of token ids is held to `max_tokens` exactly. One of
text is not: its tokens are not ours to count, so it may send TOKEN_CHARS characters for each, more than the
longest token of any vocabulary known to us, and SLACK_CHARS besides; hidden reasoning counts.
Threat model: a host that answers more than was asked for, or keeps a stream open with nothing in it.
Does not protect: what is within the bounds may still be nonsense, and slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from transom.errors import EngineDownError, EngineGarbageError
from transom.serving.engines.base import Call, Delta

TOKEN_CHARS = 128
SLACK_CHARS = 1024
_EVENT_BYTES = 1 << 18  # JSON is parsed in one go, and others wait: some tens of milliseconds at most
_TOKEN_BYTES = 2048  # JSON around one token of text, all of it escaped
_ALTERNATIVE_BYTES = 512
_FEATURE_BYTES = 6  # float32 in base64
_PLAIN_BYTES, _PLAIN_TOKEN_BYTES = 1 << 16, 1024  # of an answer in one piece
_PLAIN_TOKENS = 1024  # an answer that may have more is asked for as a stream
_PROMPT_TOKEN_BYTES = 16  # vLLM repeats the prompt's ids, llama.cpp its text

T = TypeVar("T")


def fits_plain(tokens: int, alternatives: int | None, features: int = 0) -> bool:
    """Whether an answer of so many tokens, with alternatives and features for each, may come in one piece."""
    return tokens * (4 + (alternatives or 0) + features // 32) <= 4 * _PLAIN_TOKENS


@dataclass
class Silence:
    """Seconds for which the engine has let us wait since it last sent something of use."""

    limit_s: float
    waited_s: float = 0.0

    async def wait(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises TimeoutError when all waiting since the last use exceeds the limit."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        async with asyncio.timeout(self.limit_s - self.waited_s):
            result = await work
        self.waited_s += loop.time() - start_s
        return result

    def broken(self) -> None:
        """Something of use came."""
        self.waited_s = 0.0


@dataclass
class Meter:
    """Holds the pieces of one answer to what was asked for; `unfinished` are the choices still open.

    `event_bytes` bounds an event of a stream, `answer_bytes` the whole of one (`http` caps that), and
    `plain_bytes` an answer that comes in one piece.
    """

    call: Call
    choices: int

    def __post_init__(self) -> None:
        call = self.call
        tokens = self.choices * call.max_tokens
        prompt_bytes = _PROMPT_TOKEN_BYTES * call.n * sum(map(len, call.prompts))
        beside_bytes = _ALTERNATIVE_BYTES * (call.logprobs or 0) + _FEATURE_BYTES * call.features
        self.event_bytes = _EVENT_BYTES + prompt_bytes
        self.answer_bytes = self.event_bytes + tokens * (_TOKEN_BYTES + beside_bytes)
        self.plain_bytes = _PLAIN_BYTES + prompt_bytes + tokens * (_PLAIN_TOKEN_BYTES + beside_bytes)
        self.unfinished = set(range(self.choices))
        self._most_chars = TOKEN_CHARS * call.max_tokens + SLACK_CHARS
        self._tokens = [0] * self.choices
        self._chars = [0] * self.choices

    def take(self, delta: Delta) -> bool:
        """Count a piece; whether it brought anything. Raises EngineGarbageError beyond a bound."""
        index = delta.index
        if not 0 <= index < self.choices:
            raise EngineGarbageError("the engine answered a choice that nobody asked for")
        if index not in self.unfinished:
            return False
        self._tokens[index] += max(len(delta.ids), len(delta.scores))
        self._chars[index] += len(delta.text) + delta.hidden_chars
        if self._tokens[index] > self.call.max_tokens or self._chars[index] > self._most_chars:
            raise EngineGarbageError(
                f"the engine sent more than the {self.call.max_tokens} tokens that were asked for; "
                "does it know the field that limits an answer (--engine-limit-field)?"
            )
        if delta.finish_reason is not None:
            self.unfinished.discard(index)
        return bool(delta.ids or delta.text or delta.hidden_chars or delta.finish_reason)

    def close(self) -> None:
        """Raises EngineDownError for an answer that was left unfinished."""
        if self.unfinished:
            raise EngineDownError("the engine's stream ended before the answer did")
