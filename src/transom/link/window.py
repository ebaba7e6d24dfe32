"""What is under way: messages that the partner has not applied (`Flight`), and those it sent (`Inbox`).

Both are bounded by a number of messages beyond the first that is not applied, and by bytes, or one message.
Threat model: a partner that floods: what lies outside the window is refused. Does not protect: memory of
messages handed out and not committed; that is the caller's.
Source: own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from transom.link.message import Header, Step
from transom.link.numbers import Numbers


@dataclass(frozen=True, slots=True)
class Window:
    """How many messages, counted from the first that is not applied, and how many bytes."""

    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Sent:
    size: int
    published_s: float | None = None  # monotonic; None: not by this session
    count: int = 0  # our last control frame before it


class Flight:
    """Messages sent and not known to be applied; `receipts` are known to be and still in the record."""

    def __init__(self, held: Mapping[int, int]) -> None:
        self._sent = {number: _Sent(size) for number, size in held.items()}
        self.receipts: set[int] = set()
        self.bytes = sum(held.values())

    def __len__(self) -> int:
        return len(self._sent)

    def add(self, number: int, size: int) -> None:
        """It is in the record and not yet published."""
        self._sent[number] = _Sent(size)
        self.bytes += size

    def published(self, number: int, now_s: float, count: int) -> None:
        if number in self._sent:
            self._sent[number] = replace(self._sent[number], published_s=now_s, count=count)

    def unpublished(self, number: int) -> None:
        """It did not go out."""
        if number in self._sent:
            self._sent[number] = _Sent(self._sent[number].size)

    def receipt(self, applied: Numbers) -> None:
        for number in [number for number in self._sent if number in applied]:
            self.bytes -= self._sent.pop(number).size
            self.receipts.add(number)

    def due(self, have: Numbers, applied: int, echo: int, before_s: float, window: Window) -> list[int]:
        """What the partner should have and has not, in order, as far as its window reaches.

        `applied` is its watermark, `echo` the last frame of ours that it had heard. What was published after
        that frame, or after `before_s`, may still be on its way.
        """
        due, size = [], 0
        for number, sent in sorted(self._sent.items()):
            size += sent.size
            if number >= applied + window.messages or window.bytes < size > sent.size:
                break  # but the first goes, also of an earlier session with a larger window
            waited = sent.published_s is None or (sent.published_s <= before_s and sent.count < echo)
            if number not in have and waited:
                due.append(number)
        return due


class Inbox:
    """The partner's messages that arrived: all (`have`), and those handed out and not applied (`taken`)."""

    def __init__(self, applied: Numbers, window: Window) -> None:
        self.have, self.taken = applied.copy(), dict[int, Step]()
        self._window, self._waiting = window, dict[int, tuple[Header, bytes]]()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, header: Header, data: bytes, applied: int) -> Literal["new", "duplicates", "refused"]:
        """Keep a message unless it came before or lies outside the window after `applied`, the watermark."""
        if header.number in self.have:
            return "duplicates"
        most_bytes = max(self._window.bytes, len(data) if not self._waiting else 0)
        if header.number >= applied + self._window.messages or self.bytes + len(data) > most_bytes:
            return "refused"
        self._waiting[header.number] = header, data
        self.have.add(header.number)
        self.bytes += len(data)
        return "new"

    def take(self, topics: Collection[str], *, ordered: bool) -> bytes | None:
        """The message with the lowest number of these topics; `ordered`: only once all before it arrived."""
        numbers = [number for number, (header, _) in self._waiting.items() if header.step.topic in topics]
        number = min(numbers, default=None)
        if number is None or (ordered and number >= self.have.watermark):
            return None
        header, data = self._waiting.pop(number)
        self.bytes -= len(data)
        self.taken[number] = header.step
        return data
