"""What carries messages between two parties: a bounded queue each way, of which nothing else is believed.

A broker may lose, double, reorder and delay; `transom.link.session` makes each message count once above it.
Threat model: whoever runs it. What reads and writes in between is the implementation's: mutual TLS between
the parties (`tcp`), messages sealed for the partner (`nats`), one process (`memory`).
Does not protect: sizes and times of messages show to whoever runs it, and it can stop the run.
Source: Saltzer, Reed and Clark 1984, "End-to-end arguments in system design".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

MAX_MESSAGE_BYTES = 64 * 2**20


class Broker(Protocol):
    """One party's end. One thread takes while any number publish.

    A connection that breaks is no error: it is made again until a deadline passes. Whoever connects to a
    stranger gets LinkRefusedError; whoever listens drops the stranger. Each way has bounds of its own: one
    that is full does not stop the other. Messages keep their order while there is space and nothing breaks;
    what a NATS server refused for want of space goes later, in any order.
    """

    @property
    def max_bytes(self) -> int:
        """The largest message; at a NATS server exact once it has been reached."""
        ...

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """Hand over a message; waits while buffers are full.

        Raises LinkTimeoutError at the deadline, LinkRefusedError for more than `max_bytes` (also for one that
        waited before, if the server that came takes less), LinkError once it is closed.
        """
        ...

    def take(self, timeout_s: float) -> bytes | None:
        """The next message for this party, None if none came in time. Each may come more than once.

        Raises LinkError once it is closed and nothing is left.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """What is connected, for people: addresses, versions, pins."""
        ...

    def close(self) -> None:
        """Let what was published go, for a moment, then let go of everything."""
        ...
