"""Two parties for tests: their records and sessions, and a broker that ends like a process does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from transom.errors import LinkTimeoutError
from transom.link import codec, control
from transom.link.broker import Broker
from transom.link.memory import memory_pair
from transom.link.message import Step
from transom.link.record import Record
from transom.link.session import Session

T = TypeVar("T")
QUICK: dict[str, Any] = {"heartbeat_s": 0.02, "resend_after_s": 0.03, "timeout_s": 20.0}


class Killed(Exception):  # noqa: N818
    """The process ended here."""


class Mortal:
    """A broker's end as one process has it: after `dies_at` calls of `tick` nothing goes in or out.

    `sent` collects the messages that went out.
    """

    def __init__(self, inner: Broker, sent: list[bytes] | None = None, dies_at: int | None = None) -> None:
        self.inner, self.max_bytes, self.sent = inner, inner.max_bytes, [] if sent is None else sent
        self.left, self.dead = dies_at, False
        self._lock = threading.Lock()

    def tick(self) -> None:
        with self._lock:
            if self.left is not None:
                self.left -= 1
                self.dead = self.dead or self.left < 0
            if self.dead:
                raise Killed

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        self.tick()
        if not control.is_control(data):
            self.sent.append(data)
        self.inner.publish(data, timeout_s=timeout_s)
        self.tick()

    def take(self, timeout_s: float) -> bytes | None:
        if self.dead:
            raise Killed
        return self.inner.take(timeout_s)

    def describe(self) -> Mapping[str, str]:
        return self.inner.describe()

    def close(self) -> None:
        self.dead = True


def record(party: str, path: Path | None = None, **other: str) -> Record:
    names = {"job": "job", "run": "run", "party": party, "partner": "b" if party == "a" else "a", **other}
    return Record(path, **names)


def step(batch: int, topic: str = "train", **more: Any) -> Step:
    return Step(0, batch, "forward", topic=topic, **more)


def value(number: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([float(number)])}


def together(*jobs: Callable[[], T], timeout_s: float = 60.0) -> list[T | BaseException]:
    """What each gives or raises, in threads of their own."""
    results: list[Any] = [LinkTimeoutError("it did not end")] * len(jobs)

    def run(place: int) -> None:
        try:
            results[place] = jobs[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    return results


def meet(*sessions: Session, timeout_s: float = 20.0) -> list[Any]:
    """Connect them; what each says or raises."""
    return together(*(lambda one=one: one.connect(timeout_s) for one in sessions))  # type: ignore[misc]


@contextlib.contextmanager
def pair(
    brokers: tuple[Broker, Broker] | None = None,
    records: tuple[Record, Record] | None = None,
    a: Mapping[str, Any] | None = None,
    b: Mapping[str, Any] | None = None,
    connect: bool = True,
) -> Iterator[tuple[Session, Session]]:
    """Two sessions, by default connected over memory, with records that are closed with them."""
    ends = brokers or memory_pair()
    both = records or (record("a"), record("b"))
    with both[0], both[1]:
        one = Session(ends[0], both[0], **{**QUICK, **(a or {})})
        with one, Session(ends[1], both[1], **{**QUICK, **(b or {})}) as two:
            if connect:
                for outcome in meet(one, two):
                    if isinstance(outcome, BaseException):
                        raise outcome
            yield one, two


class ByHand:
    """A partner whose frames a test writes: party b, to a session of party a over memory."""

    def __init__(self, broker: Broker, boot: int = 1, instance: str = "b" * 16) -> None:
        self.broker, self.boot, self.instance = broker, boot, instance
        self.count, self.heard = 0, dict[str, int]()
        self.last: control.Frame | None = None

    def say(self, body: control.Hello | control.Status, **other: Any) -> bytes:
        """Send a frame; its bytes, for a replay."""
        self.count += 1
        names = {"job": "job", "run": "run", "sender": "b", "boot": self.boot, "instance": self.instance}
        origin = control.Origin(**{**names, "count": self.count, "heard": dict(self.heard), **other})
        data = control.write(origin, body)
        self.broker.publish(data, timeout_s=5)
        return data

    def hello(self, **other: Any) -> control.Hello:
        usual = {
            "partner": "a", "terms": {}, "window": 8, "window_bytes": 1 << 20, "max_bytes": 1 << 20,
            "clock_s": time.time(), "answer": False,
        }  # fmt: skip
        return control.Hello(**{**usual, **other})

    def status(self, **other: Any) -> control.Status:
        usual = {"have": (0,), "applied": (0,), "next_number": 0, "held_from": 0, "done": 0}
        return control.Status(**{**usual, **other})

    def message(self, number: int, batch: int | None = None, **other: Any) -> None:
        names = {"job": "job", "run": "run", "sender": "b", "number": number}
        header = codec.Header(**{**names, "step": step(number if batch is None else batch), **other})
        self.broker.publish(codec.encode(header, value(number)), timeout_s=5)

    def hear(self, kind: str) -> control.Frame:
        """The next frame of a kind."""
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            data = self.broker.take(0.1)
            if data is not None and control.is_control(data):
                self.last = control.read(data)
                self.heard[self.last.origin.instance] = self.last.origin.count
                if self.last.kind == kind:
                    return self.last
        raise TimeoutError(kind)

    def connect(self, session: Session, **other: Any) -> Any:
        """Meet the session; its agreement, or what it raises."""

        def answer() -> None:
            self.greet(**other)
            self.say(self.status())

        return together(lambda: session.connect(10), answer)[0]

    def greet(self, **other: Any) -> None:
        """Say hello once one came."""
        self.hear("hello")
        self.say(self.hello(**other))
