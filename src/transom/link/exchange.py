"""The service of a session: one thread that takes from the broker, answers, and sends again what was lost.

Every heartbeat, and sooner after a gap, it tells the partner what arrived and was applied; what the partner's
own status lacks is sent again, the same bytes, out of the record. Nothing is decided by clocks but when to
speak. A frame or message that is malformed is an error at the session's next call; the thread goes on, so
that the partner hears why.
Threat model: the broker may lose, double, reorder, delay and replay; the partner may send anything.
Does not protect: against a partner or broker that stops; every wait has its deadline.
Source: own.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from transom.errors import LinkError, LinkTimeoutError
from transom.link import codec, control
from transom.link.broker import Broker
from transom.link.control import Frame, Hello, Origin, Status
from transom.link.numbers import Numbers
from transom.link.peer import Peer
from transom.link.record import Record
from transom.link.window import Flight, Inbox, Window

_LONGEST_TAKE_S = 0.2  # so long may closing wait
_LINGER_BEATS = 10  # without a word, after which a partner that has all is taken to be gone
_SKEW_TOLD_S = 60.0
T = TypeVar("T")
_log = logging.getLogger("transom.link")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What holds between the parties: the smaller of both bounds; the rest is the partner's.

    `boot` is how many sessions began on its record, `clock_skew_s` how far its clock is ahead (negative:
    behind).
    """

    partner: str
    boot: int
    window: Window
    max_bytes: int
    clock_skew_s: float


