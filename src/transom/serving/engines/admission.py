"""Who may generate now: a queue in the order of arrival, with a budget of tokens and a deadline.

A job takes its place with all the tokens that it may come to, prompt and answer, so that whoever was let in
finds its memory. One that is too large for now holds up those behind it, which would else starve it.
Threat model: clients that ask for much, or wait without end. Does not protect: accounts from each other; that
is the gateway's business.
Source: none.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from transom.errors import RefusedError

_MOST_WAITING = 1024


@dataclass(eq=False)
class _Waiting:
    tokens: int
    loop: asyncio.AbstractEventLoop
    turn: asyncio.Future[None]


class Admission:
    """Places for `rows` jobs, of which `cost`, given the tokens of each, is at most `budget_tokens`.

    A job waits `wait_s` at most. May be used from several event loops.
    """

    def __init__(
        self, rows: int, budget_tokens: int, cost: Callable[[Sequence[int]], int], wait_s: float
    ) -> None:
        self._rows, self._budget_tokens, self._cost, self._wait_s = rows, budget_tokens, cost, wait_s
        self._lock = threading.Lock()
        self._running: list[int] = []
        self._queue: deque[_Waiting] = deque()

    @asynccontextmanager
    async def place(self, tokens: int) -> AsyncGenerator[None, None]:
        """A place while the block runs. Raises RefusedError: 400 for a job that never fits, 429 where too
        many wait, 503 when it has waited for too long."""
        if self._cost([tokens]) > self._budget_tokens:
            raise RefusedError(
                f"{tokens} tokens of prompt and answer are more than the engine's budget of "
                f"{self._budget_tokens}; ask for less, or raise --cache-tokens",
                code="context_length_exceeded",
            )
        waiting = self._enter(tokens)
        if waiting is not None:
            try:
                async with asyncio.timeout(self._wait_s):
                    await waiting.turn
            except BaseException as error:
                self._withdraw(waiting)
                if isinstance(error, TimeoutError):
                    raise RefusedError(
                        f"no place came free in {self._wait_s:g} s; try again later",
                        status=503,
                        code="engine_busy",
                    ) from None
                raise
        try:
            yield
        finally:
            self._leave(tokens)

    def _enter(self, tokens: int) -> _Waiting | None:
        """None where there is a place at once."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if not self._queue and self._fits(tokens):
                self._running.append(tokens)
                return None
            if len(self._queue) >= _MOST_WAITING:
                raise RefusedError(
                    "too many requests are waiting; try again later", status=429, code="engine_busy"
                )
            self._queue.append(waiting := _Waiting(tokens, loop, loop.create_future()))
            return waiting

    def _withdraw(self, waiting: _Waiting) -> None:
        """Leave the queue, or the place that was given meanwhile."""
        with self._lock:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._admit()
                return
        self._leave(waiting.tokens)

    def _leave(self, tokens: int) -> None:
        with self._lock:
            self._running.remove(tokens)
            self._admit()

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].tokens):
            waiting = self._queue.popleft()
            try:
                waiting.loop.call_soon_threadsafe(_tell, waiting.turn)
            except RuntimeError:  # its loop is gone, and with it whoever waited
                continue
            self._running.append(waiting.tokens)

    def _fits(self, tokens: int) -> bool:
        running = [*self._running, tokens]
        return len(running) <= self._rows and self._cost(running) <= self._budget_tokens


def _tell(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
