"""Whether two parties can work together, and how fast the way between them is.

Both run this at the same time. The party whose name sorts first sends small messages, which come back, and
then megabytes, whose arrival the other tells; then the other sends its megabytes.
Threat model: that of the session. The messages hold zeros. Does not protect anything.
Source: own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transom.errors import extra
from transom.link.message import Step
from transom.link.session import Session
from transom.privacy.stream import Direction

if TYPE_CHECKING:
    from torch import Tensor

PINGS = 50
MESSAGE_BYTES = 2**20
HEADER_BYTES = 2**10  # more than what stands before the numbers of a message


@dataclass(frozen=True)
class Measured:
    """What one party saw. `round_trip_ms` is the median, of the party that asked; 0 for the other."""

    round_trip_ms: float
    sent_mb_s: float
    received_mb_s: float


def measure(
    session: Session,
    *,
    leads: bool,
    message_bytes: int = MESSAGE_BYTES,
    messages: int = 32,
    timeout_s: float = 60.0,
    advance: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Measure a connected session; `leads` for one of the parties. `advance` is told shares of the whole.

    Both give the same `message_bytes`, of the numbers in a message, and `messages`. Raises LinkError.
    """
    round_trip_s = _ask(session, timeout_s) if leads else _answer(session, timeout_s)
    advance(0.2)
    ways = (_send, _take) if leads else (_take, _send)
    directions: tuple[Direction, Direction] = ("forward", "backward")
    taken_s: dict[Callable[..., float], float] = {}
    for way, direction in zip(ways, directions, strict=True):
        taken_s[way] = way(session, direction, messages, message_bytes, timeout_s)
        advance(0.4)
    megabytes = messages * message_bytes / 1e6
    return Measured(1000 * round_trip_s, megabytes / taken_s[_send], megabytes / taken_s[_take])


def _ask(session: Session, timeout_s: float) -> float:
    """The median time there and back, in seconds."""
    took_s = []
    for number in range(PINGS):
        start_s = time.perf_counter()
        session.send(Step(0, number, "forward", topic="ping"), {"x": _zeros(4)}, timeout_s=timeout_s)
        session.receive(topic="ping", timeout_s=timeout_s)
        took_s.append(time.perf_counter() - start_s)
        with session.commit():
            pass
    return statistics.median(took_s)


def _answer(session: Session, timeout_s: float) -> float:
    for number in range(PINGS):
        session.receive(topic="ping", timeout_s=timeout_s)
        with session.commit() as now:
            now.send(Step(0, number, "backward", topic="ping"), {"x": _zeros(4)})
    return 0.0


def _send(
    session: Session, direction: Direction, messages: int, message_bytes: int, timeout_s: float
) -> float:
    """How long it took until all had arrived, as the partner says, in seconds."""
    load = {"x": _zeros(message_bytes)}
    start_s = time.perf_counter()
    for number in range(messages):
        session.send(Step(1, number, direction, topic="load"), load, timeout_s=timeout_s)
    session.receive(topic="arrived", timeout_s=timeout_s)
    took_s = time.perf_counter() - start_s
    with session.commit():
        pass
    return took_s


def _take(
    session: Session, direction: Direction, messages: int, message_bytes: int, timeout_s: float
) -> float:
    """How long it took from the first to the last of them, in seconds."""
    start_s = time.perf_counter()
    for _ in range(messages):
        session.receive(topic="load", timeout_s=timeout_s)
        with session.commit():
            pass
    took_s = time.perf_counter() - start_s
    session.send(Step(1, 0, direction, topic="arrived"), {"x": _zeros(4)}, timeout_s=timeout_s)
    return took_s


def _zeros(size_bytes: int) -> Tensor:
    with extra("link", "torch"):
        import torch
    return torch.zeros(size_bytes // 4)
