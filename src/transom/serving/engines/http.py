"""The careful HTTP underneath every client of an engine, and the guard that says which TLS key it must hold.

Threat model: the engine's host may answer nothing, garbage, without end, or with a redirect; the network may
put another server in its place. Answers are bounded, checked, and never quoted in an error; redirects are
never followed. With a guard, each new connection is checked against the guard's key after the TLS handshake
and before the first byte of a request, and a kept connection serves only the pin it was opened under.
Does not protect: without a guard, https trusts every certificate authority of this machine.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from transom.errors import (
    EngineDownError,
    EngineError,
    EngineGarbageError,
    EngineTimeoutError,
    MisconfiguredError,
)
from transom.net.http import JSON, Answer, BrokenError, LongAnswerError, Site
from transom.net.urls import check_url
from transom.serving.engines.base import Call, Delta, EngineCard, Json
from transom.serving.engines.bounds import Meter, Silence
from transom.serving.engines.checks import garbage, loads
from transom.serving.engines.refusal import refusal
from transom.serving.engines.sse import EventParser

if TYPE_CHECKING:
    from transom.net.pin import KeyPin

_ANSWER_BYTES = 64 << 20
_PLAIN_BYTES = 16 << 20  # parsed in one go, while others wait
_CARD_BYTES = 4 << 20
_TAIL_S = 1.0  # for the token counts that may follow the last piece
_TURN_BYTES = 4096
_TOTAL_S = 3600.0  # of a stream
_FRESH_S = 5.0  # for so long after an answer an engine is taken to be there


class Guard(Protocol):
    """Says which TLS key an engine must hold. Connections are kept apart by the very pin object."""

    async def ready(self) -> KeyPin:
        """The pin for the next request, asked before each. Raises EvidenceError; then nothing is sent."""


@dataclass(frozen=True)
class Pinned:
    """The guard that always names the same key."""

    pin: KeyPin

    async def ready(self) -> KeyPin:
        """See `Guard.ready`."""
        return self.pin


class Common(TypedDict, total=False):
    """What every client of an engine takes beside the URL."""

    model: str | None
    api_key: str | None
    timeout_s: float
    guard: Guard | None


class HttpEngine:
    """What the clients share: JSON over HTTP to one base URL, and a card that is asked for once.

    `model` is the name to ask for (None: the first that the engine lists). `timeout_s` bounds the engine's
    silence: until all headers are there, then between two pieces of an answer (comments, pings and empty
    pieces are none), or until a plain answer is whole. A `guard` names the TLS key that the engine must hold.
    Every failure becomes an EngineError or an EvidenceError.
    """

    _path = "/v1/completions"

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        guard: Guard | None = None,
    ) -> None:
        self._url = check_url(url, pinned=guard is not None)
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise MisconfiguredError("the engine's API key must be printable ASCII characters")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._site = Site(self._url, key, connect_s=min(10.0, timeout_s))
        self._model = model
        self._guard = guard
        self._timeout_s = timeout_s
        self._card: EngineCard | None = None
        self._answered_s = -math.inf

    async def probe(self) -> EngineCard:
        """See `Engine.probe`. Raises MisconfiguredError too, for an engine that is too old."""
        if self._card is None:
            self._card = await self._ask_card()
        else:
            await self._reach()
        return self._card

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`. Each choice is brought to its end, or an EngineError raised."""
        body = self._body(call, self._card or await self.probe())
        meter = Meter(call, max(1, len(call.embeds or call.prompts)) * call.n)
        if not call.stream:
            deltas = self._parsed(await self._post(self._path, body, meter.plain_bytes), call)
            if sorted(delta.index for delta in deltas) != list(range(meter.choices)):
                raise EngineGarbageError(
                    f"the engine answered {len(deltas)} choices, {meter.choices} were asked for"
                )
            if any(delta.finish_reason is None for delta in deltas):
                raise EngineGarbageError("the engine left an answer unfinished")
            for delta in deltas:
                meter.take(delta)
                yield delta
            return
        async with aclosing(self._stream(body, call, meter)) as pieces:
            try:
                async for delta in pieces:
                    yield delta
            except (EngineTimeoutError, EngineDownError):
                if meter.unfinished:
                    raise
        meter.close()

    async def close(self) -> None:
        """See `Engine.close`."""
        self._site.close()

    # What a dialect says

    async def _ask_card(self) -> EngineCard:
        raise NotImplementedError

    def _body(self, call: Call, card: EngineCard) -> Json:
        raise NotImplementedError

    def _deltas(self, answer: Json, call: Call) -> list[Delta]:
        """The pieces in an answer, or in an event of a stream where `call` asks for one."""
        raise NotImplementedError

    # What all have in common

    async def _reach(self) -> None:
        """Raises EngineDownError where nothing listens, and EvidenceError; asked before words are drawn.

        An engine that answered within the last seconds is not asked. Nothing is sent: a connection is opened,
        and closed again.
        """
        if self._guard is not None:
            await self._guard.ready()
        if time.monotonic() - self._answered_s < _FRESH_S:
            return
        try:
            await self._site.reach()
        except OSError as error:  # TimeoutError is one
            raise self._down(error) from None
        self._answered_s = time.monotonic()

    async def _get(self, path: str) -> Any:
        return loads(await self._whole("GET", path, None, _CARD_BYTES))

    async def _post(self, path: str, body: Mapping[str, Any], limit_bytes: int = _PLAIN_BYTES) -> Any:
        return loads(await self._whole("POST", path, _dump(body), min(limit_bytes, _PLAIN_BYTES)))

    def _parsed(self, answer: Any, call: Call) -> list[Delta]:
        try:
            return self._deltas(answer, call)
        except (TypeError, LookupError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            raise garbage(error) from None

    async def _stream(self, body: Mapping[str, Any], call: Call, meter: Meter) -> AsyncGenerator[Delta, None]:
        """The pieces of a stream; once every choice has ended, what follows is waited for but briefly."""
        silence = Silence(self._timeout_s)
        async with aclosing(self._events(body, meter, silence)) as events:
            async for event in events:
                for delta in self._parsed(event, call):
                    if meter.take(delta):
                        silence.broken()
                    yield delta
                if not meter.unfinished:
                    silence.limit_s = min(silence.limit_s, _TAIL_S)

    async def _events(
        self, body: Mapping[str, Any], meter: Meter, silence: Silence
    ) -> AsyncGenerator[Json, None]:
        """The server-sent events that answer a JSON body, until `[DONE]` or the end of the stream."""
        parser, size_bytes = EventParser(meter.event_bytes), 0
        async with self._request("POST", self._path, _dump(body)) as response:
            ends_s = time.monotonic() + _TOTAL_S
            while chunk := await silence.wait(response.read()):
                if time.monotonic() > ends_s:
                    raise TimeoutError
                size_bytes += len(chunk)
                if size_bytes > min(meter.answer_bytes, _ANSWER_BYTES):
                    raise EngineGarbageError("the engine's stream is larger than any answer; it was cut off")
                for start in range(0, len(chunk), _TURN_BYTES):
                    for data in parser.feed(chunk[start : start + _TURN_BYTES]):
                        if data.strip() == b"[DONE]":
                            return
                        if data.strip():
                            yield _event(data)
                    if start + _TURN_BYTES < len(chunk):
                        await asyncio.sleep(0)  # a fast stream leaves room for others

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, data: bytes | None, kind: str = JSON
    ) -> AsyncGenerator[Answer, None]:
        pin = await self._guard.ready() if self._guard is not None else None
        response = None
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._site.ask(self._site.request(method, path, data, kind), pin)
            self._answered_s = time.monotonic()
            if response.status != 200:
                raise refusal(response.status, response.headers.get("retry-after", ""))
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise EngineGarbageError("the engine's answer is compressed, though plain was asked for")
            yield response
        except TimeoutError:
            raise EngineTimeoutError("the engine did not answer in time; is it overloaded?") from None
        except BrokenError as error:
            if response is None:
                raise self._down(error) from None
            self._answered_s = -math.inf
            raise EngineDownError("the engine's connection broke in the middle of an answer") from None
        except OSError as error:
            raise self._down(error) from None
        except ValueError as error:
            raise EngineGarbageError(f"the engine's answer is not HTTP as expected ({error})") from None
        finally:
            if response is not None:
                self._site.release(response)

    def _down(self, error: Exception) -> EngineDownError:
        self._answered_s = -math.inf
        name = type(error).__name__
        return EngineDownError(f"no connection to the engine at {self._url} ({name}); is it running?")

    async def _whole(
        self, method: str, path: str, data: bytes | None, limit_bytes: int, kind: str = JSON
    ) -> bytes:
        """An answer in one piece; it must be there within the timeout after its headers."""
        async with self._request(method, path, data, kind) as response, asyncio.timeout(self._timeout_s):
            try:
                return await response.whole(limit_bytes)
            except LongAnswerError:
                raise EngineGarbageError(
                    f"the engine's answer is larger than {limit_bytes} bytes; it was cut off"
                ) from None


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()


def _event(data: bytes) -> Json:
    event = loads(data)
    if not isinstance(event, dict):
        raise EngineGarbageError("an event of the engine's stream is not an object")
    if event.get("error"):
        raise EngineError("the engine reported an error in mid-stream; its log says more")
    return event
