"""Messages between two parties, each applied once, whatever the broker loses and whoever is killed.

    with Session(broker, record, terms={"model": digest}) as session:
        session.connect()
        received = session.receive()
        with session.commit() as commit:  # what was received, a checkpoint and an answer: all or nothing
            commit.checkpoint(state)
            commit.send(step, {"gradient": gradient})
        session.finish()

A message is durable before it is published and goes again, the same bytes, until the partner has applied it.
Threat model: a broker that loses, doubles, reorders, delays and replays; kills on both sides at any moment; a
partner of other terms, of an older record, that floods, lies or falls silent.
Does not protect: against a broker that hands on what others made (`tcp` and `nats` do not), nor what the
partner learns of the values.
Source: Saltzer, Reed and Clark 1984, "End-to-end arguments in system design"; own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link import codec, control
from transom.link.broker import Broker
from transom.link.exchange import Agreement, Exchange
from transom.link.message import Header, Step
from transom.link.numbers import MAX_EXTRAS
from transom.link.record import Record
from transom.link.window import Window

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_BYTES = 256 * 2**20
_COUNTS = ("sent", "resent", "received", "duplicates", "refused", "bytes")


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the partner, not yet applied."""

    header: Header
    tensors: Mapping[str, Tensor] = field(repr=False)


class Commit:
    """What goes with the messages received so far; see `Session.commit`."""

    def __init__(self, put: Callable[[Commit, Step, Mapping[str, Tensor]], None]) -> None:
        self._put = put
        self.messages: list[tuple[Step, bytes]] = []
        self.state: bytes | None = None

    def checkpoint(self, data: bytes) -> None:
        """Keep the bytes in place of the last checkpoint."""
        self.state = data

    def send(self, step: Step, tensors: Mapping[str, Tensor]) -> None:
        """Send a message once all is durable; one of a step that was sent before changes nothing.

        Waits while the window is full. Raises LinkTimeoutError, and LinkRefusedError for what cannot be sent.
        """
        self._put(self, step, tensors)