class Exchange:
    """What the session and its thread share, behind the condition `changed`."""

    def __init__(
        self,
        broker: Broker,
        record: Record,
        terms: Mapping[str, str],
        window: Window,
        *,
        heartbeat_s: float,
        resend_after_s: float,
    ) -> None:
        self._broker, self._record, self._terms, self._window = broker, record, dict(terms), window
        self._heartbeat_s, self._resend_after_s = heartbeat_s, resend_after_s
        self._boot, self._instance = record.begin(), secrets.token_hex(8)
        held = record.held
        self.changed = threading.Condition()
        self.flight, self.inbox = Flight(held), Inbox(record.applied, window)
        applied = Numbers(number for number in range(record.next_number) if number not in held)
        self.peer = Peer(record.partner, self._instance, applied)
        self.agreement: Agreement | None = None
        self.suspected: list[str] = []  # differences in a hello that may be a replay
        self.finishing = False
        self.counts: Counter[str] = Counter()
        self._count = 0
        self._agreed_with = ""  # the instance
        self._answer = self._closed = False
        self._failure: LinkError | None = None
        self._due_s = self._said_s = self._resend_s = 0.0  # monotonic
        self._heard_s: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Once; later calls do nothing."""
        control.write(self._origin(), self._hello())  # raises for terms that are too large
        with self.changed:
            self.check()
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="transom-link", daemon=True)
                self._thread.start()

    def close(self) -> None:
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raises what went wrong, here or in the thread."""
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args) from self._failure
        if self._closed:
            raise LinkError("the session is closed; make another on the record")

    def wait(self, ready: Callable[[], T | None], timeout_s: float, what: str) -> T:
        """What `ready` gives, once it gives anything; it is asked with `changed` held.

        Raises LinkTimeoutError, and what went wrong.
        """
        deadline_s = time.monotonic() + timeout_s
        with self.changed:
            while True:
                self.check()
                found, left_s = ready(), deadline_s - time.monotonic()
                if found:
                    return found
                if left_s <= 0:
                    raise LinkTimeoutError(
                        f"{what} within {round(timeout_s, 2):g} s; {self._last_heard()}. Check that "
                        f"{self._record.partner} runs and reaches the broker"
                    )
                self.changed.wait(left_s)

    def fail(self, error: LinkError) -> None:
        """The first error stays."""
        with self.changed:
            self._failure = self._failure or error
            self.changed.notify_all()

    def publish(self, number: int, data: bytes, timeout_s: float) -> bool:
        """A message of the record goes out; whether it did: else it does later."""
        with self.changed:
            self.flight.published(number, time.monotonic(), self._count)
            self.counts.update(bytes=len(data))
        out = self._out(data, timeout_s)
        if not out:
            with self.changed:
                self.flight.unpublished(number)
        return out

    def say_status(self) -> None:
        """Tell the partner now."""
        self._say(self._status)

    def done(self) -> int:
        """As `Status.done`."""
        applied = self._record.applied
        waiting = len(self.flight) or len(self.inbox) or self.inbox.taken or applied.extras
        if not self.finishing or waiting or applied.watermark < self.peer.next_number:
            return 0
        return 2 if self.peer.done else 1

    def parted(self) -> bool:
        """Whether both parties know that all is applied, or this one does and the partner is gone."""
        silent_s = time.monotonic() - (self._heard_s or 0.0)
        return self.done() == 2 and (self.peer.done == 2 or silent_s > _LINGER_BEATS * self._heartbeat_s)

    def _serve(self) -> None:
        try:
            while True:
                self._beat()
                if self._closed:
                    return
                wake_s = min(self._due_s, self._resend_s) - time.monotonic()
                data = self._broker.take(max(0.0, min(wake_s, _LONGEST_TAKE_S)))
                if data is not None:
                    self._handle(data)
        except LinkError as error:
            self.fail(error)
        except Exception as error:
            failure = LinkError(f"the link's service ended ({type(error).__name__}); make another session")
            failure.__cause__ = error
            self.fail(failure)

    def _beat(self) -> None:
        """Speak if it is time to, and send again one message that is due."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            with self.changed:
                self._due_s, self._said_s = now_s + self._heartbeat_s, now_s
                agreed = self.agreement is not None
                hello, self._answer = self._answer or not agreed, False
                self.changed.notify_all()  # `parted` changes with time
            if hello:
                self._say(self._hello)
            if agreed:
                self._say(self._status)
        if now_s >= self._resend_s:
            more = self._resend(now_s)
            self._resend_s = now_s if more else now_s + min(self._heartbeat_s, self._resend_after_s) / 4

    def _resend(self, now_s: float) -> bool:
        """Whether there is more to send again."""
        with self.changed:
            peer, agreement = self.peer, self.agreement
            if agreement is None or peer.have is None:
                return False
            before_s = now_s - self._resend_after_s
            due = self.flight.due(peer.have, peer.applied.watermark, peer.echo, before_s, agreement.window)
        data = self._record.message(due[0]) if due else None
        if data is None:
            return False
        self.counts.update(resent=1)
        return self.publish(due[0], data, self._heartbeat_s) and len(due) > 1

    def _say(self, body: Callable[[], Hello | Status]) -> None:
        with self.changed:
            self._count += 1
            self.peer.tell(self._count, self._record.applied.end)
            data = control.write(self._origin(), body())
        self._out(data, self._heartbeat_s)

    def _out(self, data: bytes, timeout_s: float) -> bool:
        """Whether the broker took it in time; what else it says is told at the session's next call."""
        try:
            self._broker.publish(data, timeout_s=timeout_s)
        except LinkTimeoutError:
            return False
        except LinkError as error:
            self.fail(error)
            return False
        return True

    def _hasten(self) -> None:
        """Speak soon, but not at every call."""
        self._due_s = min(self._due_s, self._said_s + self._heartbeat_s / 4)

    def _handle(self, data: bytes) -> None:
        try:
            if control.is_control(data):
                self._control(control.read(data))
            else:
                self._message(data)
        except LinkError as error:
            self.fail(error)

    def _message(self, data: bytes) -> None:
        header, record = codec.peek(data), self._record
        with self.changed:
            known = self.peer.origin  # before the partner has spoken nothing of it is taken: it sends again
            theirs = (record.job, record.run, record.partner, known.record if known else None)
            if (header.job, header.run, header.sender, header.record) != theirs:
                self.counts.update(refused=1)
                return
            outcome = self.inbox.put(header, data, record.applied.watermark)
            self.counts.update({outcome: 1})
            self._heard_s = time.monotonic()
            if outcome != "new" or self.inbox.have.extras:
                self._hasten()
            self.changed.notify_all()

    def _control(self, frame: Frame) -> None:
        origin, record = frame.origin, self._record
        with self.changed:
            ours = (origin.job, origin.run, origin.sender) == (record.job, record.run, record.partner)
            if frame.kind == "status" and not (ours and frame.protocol == control.PROTOCOL):
                self.counts.update(refused=1)
                return
            alike = (origin.job, origin.sender) == (record.job, record.partner)
            if alike and not ours and frame.protocol == control.PROTOCOL:
                # its run ends, or has not begun here: told where it does not come with this one in time
                self.suspected = control.differences(frame, self._origin(), self._hello())
                return
            standing = self.peer.meet(origin, self._count)
            news = standing in ("new", "known")
            if news:
                self._heard_s = time.monotonic()
            if frame.kind == "hello":
                self._greeted(frame, news=news)
            elif standing == "unmet" or (news and origin.instance != self._agreed_with):
                self._answer = True
                self._hasten()
            elif news:
                self._told(frame)
            self.changed.notify_all()

    def _greeted(self, frame: Frame, *, news: bool) -> None:
        """A hello: what differs counts only where it is no replay."""
        differ = control.differences(frame, self._origin(), self._hello())
        hello = frame.read() if frame.protocol == control.PROTOCOL else None
        if hello is None or (isinstance(hello, Hello) and hello.answer):
            self._answer = True
            self._hasten()
        if not news:
            self.suspected = differ
        elif differ:
            self._answer, self._due_s = True, 0.0  # so that the partner can tell too
            self.fail(control.refusal(self._record.partner, differ))
        elif isinstance(hello, Hello):
            self._agree(frame.origin, hello)

    def _agree(self, origin: Origin, hello: Hello) -> None:
        skew_s = hello.clock_s - time.time()
        if origin.instance != self._agreed_with and abs(skew_s) > _SKEW_TOLD_S:
            _log.warning(
                "the clock of %s is %+.0f s off this one; nothing depends on it", origin.sender, skew_s
            )
        window = Window(min(hello.window, self._window.messages), min(hello.window_bytes, self._window.bytes))
        max_bytes = min(hello.max_bytes, self._broker.max_bytes, window.bytes)
        self.agreement = Agreement(origin.sender, origin.boot, window, max_bytes, skew_s)
        self._agreed_with = origin.instance
        self._hasten()

    def _told(self, frame: Frame) -> None:
        """A status of the partner's current life."""
        status = frame.read()
        if not isinstance(status, Status):
            return
        before = self.done()
        self.peer.update(status, self._record.next_number, self._record.applied)
        self.flight.receipt(self.peer.applied)
        if self.done() != before:
            self._due_s = 0.0

    def _origin(self) -> Origin:
        record = self._record
        return Origin(
            record.job, record.run, record.party, self._boot, self._instance, self._count,
            self.peer.heard, record.id,
        )  # fmt: skip

    def _hello(self) -> Hello:
        unmet = self.peer.origin is None or self.peer.origin.instance != self._agreed_with
        return Hello(
            self._record.partner, self._terms, self._window.messages, self._window.bytes,
            self._broker.max_bytes, time.time(), answer=unmet,
        )  # fmt: skip

    def _status(self) -> Status:
        applied, number = self._record.applied, self._record.next_number
        return Status(
            have=tuple(self.inbox.have.to_plain()),
            applied=tuple(applied.to_plain()),
            next_number=number,
            held_from=min(self._record.held, default=number),
            done=self.done(),
        )

    def _last_heard(self) -> str:
        state = self._broker.describe().get("state", "connected")
        here = "" if state == "connected" else f" ({state})"
        if self._heard_s is None:
            return f"nothing was heard of {self._record.partner}{here}"
        ago_s = time.monotonic() - self._heard_s
        return f"{self._record.partner} was last heard {ago_s:.1f} s ago ({self.peer.described()}){here}"
