"""Two parties over one TCP connection with mutual TLS: one listens, the other connects, for ever again.

One thread owns every socket; `publish` and `take` meet it at a mailbox. Where nobody takes, the mailbox
fills, the reading stops, TCP stops the partner's writing, and its full mailbox stops `publish`. What waits
outlives a connection; what was under way when it broke is lost, and the session sends it again.
Threat model: an active network. Whoever calls has to show the partner's key within seconds, among at most
a few that may try at once; the partner's connection goes on meanwhile. Pings tell the dead from the quiet.
Does not protect: without TLS, allowed on loopback alone, other users of the machine can be the partner. Who
floods the listener faster than it answers keeps the partner from connecting again.
Source: RFC 8446 (TLS 1.3), RFC 9293 (TCP).
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from errno import EINPROGRESS
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from transom.errors import LinkError, LinkRefusedError, MisconfiguredError
from transom.link.broker import MAX_MESSAGE_BYTES
from transom.link.frames import PING, Connection, format_address
from transom.link.identity import Identity, Partner, client_context, server_context
from transom.link.mailbox import LINGER_S, Mailbox
from transom.net.listen import listen as listening
from transom.net.pin import format_pin
from transom.net.urls import is_loopback

Address = tuple[str, int]

BUFFERED_BYTES = 8 * 2**20  # more only costs fresh memory: the session keeps what is on its way
_TICK_S = 0.1
_STRANGERS = 32  # at once; one more, and the oldest is dropped
_PING_S = 1.0
_TURN = 16  # messages read before others have their turn
_BACKOFF_S = (0.05, 2.0)


class TcpBroker:
    """A `Broker` over TCP. Give one of `listen` and `connect`: (host, port); port 0 picks a free one.

    `identity` and `partner` are both None for plain text on loopback. Each way `capacity` messages or
    `max_buffered_bytes` wait at most (and one message more, and what the system buffers). A partner of whom
    nothing was heard for `silence_s` is gone, and so is a stranger that has not proved itself by then.
    While a stranger answers in the partner's place, calls of the side that connects raise
    LinkRefusedError, and it tries again all the same. After `close`, `publish` raises LinkError, and so
    does `take` when nothing is left.
    Raises MisconfiguredError.
    """

    def __init__(
        self,
        identity: Identity | None,
        partner: Partner | None,
        *,
        listen: Address | None = None,
        connect: Address | None = None,
        capacity: int = 64,
        max_bytes: int = MAX_MESSAGE_BYTES,
        max_buffered_bytes: int = BUFFERED_BYTES,
        silence_s: float = 20.0,
    ) -> None:
        asked = _check(identity, partner, listen, connect, (capacity, max_bytes, max_buffered_bytes))
        self.max_bytes = max_bytes
        self._identity, self._partner, self._connect, self._silence_s = identity, partner, connect, silence_s
        self._context = None
        if identity is not None and partner is not None:
            self._context = server_context(identity, partner) if listen else client_context(identity)
        self._listener = listening(*listen) if listen else None
        #: Where this side listens, or connects to.
        self.address: Address = self._listener.getsockname()[:2] if self._listener else asked

        self._mailbox = Mailbox(capacity, max_bytes, max_buffered_bytes, self._wake)
        self._end_s = math.inf  # when the last moment is, once it is to end
        self._facts: dict[str, str] = {}
        self._made = self._refused = 0

        self._current: Connection | None = None  # from here on: the thread's own
        self._strangers: list[Connection] = []
        self._is_more_to_read = False
        self._next_dial_s, self._backoff_s, self._dials = 0.0, _BACKOFF_S[0], 0
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, EVENT_READ, self._drain)
        if self._listener is not None:
            self._listener.setblocking(False)
            self._selector.register(self._listener, EVENT_READ, partial(self._accept, self._listener))
        self._thread = threading.Thread(target=self._run, name="transom-link-tcp", daemon=True)
        self._thread.start()

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        self._mailbox.publish(data, timeout_s=timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        return self._mailbox.take(timeout_s)

    def describe(self) -> Mapping[str, str]:
        """Addresses, state, how many connections were made and refused; of TLS version, cipher, both pins."""
        found = {
            "broker": "tcp",
            "connects" if self._connect else "listens": format_address(self.address),
            "state": self._mailbox.state,
            "connections": str(self._made),
            "refused": str(self._refused),
            **self._facts,
        }
        if self._identity and self._partner:
            found["own_pin"] = format_pin(self._identity.pin.fingerprint)
            found["partner_pin"] = format_pin(self._partner.pin.fingerprint)
        return found

    def close(self) -> None:
        """Send what was published, to a partner that comes within LINGER_S, and end. The rest is lost."""
        self._mailbox.end()
        self._end_s = min(self._end_s, time.monotonic() + LINGER_S)
        self._wake()
        self._thread.join(LINGER_S + 1.0)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it will wake; closed: it has ended
            self._waker.send(b"\0")

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while not self._is_over():
                for key, _ in self._selector.select(0 if self._is_more_to_read else _TICK_S):
                    key.data()
                self._dial()
                self._turn_away_the_slow()
                self._serve()
            self._say_farewell()
        except Exception as error:
            self._mailbox.tell(LinkError(f"the link's thread failed ({type(error).__name__})"), last=True)
            raise
        finally:
            for it in (self._current, *self._strangers, self._waker, self._woken, self._listener):
                if it is not None:
                    it.close()
            self._selector.close()

    def _is_over(self) -> bool:
        """Whether it is to end, and what waits has a way to the partner or no more time to find one."""
        if self._end_s == math.inf:
            return False
        return bool(self._current) or not self._mailbox.waiting or time.monotonic() > self._end_s

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def _accept(self, listener: socket.socket) -> None:
        """One caller at a time, so that the partner has its turn."""
        try:
            sock, whom = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no file is free: again a little later
            time.sleep(_TICK_S / 10)
            return
        if len(self._strangers) >= _STRANGERS:
            self._drop(self._strangers[0], TimeoutError("too many strangers at once"))
        self._meet(sock, whom)

    def _dial(self) -> None:
        """Begin to connect if it is time; the addresses of the name take turns."""
        if self._connect is None or self._current or self._strangers or time.monotonic() < self._next_dial_s:
            return
        try:
            found = socket.getaddrinfo(*self._connect, type=socket.SOCK_STREAM)
            family, _, _, _, address = found[self._dials % len(found)]
            self._dials += 1
            sock = _calling(family, address)
        except OSError as error:
            self._note(error)
        else:
            self._meet(sock, address)

    def _meet(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        whom, called = format_address(address), self._connect is None
        stranger = Connection(sock, self._context, self._partner, self.max_bytes, whom=whom, called=called)
        self._strangers.append(stranger)
        self._watch(stranger, stranger.wants)

    def _watch(self, connection: Connection, events: int) -> None:
        """Have the selector wait for these events of a connection."""
        if events == connection.watched:
            return
        react = partial(self._prove, connection)
        if not connection.watched:
            self._selector.register(connection.number, events, react)
        elif events:
            self._selector.modify(connection.number, events, react)
        else:
            self._selector.unregister(connection.number)
        connection.watched = events

    def _prove(self, stranger: Connection) -> None:
        """A stranger's next step; the one that proves to be the partner replaces the connection before."""
        if stranger not in self._strangers:  # the current one, which has its turn anyway, or dropped
            return
        try:
            proved = stranger.prove()
            facts = stranger.describe() if proved else {}
        except (OSError, ValueError, LinkRefusedError) as error:
            self._drop(stranger, error)
            return
        if not proved:
            self._watch(stranger, stranger.wants)
            return
        if self._current is not None:
            self._drop(self._current, ConnectionError("the partner has connected anew"))
        self._strangers.remove(stranger)
        self._current, self._backoff_s = stranger, _BACKOFF_S[0]
        self._facts, self._mailbox.state, self._made = facts, "connected", self._made + 1
        self._mailbox.tell(None)

    def _turn_away_the_slow(self) -> None:
        since_s = time.monotonic() - self._silence_s
        for stranger in [one for one in self._strangers if one.made_s < since_s]:
            self._drop(stranger, TimeoutError("a handshake took too long"))

    def _drop(self, connection: Connection, error: Exception) -> None:
        self._watch(connection, 0)
        connection.close()
        if connection is self._current:
            self._current, self._is_more_to_read = None, False
        else:
            self._strangers.remove(connection)
        blamed = self._connect is not None or (connection.proved and self._context is not None)
        self._note(error, blamed=blamed)

    def _note(self, error: Exception, *, blamed: bool = False) -> None:
        """Why there is no connection. Callers are told of a partner that is none, or breaks the rules."""
        self._next_dial_s = time.monotonic() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, _BACKOFF_S[1])
        if isinstance(error, LinkRefusedError):
            self._refused += 1
            if blamed:
                self._mailbox.tell(error)
        if self._current is None:
            self._facts, self._mailbox.state = {}, f"not connected: {error}"

    def _serve(self) -> None:
        """The partner's turn: read, write, and see that it lives."""
        connection = self._current
        if connection is None:
            return
        try:
            self._read(connection)
            is_written = self._write(connection)
            if time.monotonic() > connection.heard_s + self._silence_s:
                raise TimeoutError(f"nothing was heard of the partner for {self._silence_s:g} s")
        except (OSError, LinkRefusedError) as error:
            self._drop(connection, error)
        else:
            reads = 0 if self._mailbox.full else EVENT_READ
            self._watch(connection, reads | (0 if is_written else EVENT_WRITE))

    def _read(self, connection: Connection) -> None:
        self._is_more_to_read = False
        for _ in range(_TURN):
            if self._mailbox.full:
                connection.heard_s = time.monotonic()  # who is not listened to is not silent
                return
            message = connection.receive()
            if message is None:
                self._is_more_to_read = connection.pinged  # others have their turn, whoever pings for ever
                return
            self._mailbox.deliver(message)
        self._is_more_to_read = True

    def _write(self, connection: Connection) -> bool:
        """Whether all is sent."""
        while connection.flush():
            if (message := self._mailbox.next()) is not None:
                connection.put(message)
            elif time.monotonic() > connection.sent_s + min(_PING_S, self._silence_s / 4):
                connection.put(None)
            else:
                return True
        return False

    def _say_farewell(self) -> None:
        if self._current is not None:
            with contextlib.suppress(OSError):
                self._current.farewell(iter(self._mailbox.next, None), self._end_s)


