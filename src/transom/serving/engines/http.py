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
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from transom.errors import (
    EngineBusyError,
    EngineDownError,
    EngineError,
    EngineGarbageError,
    EngineTimeoutError,
    EvidenceError,
)
from transom.serving.engines.base import Delta, check_url, garbage

if TYPE_CHECKING:
    from transom.enclave.pin import KeyPin

_ANSWER_BYTES = 64 << 20
_EVENT_BYTES = 4 << 20
_STALE_CONNECTIONS = 2
_RETRY_S = 3600

Parse = Callable[[Any], list[Delta]]


class Guard(Protocol):
    """Says which TLS key an engine must hold. aiohttp keeps connections apart by the very pin object."""

    async def ready(self) -> KeyPin:
        """The pin for the next request, asked before each. Raises EvidenceError; then nothing is sent."""
        ...


@dataclass(frozen=True)
class Pinned:
    """The guard that always names the same key."""

    pin: KeyPin

    async def ready(self) -> KeyPin:
        """See `Guard.ready`."""
        return self.pin


class EngineHttp:
    """JSON over HTTP to one base URL, with every failure turned into an EngineError or an EvidenceError.

    `timeout_s` bounds the silence of the engine, `total_s` the whole answer.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 120.0,
        total_s: float = 3600.0,
        guard: Guard | None = None,
    ) -> None:
        self.url = check_url(url, pinned=guard is not None)
        self._guard = guard
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(
            total=total_s, sock_connect=min(10.0, timeout_s), sock_read=timeout_s
        )
        self._opened: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self, path: str) -> Any:
        """The JSON at `path`."""
        async with self._request("GET", path, None) as response:
            return await _read_json(response)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer to a JSON body."""
        async with self._request("POST", path, _dump(body)) as response:
            return await _read_json(response)

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The server-sent events that answer a JSON body, until `[DONE]` or the end of the stream."""
        async with self._request("POST", path, _dump(body)) as response:
            size_bytes, pending = 0, b""
            async for chunk in response.content.iter_any():
                size_bytes += len(chunk)
                *lines, pending = (pending + chunk).split(b"\n")
                if size_bytes > _ANSWER_BYTES or len(pending) > _EVENT_BYTES:
                    raise EngineGarbageError("the engine's stream is larger than any answer; it was cut off")
                for line in lines:
                    data = line[5:].strip() if line.startswith(b"data:") else b""
                    if data == b"[DONE]":
                        return
                    if data:
                        yield _event(data)

    async def answer(
        self, path: str, body: Mapping[str, Any], choices: int, whole: Parse, chunk: Parse
    ) -> AsyncGenerator[Delta, None]:
        """The pieces of an answer, each of its `choices` brought to its end, or an EngineError.

        `whole` reads an answer in one piece, `chunk` an event, as `body["stream"]` has asked for.
        """
        if not body["stream"]:
            deltas = _parsed(whole, await self.post(path, body))
            if sorted(delta.index for delta in deltas) != list(range(choices)):
                raise EngineGarbageError(
                    f"the engine answered {len(deltas)} choices, {choices} were asked for"
                )
            if any(delta.finish_reason is None for delta in deltas):
                raise EngineGarbageError("the engine left an answer unfinished")
            for delta in deltas:
                yield delta
            return
        unfinished = set(range(choices))
        async with aclosing(self.events(path, body)) as events:
            async for event in events:
                for delta in _parsed(chunk, event):
                    if not 0 <= delta.index < choices:
                        raise EngineGarbageError("the engine answered a choice that nobody asked for")
                    if delta.finish_reason is not None:
                        unfinished.discard(delta.index)
                    yield delta
        if unfinished:
            raise EngineDownError("the engine's stream ended before the answer did")

    async def close(self) -> None:
        """Close idle connections."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, data: bytes | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        pin = await self._guard.ready() if self._guard is not None else True
        try:
            async with await self._open(method, self.url + path, data, pin) as response:
                if response.status != 200:
                    raise _refusal(response.status, response.headers.get("Retry-After", ""))
                yield response
        except TimeoutError:
            raise EngineTimeoutError("the engine did not answer in time; is it overloaded?") from None
        except aiohttp.ServerFingerprintMismatch:
            raise EvidenceError(
                f"the TLS key of the engine at {self.url} is not the pinned or attested one; nothing was sent"
            ) from None
        except aiohttp.ClientPayloadError:
            raise EngineDownError("the engine's connection broke in the middle of an answer") from None
        except (aiohttp.ClientConnectionError, OSError) as error:
            name = type(error).__name__
            raise EngineDownError(
                f"no connection to the engine at {self.url} ({name}); is it running?"
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineGarbageError(
                f"the engine's answer is not HTTP as expected ({type(error).__name__})"
            ) from None

    async def _open(
        self, method: str, url: str, data: bytes | None, pin: KeyPin | bool
    ) -> aiohttp.ClientResponse:
        """Send, and send again where a kept connection turns out to have been closed by the engine."""
        for _ in range(_STALE_CONNECTIONS):
            try:
                return await self._session().request(method, url, data=data, allow_redirects=False, ssl=pin)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                continue
        return await self._session().request(method, url, data=data, allow_redirects=False, ssl=pin)

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._opened is None or self._loop is not loop:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self._headers}
            connector = aiohttp.TCPConnector(limit=0)
            self._opened = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._loop = loop
        return self._opened


def _parsed(parse: Parse, answer: Any) -> list[Delta]:
    try:
        return parse(answer)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise garbage(error) from None


def _dump(body: Mapping[str, Any]) -> bytes:
    return json.dumps({key: value for key, value in body.items() if value is not None}).encode()


async def _read_json(response: aiohttp.ClientResponse) -> Any:
    size_bytes, chunks = 0, []
    async for chunk in response.content.iter_any():
        size_bytes += len(chunk)
        if size_bytes > _ANSWER_BYTES:
            raise EngineGarbageError(
                f"the engine's answer is larger than {_ANSWER_BYTES} bytes; it was cut off"
            )
        chunks.append(chunk)
    try:
        return json.loads(b"".join(chunks))
    except (ValueError, RecursionError):
        raise EngineGarbageError(f"the engine's answer ({size_bytes} bytes) is not JSON") from None


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise EngineGarbageError(f"an event of the engine's stream ({len(data)} bytes) is not JSON") from None
    if not isinstance(event, dict):
        raise EngineGarbageError("an event of the engine's stream is not an object")
    if event.get("error"):
        raise EngineError("the engine reported an error in mid-stream; its log says more")
    return event


def _refusal(status: int, retry_after: str = "") -> EngineError:
    if 300 <= status < 400:
        return EngineGarbageError(
            f"the engine answered with a redirect (HTTP {status}), which is never followed"
        )
    hints = {
        400: "it refuses the request; is the prompt longer than its context, or are embeddings switched off "
        "there, or of another width?",
        401: "it wants an API key; name the key file",
        403: "it rejects the API key",
        404: "it lacks this path or model; check the engine kind and the model's name",
        413: "it takes no request of this size",
    }
    if status == 429:
        return EngineBusyError(
            "the engine is busy (HTTP 429); try again later", retry_after_s=retry_after_s(retry_after)
        )
    return EngineError(f"the engine answered HTTP {status}: {hints.get(status, 'its log says more')}")


def retry_after_s(value: str) -> int | None:
    """Seconds from a `Retry-After` header, a number or an HTTP date; at most an hour, None if unreadable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(int("0" + value.lstrip("0")[:9]), _RETRY_S)
    try:
        moment = parsedate_to_datetime(value)
        wait_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0, math.ceil(wait_s)), _RETRY_S)
