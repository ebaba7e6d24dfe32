"""Messages over one socket that never blocks: proof of who is there, a greeting, then frames each way.

A frame is its length (4 bytes, big endian) and the message; the length that no message has is a ping. What a
length announces is checked before memory is taken, and memory is taken as the bytes arrive.
Threat model: whoever answers or calls may be anyone and send anything, or nothing; until it has shown the
partner's key it is a stranger. Everything happens in one thread: TLS objects are not for two at once.
Does not protect: without TLS whoever greets is believed; see `tcp`, which allows that on loopback alone.
Source: RFC 8446 (TLS 1.3).
"""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from transom.errors import LinkRefusedError
from transom.link.identity import Partner
from transom.net.pin import format_pin, spki_sha256

PING = 2**32 - 1  # as a length
_GREETING = b"transom/link/1\n"
_LENGTH_BYTES = 4
_PIECE_BYTES = 2**18
_KEPT_BYTES = 2**22  # of a buffer, from one message to the next: fresh memory costs more than a copy
_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_BROKEN = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Connection:
    """One socket. Raises OSError when it breaks, LinkRefusedError for what the partner would not send.

    `context` is None without TLS; `called` says whether the other side, `whom`, has connected to this
    one. `wants` holds the events that `prove` waits for, `watched` those that the owner waits for.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        partner: Partner | None,
        max_bytes: int,
        *,
        whom: str,
        called: bool,
    ) -> None:
        sock.setblocking(False)
        self.sock, self.whom, self.proved, self.watched = sock, whom, False, 0
        self.number = sock.fileno()  # known even when TLS has taken the socket and failed
        self.made_s = self.heard_s = self.sent_s = time.monotonic()
        self.wants = EVENT_READ if called else EVENT_WRITE
        self._context, self._partner, self._called = context, partner, called
        self._max_bytes, self.pinged = max_bytes, False
        self._outgoing: deque[memoryview] = deque()
        self._proof = self._prove()
        self._buffer = memoryview(bytearray(_PIECE_BYTES))  # of the frame that comes, as far as it has come
        self._filled = 0
        self._length: int | None = None  # of its message, once it is known

    def prove(self) -> bool:
        """Go on with the handshake; whether the partner has shown its key and greeted."""
        self.wants = next(self._proof, 0)
        self.proved, self.heard_s = not self.wants, time.monotonic()
        return self.proved

    def put(self, message: bytes | None) -> None:
        """A message, or a ping, to be sent by `flush`."""
        length = (PING if message is None else len(message)).to_bytes(_LENGTH_BYTES, "big")
        if not message or len(message) < _PIECE_BYTES:
            self._outgoing.append(memoryview(length + (message or b"")))
        else:
            self._outgoing += memoryview(length), memoryview(message)

    def flush(self) -> bool:
        """Send what was put, as far as the socket takes it; whether all of it is gone."""
        while self._outgoing:
            first = self._outgoing[0]
            try:  # after a wait the same slice goes again, as TLS demands
                sent = self.sock.send(first[:_PIECE_BYTES])
            except _WAITS:
                return False
            if sent == len(first):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = first[sent:]
            self.sent_s = time.monotonic()
        return True

    def receive(self) -> bytes | None:
        """The next whole message; None while the socket has no more, and where a ping came (`pinged`)."""
        self.pinged = False
        while True:
            end = _LENGTH_BYTES if self._length is None else self._length
            while self._filled < end:
                if self._filled == len(self._buffer):
                    self._grow(end)
                try:
                    got = self.sock.recv_into(self._buffer[self._filled : end])
                except _WAITS:
                    return None
                if not got:
                    raise ConnectionResetError("the partner closed the connection")
                self._filled += got
                self.heard_s = time.monotonic()
            content, self._filled = self._buffer[:end], 0
            if self._length is None:
                self._length = self._announced(int.from_bytes(content, "big"))
                if self.pinged:
                    return None
                continue
            self._length = None
            if end > _KEPT_BYTES:
                self._buffer = memoryview(bytearray(_PIECE_BYTES))
            return bytes(content)

    def _grow(self, end: int) -> None:
        """Twice the room, or what the message needs."""
        buffer = memoryview(bytearray(min(end, 2 * self._filled)))
        buffer[: self._filled] = self._buffer
        self._buffer = buffer

    def farewell(self, messages: Iterable[bytes], deadline_s: float) -> None:
        """Send what was put and these, and wait until the other side has read it all or the time is over.

        `deadline_s` is of `time.monotonic()`.
        """

        def wait() -> None:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the partner did not read it all in time")
            self.sock.settimeout(left_s)

        for message in itertools.chain(messages, [None]):
            self.put(message)
            wait()
            while not self.flush():
                wait()
        self.sock.setblocking(False)
        if isinstance(self.sock, ssl.SSLSocket):
            with suppress(OSError):
                self.sock.unwrap()  # says goodbye, does not wait for the other side's
        self.sock.shutdown(socket.SHUT_WR)
        wait()
        while self.sock.recv(_PIECE_BYTES):  # what is not read would turn the end into a reset
            wait()

    def describe(self) -> dict[str, str]:
        """Of a proved connection: addresses, and what TLS agreed on."""
        found = {
            "address": format_address(self.sock.getsockname()),
            "partner": format_address(self.sock.getpeername()),
        }
        if isinstance(self.sock, ssl.SSLSocket):
            found["tls"], found["cipher"] = str(self.sock.version()), (self.sock.cipher() or ("",))[0]
        return found

    def close(self) -> None:
        self.sock.close()

    def _announced(self, length: int) -> int | None:
        """How many bytes follow; None for a ping, after which the next frame begins."""
        if length == PING:
            self.pinged = True
            return None
        if length > self._max_bytes:
            raise LinkRefusedError(
                f"the partner announced a message of {length} bytes, {self._max_bytes} is the most here; "
                "give both sides the same max_bytes"
            )
        return length

    def _prove(self) -> Iterator[int]:
        """What the proof waits for, step by step."""
        if not self._called:
            yield EVENT_WRITE
            if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            if self.sock.getsockname() == self.sock.getpeername():
                raise ConnectionRefusedError("nobody listens; the socket met itself")
        self.sock.getpeername()  # raises where it ended already: TLS would lose the socket
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            yield from self._shake_hands(self._context)
        self._outgoing.append(memoryview(_GREETING))
        with suppress(ConnectionError, *_BROKEN):  # who was turned away meanwhile is told so by what it reads
            while not self.flush():
                yield EVENT_WRITE
        greeting = b""
        while len(greeting) < len(_GREETING):
            try:
                part = self.sock.recv(len(_GREETING) - len(greeting))
            except _WAITS:
                yield EVENT_READ
                continue
            except ssl.SSLError as error:
                raise self._turned_away(error) from None
            if not part:
                raise ConnectionResetError("the connection ended before a greeting")
            greeting += part
            if not _GREETING.startswith(greeting):
                raise LinkRefusedError(f"{self.whom} does not speak Transom's protocol; nothing was sent")

    def _shake_hands(self, context: ssl.SSLContext) -> Iterator[int]:
        self.sock = sock = context.wrap_socket(
            self.sock, server_side=self._called, do_handshake_on_connect=False
        )
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                yield EVENT_READ
            except ssl.SSLWantWriteError:
                yield EVENT_WRITE
            except _BROKEN:
                raise
            except ssl.SSLError as error:
                raise self._turned_away(error) from None
        expected = self._partner.pin.fingerprint if self._partner else b""
        shown = spki_sha256(sock.getpeercert(binary_form=True) or b"")
        if shown != expected:
            raise LinkRefusedError(
                f"{self.whom} shows the key {format_pin(shown)}, the partner's is {format_pin(expected)}; "
                "nothing was sent. Ask the partner for its certificate and compare pins by another way"
            )

    def _turned_away(self, error: ssl.SSLError) -> Exception:
        """An error of TLS before the proof: a stranger there, or this side is a stranger to it."""
        if isinstance(error, _BROKEN):
            return error
        return LinkRefusedError(
            f"no TLS with {self.whom} ({error.reason or type(error).__name__}): it is not the partner, or "
            "does not know this side's certificate; compare pins"
        )


def format_address(name: tuple[Any, ...]) -> str:
    """`HOST:PORT` of a socket's name, with brackets around an IPv6 address."""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
