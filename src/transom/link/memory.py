"""A broker within one process: two bounded queues. For tests, a laptop and parties that share a machine.

Threat model: none; both parties are one process. Nothing is lost, doubled or delayed: see `faults` for that.
Source: own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import TypeVar

from transom.link.broker import MAX_MESSAGE_BYTES, Broker
from transom.link.mailbox import Mailbox

T = TypeVar("T")


class MemoryBroker:
    """One end of a pair; see `memory_pair`."""

    def __init__(self, own: Mailbox, partners: Mailbox) -> None:
        self._own, self._partners, self.max_bytes = own, partners, own.max_bytes

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        self._own.publish(data, timeout_s=timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        return self._own.take(timeout_s)

    def describe(self) -> Mapping[str, str]:
        return {"broker": "memory"}

    def close(self) -> None:
        """Close both ends; what was published can still be taken."""
        self._own.end()
        self._partners.end()


def memory_pair(capacity: int = 64, max_bytes: int = MAX_MESSAGE_BYTES) -> tuple[MemoryBroker, MemoryBroker]:
    """Two ends of one broker: at most `capacity` messages of `max_bytes` wait each way."""
    one = Mailbox(capacity, max_bytes, capacity * max_bytes, lambda: None)
    one.state = "in this process"
    other = one.opposite()
    return MemoryBroker(one, other), MemoryBroker(other, one)


def together(first: Callable[[Broker], object], second: Callable[[Broker], T]) -> T:
    """Both parties' work in one process, the first in a thread; what the second gives.

    Raises what went wrong first, at either.
    """
    ends = memory_pair()
    problems: list[BaseException] = []

    def guarded(work: Callable[[Broker], T], broker: Broker) -> T:
        try:
            return work(broker)
        except BaseException as problem:
            problems.append(problem)
            broker.close()  # both ends
            raise

    with closing(ends[0]), ThreadPoolExecutor(1, "transom-partner") as pool:
        other = pool.submit(guarded, first, ends[0])  # type: ignore[arg-type]
        try:
            found = guarded(second, ends[1])
            other.result()
        except BaseException:
            wait([other])
            raise problems[0] from None
        return found
