"""A broker within one process: two bounded queues. For tests, a laptop and parties that share a machine.

Threat model: none; both parties are one process. Nothing is lost, doubled or delayed: see `faults` for that.
Source: own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.broker import MAX_MESSAGE_BYTES


class _Queue:
    """Messages one way, at most `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._messages, self._closed = capacity, deque[bytes](), False
        self._changed = threading.Condition()

    def put(self, data: bytes, timeout_s: float) -> None:
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._closed or len(self._messages) < self._capacity, timeout_s
            ):
                raise LinkTimeoutError(
                    f"the partner took none of {self._capacity} waiting messages within {timeout_s:g} s; "
                    "check that it runs"
                )
            if self._closed:
                raise LinkError("the broker is closed; make a new pair")
            self._messages.append(data)
            self._changed.notify_all()

    def get(self, timeout_s: float) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._messages, timeout_s)
            if not self._messages:
                return None
            self._changed.notify_all()
            return self._messages.popleft()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._messages.clear()
            self._changed.notify_all()


class MemoryBroker:
    """One end of a pair; see `memory_pair`."""

    def __init__(self, outbound: _Queue, inbound: _Queue, max_bytes: int) -> None:
        self._outbound, self._inbound, self.max_bytes = outbound, inbound, max_bytes

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """Hand over a message. Raises LinkTimeoutError, LinkRefusedError, and LinkError once it is closed."""
        if len(data) > self.max_bytes:
            raise LinkRefusedError(f"a message has {len(data)} bytes, the broker takes {self.max_bytes}")
        self._outbound.put(data, timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        """The next message, None if none came in time."""
        return self._inbound.get(timeout_s)

    def describe(self) -> Mapping[str, str]:
        return {"broker": "memory"}

    def close(self) -> None:
        """Close both ways, for both ends."""
        self._outbound.close()
        self._inbound.close()


def memory_pair(capacity: int = 64, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[MemoryBroker, MemoryBroker]:
    """Two ends of one broker: at most `capacity` messages of `max_bytes` wait each way."""
    there, back = _Queue(capacity), _Queue(capacity)
    return MemoryBroker(there, back, max_bytes), MemoryBroker(back, there, max_bytes)