class Session:
    """One party's end of a run; `broker` and `record` are the caller's to close.

    `terms` are what both parties must have alike. At most `window` messages and `window_bytes` bytes are
    under way, or less where the partner says so. `wire` and `limits` are the codec's, of what is sent and
    received. `heartbeat_s` is how often it speaks; what was lost is sent again after `resend_after_s` at the
    earliest.
    Receiving and sending may be in different threads; what receives, commits.
    """

    def __init__(
        self,
        broker: Broker,
        record: Record,
        terms: Mapping[str, str] | None = None,
        *,
        window: int = 64,
        window_bytes: int = WINDOW_BYTES,
        wire: codec.Wire = "fp32",
        limits: codec.Limits | None = None,
        timeout_s: float = 60.0,
        heartbeat_s: float = 1.0,
        resend_after_s: float = 2.0,
    ) -> None:
        if not 1 <= window <= MAX_EXTRAS:
            raise LinkRefusedError(f"a window has 1 to {MAX_EXTRAS} messages, got {window}")
        if not all(0 < one < math.inf for one in (window_bytes, heartbeat_s, resend_after_s)):
            raise LinkRefusedError("a window's bytes and a session's intervals are above 0")
        if not all(isinstance(value, str) for value in (terms or {}).values()):
            raise LinkRefusedError("terms map names to texts")
        self._record, self._wire, self.timeout_s = record, wire, timeout_s
        self._limits = limits or codec.Limits(max_bytes=broker.max_bytes)
        self._exchange = Exchange(
            broker, record, terms or {}, Window(window, window_bytes),
            heartbeat_s=heartbeat_s, resend_after_s=resend_after_s,
        )  # fmt: skip
        self._writing = threading.Lock()

    @property
    def counts(self) -> Mapping[str, int]:
        """Messages sent, sent again, received, received again, refused; bytes of messages published."""
        with self._exchange.changed:
            return {name: self._exchange.counts[name] for name in _COUNTS}

    @property
    def partner_record(self) -> str:
        """The id of the partner's record. Raises LinkError before the partner was met."""
        self._agreement()
        origin = self._exchange.peer.origin
        return origin.record if origin is not None else ""

    def connect(self, timeout_s: float | None = None) -> Agreement:
        """Meet the partner and compare terms.

        Raises LinkRefusedError with every name that differs and both sides' values, LinkTimeoutError for a
        partner that does not come, LinkError where one of the records is older than it was.
        """
        exchange = self._exchange
        exchange.start()
        try:
            exchange.wait(lambda: exchange.agreement is not None, self._bound(timeout_s), "no partner came")
        except LinkTimeoutError:
            if exchange.suspected:
                raise control.refusal(self._record.partner, exchange.suspected) from None
            raise
        return self._agreement()

    def send(self, step: Step, tensors: Mapping[str, Tensor], timeout_s: float | None = None) -> None:
        """As `Commit.send`, alone: what was received stays to be applied."""
        deadline_s = time.monotonic() + self._bound(timeout_s)
        with self._alone(deadline_s):
            commit = Commit(self._put(deadline_s))
            commit.send(step, tensors)
            self._write(commit, deadline_s, apply=False)

    def receive(
        self, topic: str | tuple[str, ...] = "train", timeout_s: float | None = None, *, ordered: bool = True
    ) -> Received:
        """The next message of a topic, or of several; with `ordered=False` also one that came too early.

        It counts as applied with the next `commit`. Raises LinkTimeoutError, and LinkRefusedError for a
        partner that breaks the rules.
        """
        exchange, topics = self._exchange, (topic,) if isinstance(topic, str) else topic
        self._agreement()
        with exchange.changed:
            data = exchange.wait(
                lambda: exchange.inbox.take(topics, ordered=ordered),
                self._bound(timeout_s),
                f"no message of {' or '.join(topics)} came",
            )
        return self._decoded(data)

    def receive_or(
        self, topics: tuple[str, ...], ready: Callable[[], bool], timeout_s: float
    ) -> Received | None:
        """As `receive`, or None once something else is `ready` (asked at each `wake`) or the time is over.

        What is ready comes first.
        """
        exchange, end_s = self._exchange, time.monotonic() + self._bound(timeout_s)
        self._agreement()

        def found() -> tuple[bytes | None] | None:
            data = None if ready() else exchange.inbox.take(topics, ordered=True)
            return (data,) if data is not None or ready() or time.monotonic() >= end_s else None

        with exchange.changed:
            data = exchange.wait(found, timeout_s, "nothing came")[0]
        return None if data is None else self._decoded(data)

    def wake(self) -> None:
        """From another thread: what `receive_or` waits for may be ready."""
        with self._exchange.changed:
            self._exchange.changed.notify_all()

    def _decoded(self, data: bytes) -> Received:
        try:
            return Received(*codec.decode(data, self._limits))
        except LinkRefusedError as error:
            self._exchange.fail(error)
            raise

    @contextmanager
    def commit(self, timeout_s: float | None = None) -> Iterator[Commit]:
        """One transaction: all that was received so far is applied, with what the block adds, and then sent.

        If it raises, nothing of it happened and what was received can be committed again. What the broker
        does not take in time is durable and goes later. What another thread receives before the block ends
        is applied too, whether the checkpoint knows of it or not: receive in the thread that commits.
        """
        deadline_s = time.monotonic() + self._bound(timeout_s)
        with self._alone(deadline_s):
            self._agreement()
            commit = Commit(self._put(deadline_s))
            yield commit
            self._write(commit, deadline_s, apply=True)

    def finish(self, timeout_s: float | None = None) -> None:
        """Until both parties have applied all and know that the other has.

        Raises LinkTimeoutError with what is missing; LinkError for messages that were received and not
        committed.
        """
        exchange, timeout_s = self._exchange, self._bound(timeout_s)
        with self._alone(time.monotonic() + timeout_s):
            self._agreement()
            with exchange.changed:
                if exchange.inbox.taken:
                    raise LinkError(f"{len(exchange.inbox.taken)} messages were received; commit them first")
                exchange.finishing = True
            exchange.say_status()
            try:
                exchange.wait(exchange.parted, timeout_s, "the run did not end")
            except LinkTimeoutError as error:
                own, theirs = len(exchange.flight), len(exchange.inbox)
                raise LinkTimeoutError(
                    f"{error}; {own} messages are not applied there, {theirs} not here"
                ) from None
            for _ in range(2):  # the last words may be lost
                exchange.say_status()
            with self._record.writing() as writing:
                writing.receipted(sorted(exchange.flight.receipts))
                exchange.flight.receipts.clear()

    def close(self) -> None:
        """End the thread; what is not finished another session on the record goes on with."""
        self._exchange.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bound(self, timeout_s: float | None) -> float:
        bound_s = self.timeout_s if timeout_s is None else timeout_s
        if not bound_s <= threading.TIMEOUT_MAX:  # nor NaN
            raise LinkRefusedError(f"a timeout is at most {threading.TIMEOUT_MAX:.0f} s, got {bound_s}")
        return bound_s

    def _agreement(self) -> Agreement:
        with self._exchange.changed:
            self._exchange.check()
            if self._exchange.agreement is None:
                raise LinkError("the session is not connected; call connect first")
            return self._exchange.agreement

    @contextmanager
    def _alone(self, deadline_s: float) -> Iterator[None]:
        """One thread at a time writes. Raises LinkTimeoutError."""
        if not self._writing.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            raise LinkTimeoutError("another send or commit did not end; within a commit send with the commit")
        try:
            yield
        finally:
            self._writing.release()

    def _put(self, deadline_s: float) -> Callable[[Commit, Step, Mapping[str, Tensor]], None]:
        """How a commit takes a message: encoded, once there is room for it."""

        def put(commit: Commit, step: Step, tensors: Mapping[str, Tensor]) -> None:
            agreement, record = self._agreement(), self._record
            if record.sent(step) is not None or any(step == other for other, _ in commit.messages):
                return
            number = record.next_number + len(commit.messages)
            header = Header(record.job, record.run, record.party, number, step, record.id)
            data = codec.encode(header, tensors, self._wire)
            if len(data) > agreement.max_bytes:
                raise LinkRefusedError(
                    f"message {step} has {len(data)} bytes, the link takes {agreement.max_bytes}; "
                    "make batches smaller or raise max_bytes and window_bytes on both sides"
                )
            pending = sum(len(other) for _, other in commit.messages) + len(data)
            if len(commit.messages) >= agreement.window.messages or pending > agreement.window.bytes:
                raise LinkRefusedError("one commit sends more than the window holds; send in several commits")
            self._wait_for_room(number, pending, deadline_s)
            commit.messages.append((step, data))

        return put

    def _wait_for_room(self, number: int, size: int, deadline_s: float) -> None:
        exchange, window = self._exchange, self._agreement().window

        def room() -> bool:
            if exchange.peer.have is None:  # a record that went back is found before anything leaves
                return False
            within = number < exchange.peer.applied.watermark + window.messages
            return within and exchange.flight.bytes + size <= window.bytes

        left_s = max(0.0, deadline_s - time.monotonic())
        exchange.wait(room, left_s, f"{self._record.partner} applied too little to send more")

    def _write(self, commit: Commit, deadline_s: float, *, apply: bool) -> None:
        """Make it durable, then publish."""
        exchange, messages = self._exchange, {}
        with exchange.changed:
            taken = dict(exchange.inbox.taken) if apply else {}
            receipts = set(exchange.flight.receipts)
        with self._record.writing() as writing:
            for number, step in taken.items():
                writing.apply(number, step)
            writing.receipted(receipts)
            if commit.state is not None:
                writing.checkpoint(commit.state)
            for step, data in commit.messages:
                messages[writing.send(step, lambda number, data=data: data)] = data  # type: ignore[misc]
        with exchange.changed:
            for number in taken:
                del exchange.inbox.taken[number]
            exchange.flight.receipts -= receipts
            for number, data in messages.items():
                exchange.flight.add(number, len(data))
            exchange.counts.update(sent=len(messages), received=len(taken))
        for number, data in messages.items():
            exchange.publish(number, data, max(0.0, deadline_s - time.monotonic()))
        if taken:
            exchange.say_status()
