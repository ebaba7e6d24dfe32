"""Kept HTTP/1.1 connections to one site: one request at a time on each, answers parsed by httptools.

A general client spends more on a request than tokenising and sanitising together, so the few things that a
client of ours needs stand here: no redirects, no cookies, no proxies, no compression. A request is sent
again, once, only where a kept connection turns out to have been closed before any byte of an answer.
Threat model: the site, and the network before it. Headers are bounded here, bodies by whoever reads them;
what nobody reads is not taken from the network. A byte that no request asked for ends its connection. With a
pin, the key is checked after the TLS handshake and before the first byte; a kept connection serves only the
pin it was opened for.
Does not protect: what an answer holds is believed by nobody here, and checked by nobody here.
Source: RFC 9112 (HTTP/1.1), sections 6.3 (length of a body) and 9.3.1 (resending).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httptools
from aiohappyeyeballs import start_connection

if TYPE_CHECKING:
    from transom.net.pin import KeyPin

_HEADERS = "Accept: */*\r\nAccept-Encoding: identity\r\n"
JSON = "application/json"
_HEAD_BYTES = 64 * 1024
_WAITING_BYTES = 256 * 1024  # of a body that nobody reads, before the network has to wait


class BrokenError(OSError):
    """The connection ended before its answer did."""


class LongAnswerError(ValueError):
    """An answer was longer than was to be read."""


class Answer(asyncio.Protocol):
    """A connection, and the answer that came on it last: its head, and its body piece by piece.

    Give it back with `Site.release`, read or not. `complete`: the answer has come whole; `closed`: no other
    will come.
    """

    def __init__(self, pin: KeyPin | None) -> None:
        self.pin = pin
        self.complete, self.closed = True, False
        self.touched = False  # a byte came since the request went out
        self._paused = False
        self._transport: Any = None
        self._came = asyncio.Event()  # something to look at: bytes, or the end

    def send(self, request: bytes) -> None:
        """Send a request; its answer follows."""
        self.complete = self.touched = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, dict[str, str]()
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = self._head_bytes = 0
        self._headed = self._delimited = False
        self._error: Exception | None = BrokenError() if self.closed else None
        self._transport.write(request)

    async def head(self) -> None:
        """Wait for the head of the answer."""
        while not self._headed:
            await self._more()

    async def read(self) -> bytes:
        """The next bytes of the body; none at its end. Raises BrokenError; ValueError if it is no HTTP."""
        while not self._pieces:
            if self.complete:
                return b""
            await self._more()
        pieces, self._waiting_bytes = b"".join(self._pieces), 0
        self._pieces.clear()
        if self._paused and not self.closed:
            self._paused = False
            self._transport.resume_reading()
        return pieces

    async def whole(self, limit_bytes: int) -> bytes:
        """The rest of the body. Raises LongAnswerError beyond the limit, and what `read` raises."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > limit_bytes:
                raise LongAnswerError(f"longer than {limit_bytes} bytes")
        return bytes(body)

    def close(self) -> None:
        """End the connection, whatever state it is in."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        if self._error is not None:
            raise self._error
        self._came.clear()
        await self._came.wait()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nobody asked
            self.close()
            return
        self.touched = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ValueError(type(error).__name__))
        if not self._headed:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._fail(ValueError("headers without end"))
        if self._waiting_bytes > _WAITING_BYTES and not (self._paused or self.closed):
            self._paused = True
            self._transport.pause_reading()
        self._came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.complete:
            return
        if self._headed and not self._delimited and exc is None:
            self.complete = True  # a body of no stated length ends with its connection
        elif self._error is None:
            self._error = BrokenError()
        self._came.set()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self.close()

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._headed:  # an answer after the answer
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:  # an interim answer; the real one follows
            self.headers.clear()
            return
        self._headed = True
        self._delimited = "content-length" in self.headers or "transfer-encoding" in self.headers

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self.complete = True
            self.closed = self.closed or not self._parser.should_keep_alive()


class Site:
    """One base URL (checked before): its requests as bytes, its connections in the running event loop.

    `headers` are lines of every request, each ended by CRLF. `connect_s` bounds the opening of a connection.
    Raises OSError where none is to be had, BrokenError, ValueError for what is no HTTP, and EvidenceError for
    another key than the pin's.
    """

    def __init__(
        self, url: str, headers: str = "", *, connect_s: float, any_certificate: bool = False
    ) -> None:
        parts = urlsplit(url)
        self._path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}{_HEADERS}"
        tls = parts.scheme == "https"
        self._host = str(parts.hostname)
        self._port = parts.port or (443 if tls else 80)
        self._connect_s = connect_s
        self._tls = (_unchecked() if any_certificate else ssl.create_default_context()) if tls else None
        self._idle: list[Answer] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def request(self, method: str, path: str, data: bytes | None = None, kind: str = JSON) -> bytes:
        """A whole request; `data` is of the content type `kind`."""
        length = b"" if data is None else b"Content-Length: %d\r\n" % len(data)
        head = f"{method} {self._path}{path}{self._head}Content-Type: {kind}\r\n".encode()
        return head + length + b"\r\n" + (data or b"")

    async def ask(self, request: bytes, pin: KeyPin | None) -> Answer:
        """Send a whole request; the head of its answer."""
        kept = self._kept(pin)
        if kept is not None:
            try:
                return await _asked(kept, request)
            except BrokenError:
                if kept.touched:
                    raise
        return await _asked(await self._opened(pin), request)

    def release(self, answer: Answer) -> None:
        """Done with an answer: its connection is kept if all of it was read, and closed otherwise."""
        if answer.complete and not answer.closed:
            self._idle.append(answer)
        else:
            answer.close()

    def close(self) -> None:
        """Close idle connections; new ones are opened when the site is used again."""
        while self._idle:
            self._idle.pop().close()

    async def reach(self) -> None:
        """Open a connection and close it again."""
        (await self._socket()).close()

    async def _socket(self) -> socket.socket:
        """Connected to the first address that answers; the next is tried beside a slow one (RFC 8305)."""
        async with asyncio.timeout(self._connect_s):
            infos = await asyncio.get_running_loop().getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM
            )
            return await start_connection(infos, happy_eyeballs_delay=0.25)

    def _kept(self, pin: KeyPin | None) -> Answer | None:
        loop, self._loop = self._loop, asyncio.get_running_loop()
        self._idle = [one for one in self._idle if self._loop is loop and not one.closed]
        kept = next((one for one in reversed(self._idle) if one.pin is pin), None)
        if kept is not None:
            self._idle.remove(kept)
        return kept

    async def _opened(self, pin: KeyPin | None) -> Answer:
        context = self._tls
        if context is not None and pin is not None:  # the pin stands in for names and authorities
            context = _unchecked()
        sock = await self._socket()
        async with asyncio.timeout(self._connect_s):
            transport, connection = await asyncio.get_running_loop().create_connection(
                partial(Answer, pin), sock=sock, ssl=context, server_hostname=self._host if context else None
            )
        if pin is not None:
            tls = transport.get_extra_info("ssl_object")
            try:
                pin.require(tls.getpeercert(binary_form=True) if tls is not None else None)
            except BaseException:
                transport.abort()
                raise
        return connection


async def _asked(connection: Answer, request: bytes) -> Answer:
    try:
        connection.send(request)
        await connection.head()
    except BaseException:
        connection.close()
        raise
    return connection


def _unchecked() -> ssl.SSLContext:
    """TLS to whoever answers: a pin, or what is fetched itself, says whether to believe it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
