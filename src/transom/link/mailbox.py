"""Two bounded queues, between the callers of a broker and the one thread that carries their messages.

Callers publish and take; the carrier delivers what arrives and sends what waits. A full queue holds up
whoever fills it: `publish` waits, and the carrier stops reading. Within one process there is no carrier: what
one end publishes is what the `opposite` one takes.
Threat model: a partner that sends more than anyone takes, or takes nothing; memory stays bounded.
Does not protect: what waits here is lost with the process; the session sends it again.
Source: own.
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError

LINGER_S = 2.0  # how long `close` of a broker lets what was published go


class Queue:
    """Messages in order: full with so many, or so many bytes; the last one may go beyond."""

    def __init__(self, capacity: int, max_bytes: int) -> None:
        self._messages: deque[bytes] = deque()
        self._capacity, self._max_bytes, self._bytes = capacity, max_bytes, 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        return len(self._messages) >= self._capacity or self._bytes >= self._max_bytes

    def put(self, message: bytes) -> None:
        self._messages.append(message)
        self._bytes += len(message)

    def pop(self) -> bytes:
        message = self._messages.popleft()
        self._bytes -= len(message)
        return message


class Mailbox:
    """`publish` and `take` of a `Broker`, and what its carrier calls. Each way `capacity` messages or
    `max_buffered_bytes` wait at most, and one message more.

    `wake` is called when there is something for the carrier to do; `state` is told with a missed deadline.
    While it is `held`, `publish` waits until the carrier has said what it `carries`.
    """

    def __init__(
        self,
        capacity: int,
        max_bytes: int,
        max_buffered_bytes: int,
        wake: Callable[[], None],
        *,
        held: bool = False,
    ) -> None:
        self.max_bytes, self.state = max_bytes, "not connected yet"
        self._incoming = Queue(capacity, max_buffered_bytes)
        self._outgoing = Queue(capacity, max_buffered_bytes)
        self._changed = threading.Condition()  # guards all of it
        self._wake, self._held, self._over = wake, held, False
        self._trouble: LinkError | None = None

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """See `Broker.publish`."""
        self._require_fit(data)
        with self._changed:
            self._changed.wait_for(lambda: bool(self._trouble) or self._is_open, timeout_s)
            if self._trouble:
                raise self._trouble
            self._require_fit(data)  # which is known better by now
            if not self._is_open:
                raise LinkTimeoutError(
                    f"the partner took no message for {timeout_s:g} s; {len(self._outgoing)} wait here, "
                    f"{self.state}"
                )
            self._outgoing.put(data)
            self._changed.notify_all()
            if len(self._outgoing) == 1:
                self._wake()

    @property
    def _is_open(self) -> bool:
        return not (self._held or self._outgoing.full)

    def _require_fit(self, data: bytes) -> None:
        if len(data) > self.max_bytes:
            raise LinkRefusedError(
                f"a message has {len(data)} bytes, {self.max_bytes} is the most; send smaller batches, or "
                "raise max_bytes on both sides, at a NATS server max_payload"
            )

    def take(self, timeout_s: float) -> bytes | None:
        """See `Broker.take`. Trouble is told when nothing is left to take."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._trouble or self._incoming), timeout_s)
            if self._incoming:
                was_full, message = self._incoming.full, self._incoming.pop()
                if was_full:
                    self._changed.notify_all()
                    self._wake()  # after the pop: the carrier looks without waiting for us
                return message
            if self._trouble:
                raise self._trouble
        return None

    def opposite(self) -> Mailbox:
        """The other end, in this process."""
        other = copy.copy(self)
        other._incoming, other._outgoing = self._outgoing, self._incoming
        return other

    @property
    def full(self) -> bool:
        """Whether no more may be delivered for now."""
        return self._incoming.full

    def carries(self, max_bytes: int) -> None:
        """The largest message from now on."""
        with self._changed:
            self.max_bytes, self._held, self.state = max_bytes, False, "connected"
            self._changed.notify_all()

    def deliver(self, message: bytes) -> None:
        """One that arrived."""
        with self._changed:
            self._incoming.put(message)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many there are to be sent."""
        return len(self._outgoing)

    def next(self) -> bytes | None:
        """The one to be sent next, if any; it is the carrier's now."""
        with self._changed:
            if self._outgoing.full:  # else nobody waits for room
                self._changed.notify_all()
            return self._outgoing.pop() if self._outgoing else None

    def tell(self, trouble: LinkError | None, *, last: bool = False) -> None:
        """What every call raises from now on, until told otherwise; nothing comes after the last word."""
        with self._changed:
            if not self._over:
                self._trouble, self._over = trouble, last
                self._changed.notify_all()

    def end(self) -> None:
        """The last word: this end was closed."""
        self.tell(LinkError("the broker is closed; open another one"), last=True)