def _calling(family: int, address: tuple[Any, ...]) -> socket.socket:
    """A socket that has begun to connect. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if (code := sock.connect_ex(address)) not in (0, EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _check(
    identity: Identity | None,
    partner: Partner | None,
    listen: Address | None,
    connect: Address | None,
    sizes: tuple[int, int, int],
) -> Address:
    """The one address. Raises MisconfiguredError."""
    address = listen or connect
    if address is None or (listen and connect):
        raise MisconfiguredError("give one of listen and connect: one party listens, the other connects")
    if (identity is None) != (partner is None):
        raise MisconfiguredError("identity and partner go together; one of them is missing")
    if not 0 <= address[1] < 2**16:
        raise MisconfiguredError(f"a port is a number up to 65535, got {address[1]}")
    try:
        address[0].encode("idna")
    except UnicodeError:
        raise MisconfiguredError(f"{address[0]!r:.80} is no name of a host; give another") from None
    if identity is None and not is_loopback(address[0]):
        raise MisconfiguredError(
            f"host {address[0]!r} is not a loopback address: beyond this machine give identity and partner"
        )
    if min(sizes) < 1 or sizes[1] >= PING:
        raise MisconfiguredError(
            f"capacity, max_bytes and max_buffered_bytes count from 1, max_bytes to {PING - 1}; got "
            "{}, {} and {}".format(*sizes)
        )
    return address
