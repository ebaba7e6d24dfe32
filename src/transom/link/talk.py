"""A party's conversation with its partner: messages, and when what they changed becomes durable.

A commit applies all that was received, so it comes only between steps, with the state after the last one.
What was received and not committed comes again after a kill, and the same steps are computed again; so it
may be rare, but must come before the partner's window is full of messages that are not applied here.
Threat model: that of `transom.link`. Does not protect anything beyond it.
Source: own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transom.config import load_json
from transom.errors import CheckpointError, LinkRefusedError, LinkTimeoutError, MisconfiguredError
from transom.link.codec import HEADER_BYTES
from transom.link.exchange import Agreement
from transom.link.message import Step
from transom.link.session import Received, Session

if TYPE_CHECKING:
    from torch import Tensor

Tensors = Mapping[str, "Tensor"]
Message = tuple[Step, Tensors]
Spent = Callable[[str, float, float], None]  # on what (waiting, sending, saving), from when, until when
_PREFIX_BYTES = 8  # the length of the plain part, little-endian


class Talk:
    """A connected session. A checkpoint becomes due every so many steps, or after so much received; between
    two of them a party sends `at_once` messages at most without an answer."""

    def __init__(self, session: Session, agreement: Agreement, every_steps: int, at_once: int) -> None:
        window = agreement.window
        if 4 * at_once > window.messages:
            raise MisconfiguredError(
                f"{at_once} messages at once do not fit the link's window of {window.messages} messages; set "
                f"window to {4 * at_once} or more for both parties"
            )
        self.agreement = agreement
        self._session, self._every = session, every_steps
        self._most_messages, self._most_bytes = window.messages // 4, window.bytes // 4
        self._steps = self._messages = self._bytes = 0
        self._silent_s: float | None = None  # until when a silence may last, once it began
        self.spent: Spent = lambda what, begun_s, ended_s: None

    def receive(self, *topics: str) -> Received:
        """The next message of these topics."""
        return self._counted(self._session.receive(topics))

    def _counted(self, received: Received) -> Received:
        self._messages += 1
        self._bytes += HEADER_BYTES + sum(tensor.nbytes for tensor in received.tensors.values())
        return received

    def wait(self, topics: tuple[str, ...], ready: Callable[[], bool], until_s: float) -> Received | None:
        """The next message of these topics; None once something else is `ready`, or at a monotonic time.

        Raises LinkTimeoutError where nothing came or was ready for the session's timeout.
        """
        now_s = time.monotonic()
        self._silent_s = self._silent_s or now_s + self._session.timeout_s
        left_s = max(0.0, min(until_s, self._silent_s) - now_s)
        with self._spending("waiting"):
            received = self._session.receive_or(topics, ready, left_s)
        if received is not None or ready():
            self._silent_s = None
        elif time.monotonic() >= self._silent_s:
            raise LinkTimeoutError(
                f"no message of {' or '.join(topics)} came within {self._session.timeout_s:g} s; check that "
                "the partner runs and reaches the broker"
            )
        return None if received is None else self._counted(received)

    def wake(self) -> None:
        """From another thread: what `wait` waits for may be ready."""
        self._session.wake()

    def answer(self, step: Step) -> Tensors:
        """What the partner replies to our message of this step. Raises LinkRefusedError for another."""
        received = self.receive(step.topic)
        got = received.header.step
        if (got.topic, got.epoch, got.batch) != (step.topic, step.epoch, step.batch):
            raise LinkRefusedError(
                f"the partner answered {got} where {step} was asked; it is of another version"
            )
        return received.tensors

    def send(self, step: Step, tensors: Tensors) -> None:
        """Durable, then on its way; a step that was sent before a kill changes nothing."""
        with self._spending("sending"):
            self._session.send(step, tensors)

    def stepped(self, steps: int = 1) -> bool:
        """So many steps are done; whether a checkpoint is due."""
        self._steps += steps
        return self._steps >= self._every or self.is_full

    @property
    def is_full(self) -> bool:
        """Whether a checkpoint is due for what was received, also within a step."""
        return self._messages >= self._most_messages or self._bytes >= self._most_bytes

    @property
    def is_ahead(self) -> bool:
        """Whether there are steps that the last checkpoint does not have."""
        return self._steps > 0

    def commit(self, state: bytes | None, message: Message | None = None) -> None:
        """What was received is applied, with the state after it, and a last message goes: all or nothing."""
        with self._spending("saving"), self._session.commit() as commit:
            if state is not None:
                commit.checkpoint(state)
            if message is not None:
                commit.send(*message)
        self._steps = self._messages = self._bytes = 0

    @contextmanager
    def _spending(self, what: str) -> Iterator[None]:
        begun_s = time.monotonic()
        yield
        self.spent(what, begun_s, time.monotonic())


def pack(about: Mapping[str, str], plain: Mapping[str, Any], learnt: bytes = b"") -> bytes:
    """A checkpoint: what it is of, where a party stands, and what it has learnt."""
    head = json.dumps({"about": dict(about), "plain": plain}).encode()
    return len(head).to_bytes(_PREFIX_BYTES, "little") + head + learnt


def unpack(data: bytes, about: Mapping[str, str]) -> tuple[Any, bytes]:
    """The reverse of `pack`. Raises CheckpointError: damaged, or of something else (both told)."""
    size = int.from_bytes(data[:_PREFIX_BYTES], "little")
    try:
        head = load_json(data[_PREFIX_BYTES : _PREFIX_BYTES + size])
        found, plain = dict(head["about"]), head["plain"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"this checkpoint ({len(data)} bytes) is damaged; give the run another name, to begin it anew"
        ) from None
    if other := sorted(name for name in {*found, *about} if found.get(name) != about.get(name)):
        told = "; ".join(
            f"{name} was {str(found.get(name))[:80]!r}, and is {about.get(name)!r}" for name in other
        )
        raise CheckpointError(
            f"this run began as another: {told}. Restore that, or give the run another name or folder"
        )
    return plain, data[_PREFIX_BYTES + size :]
