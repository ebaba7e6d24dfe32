"""What the gateway asks of an engine, and the careful HTTP underneath every client.

Threat model: the engine's host reads all it is sent and may answer anything: nothing, garbage, without end,
or with a redirect. Answers are bounded, checked, and never quoted in an error; redirects are never
followed; plain HTTP is spoken to loopback only.
Does not protect: what is in a call has left; deciding what may be in it is the gateway's business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import aiohttp

from transom.errors import (
    EngineDownError,
    EngineError,
    EngineGarbageError,
    EngineTimeoutError,
    MisconfiguredError,
)

FinishReason = Literal["stop", "length", "content_filter"]
_ANSWER_BYTES = 64 << 20
_EVENT_BYTES = 4 << 20
_MAX_TOKEN_ID = 2**31
_STALE_CONNECTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request to an engine: `prompts` of token ids for engines that take ids, else chat `messages`.

    `tenant` is an opaque name that separates prefix caches; `stop_ids` end an answer. None leaves the
    choice to the engine.
    """

    prompts: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    messages: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    max_tokens: int
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    logprobs: int | None = None
    stop_ids: tuple[int, ...] = ()
    stream: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Natural log-probability of a generated token and of the likeliest alternatives.

    A token is an id, or its text where the engine speaks text.
    """

    token: int | str
    logprob: float
    top: tuple[tuple[int | str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of choice `index` (prompt number * n + choice): ids, or text from a text engine.

    The last piece of a choice has a `finish_reason`. `usage` is (prompt, completion) tokens of the whole
    call, from engines that count.
    """

    index: int
    ids: tuple[int, ...] = ()
    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    finish_reason: FinishReason | None = None
    usage: tuple[int, int] | None = None


class Engine(Protocol):
    """A client of one engine. Closing the generator of `generate` closes the connection and so cancels."""

    @property
    def takes(self) -> Literal["ids", "text"]:
        """Whether calls carry token ids or messages."""
        ...

    async def probe(self) -> EngineCard:
        """Which model is served, and how much fits. Raises EngineError."""
        ...

    def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """Pieces of all choices as they come; for a call that does not stream, one piece a choice."""
        ...

    async def close(self) -> None:
        """Close idle connections; the client opens new ones when used again."""
        ...


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What an engine says of itself: the model's name, who serves it, its context in tokens if it tells."""

    model: str
    owner: str = ""
    context_tokens: int | None = None


class EngineHttp:
    """JSON over HTTP to one base URL, with every failure turned into an EngineError.

    `timeout_s` bounds the silence of the engine, `total_s` the whole answer.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0, total_s: float = 3600.0
    ) -> None:
        self.url = check_url(url)
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

    async def close(self) -> None:
        """Close idle connections."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, data: bytes | None
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        try:
            async with await self._open(method, self.url + path, data) as response:
                if response.status != 200:
                    raise _refusal(response.status)
                yield response
        except TimeoutError:
            raise EngineTimeoutError("the engine did not answer in time; is it overloaded?") from None
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

    async def _open(self, method: str, url: str, data: bytes | None) -> aiohttp.ClientResponse:
        """Send, and send again where a kept connection turns out to have been closed by the engine."""
        for _ in range(_STALE_CONNECTIONS):
            try:
                return await self._session().request(method, url, data=data, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                continue
        return await self._session().request(method, url, data=data, allow_redirects=False)

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


def check_url(url: str) -> str:
    """The base URL without a trailing slash or `/v1`. Plain HTTP is refused beyond loopback."""
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
        raise MisconfiguredError(
            "the engine's URL must look like http://127.0.0.1:8000 or https://host, without user, query or "
            f"fragment; got scheme {parts.scheme!r}, host {host!r}"
        )
    if parts.scheme == "http" and not _is_loopback(host):
        raise MisconfiguredError(
            f"plain HTTP to {host!r} would let the network read prompts; use https, or a tunnel to loopback"
        )
    return url.rstrip("/").removesuffix("/v1")


def token_ids(value: object) -> tuple[int, ...]:
    """A list of token ids as an engine sent it. Raises EngineGarbageError."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < _MAX_TOKEN_ID for i in value):
        raise EngineGarbageError("the engine sent no token ids; does it support return_token_ids?")
    return tuple(value)


def garbage(error: Exception) -> EngineGarbageError:
    """For an answer that lacks a field or has one of the wrong type; quotes nothing of it."""
    return EngineGarbageError(f"the engine's answer is outside its dialect ({type(error).__name__})")


def finish_reason(value: object) -> FinishReason | None:
    """The reason as OpenAI names it; anything unknown that ends an answer counts as stop."""
    if value is None:
        return None
    if value == "length":
        return "length"
    return "content_filter" if value == "content_filter" else "stop"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def _refusal(status: int) -> EngineError:
    if 300 <= status < 400:
        return EngineGarbageError(
            f"the engine answered with a redirect (HTTP {status}), which is never followed"
        )
    hints = {
        400: "it refuses the request; is the prompt longer than its context?",
        401: "it wants an API key; name the key file",
        403: "it rejects the API key",
        404: "it lacks this path or model; check the engine kind and the model's name",
        429: "it is busy; try again later",
    }
    return EngineError(f"the engine answered HTTP {status}: {hints.get(status, 'its log says more')}")
