"""A broker's worst days, drawn from a seed: it drops, doubles, delays, reorders, replays, alters and floods.

Wrap each end of a pair: `FaultyBroker(end, seed=1, drop=0.2)`. What it alters or makes up is noticed by the
other `FaultyBroker` and dropped, as TLS or a seal would; with `sealed=False` it is handed on.
Threat model: this is the attacker. The keyless checksum stands for a seal and is none.
Source: own.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping

from transom.errors import LinkTimeoutError
from transom.link.broker import Broker

_CHECK_BYTES = 4
_REMEMBERED = 50  # messages that can be replayed
_MAX_REORDER_S = 0.02


class FaultyBroker:
    """`inner` with faults in what this end publishes; each number is the chance that it befalls a message.

    `delay_s` is the longest a message is held; `reorder` holds it just long enough for others to pass.
    `faults` counts what was done, `dropped` what this end took and found altered.
    """

    def __init__(
        self,
        inner: Broker,
        seed: int,
        *,
        drop: float = 0,
        double: float = 0,
        delay_s: float = 0,
        reorder: float = 0,
        truncate: float = 0,
        corrupt: float = 0,
        replay: float = 0,
        flood: float = 0,
        sealed: bool = True,
    ) -> None:
        self._inner, self._random, self._sealed = inner, random.Random(seed), sealed
        self._chances = {
            "drop": drop,
            "double": double,
            "reorder": reorder,
            "truncate": truncate,
            "corrupt": corrupt,
            "replay": replay,
            "flood": flood,
        }
        self._delay_s = delay_s
        self._past: deque[bytes] = deque(maxlen=_REMEMBERED)
        self._held: list[tuple[float, int, bytes]] = []  # when it is due, a tie-break, the message
        self._lock = threading.Lock()
        self.faults = dict.fromkeys(self._chances, 0)
        self.dropped = 0
        self.max_bytes = inner.max_bytes - (_CHECK_BYTES if sealed else 0)

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """Hand over a message, or what the faults make of it. Raises what `inner` does."""
        if self._sealed:
            data += _check(data)
        with self._lock:
            for number, message in enumerate(self._befallen(data), len(self._held)):
                heapq.heappush(self._held, (time.monotonic() + self._held_s(), number, message))
        self._release(timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        """The next message that is whole, None if none came in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(LinkTimeoutError):
                self._release(0.01)
            left_s = deadline_s - time.monotonic()
            with self._lock:
                next_s = self._held[0][0] - time.monotonic() if self._held else left_s
            data = self._inner.take(max(0.0, min(left_s, next_s)))
            if data is not None and self._sealed:
                data, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
                if _check(data) != check:
                    self.dropped += 1
                    continue
            if data is not None or left_s <= 0:
                return data

    def describe(self) -> Mapping[str, str]:
        return {**self._inner.describe(), "faults": str(self.faults)}

    def close(self) -> None:
        self._inner.close()

    def _befallen(self, data: bytes) -> list[bytes]:
        """What comes of one message."""
        messages = [] if self._chance("drop") else [data]
        if self._chance("double"):
            messages.append(data)
        if self._chance("replay") and self._past:
            messages.append(self._random.choice(self._past))
        if self._chance("truncate"):
            messages = [data[: self._random.randrange(len(data))]]
        if self._chance("corrupt"):
            altered = bytearray(data)
            altered[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            messages = [bytes(altered)]
        if self._chance("flood"):
            messages += [self._random.randbytes(self._random.randrange(1, 64)) for _ in range(8)]
        self._past.append(data)
        return messages

    def _chance(self, fault: str) -> bool:
        happens = self._random.random() < self._chances[fault]
        self.faults[fault] += happens
        return happens

    def _held_s(self) -> float:
        reordered = self._chance("reorder")
        return self._random.uniform(0, self._delay_s) + (
            self._random.uniform(0, _MAX_REORDER_S) if reordered else 0
        )

    def _release(self, timeout_s: float) -> None:
        """Publish what was held long enough."""
        while True:
            with self._lock:
                if not self._held or self._held[0][0] > time.monotonic():
                    return
                data = heapq.heappop(self._held)[2]
            self._inner.publish(data, timeout_s=timeout_s)


def _check(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECK_BYTES, "big")
