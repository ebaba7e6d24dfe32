"""A job of two parties whose end tells whether every step was applied once: for `link_faults.py` and tests.

`alpha` sends forward, `beta` answers backward, some steps carry a second message of another size; the new
state of each depends on every byte that it got, in its order, so a step lost, doubled or altered changes the
end. Both keep their state in the link's record, together with what they applied, every few steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from transom.link.codec import peek
from transom.link.config import LinkConfig, opened
from transom.link.control import is_control
from transom.link.faults import FaultyBroker
from transom.link.message import Step
from transom.link.record import Record
from transom.link.session import Session

WIDTH = 64


@dataclass(frozen=True)
class Toy:
    """What one party runs."""

    link: LinkConfig
    folder: Path
    steps: int
    every: int  # steps between two checkpoints
    size: int  # floats of the larger message
    faults: dict[str, Any] | None
    deadline_s: float
    pace_s: float = 0.0


class Watched:
    """A broker that notes, durably, a digest of what the party publishes."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner, self._path = inner, path
        self.max_bytes = inner.max_bytes

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        if not is_control(data):
            header = peek(data)
            note = {
                "step": str(header.step),
                "number": header.number,
                "sha": hashlib.sha256(data).hexdigest(),
            }
            with self._path.open("a") as file:
                file.write(json.dumps(note) + "\n")
        self._inner.publish(data, timeout_s=timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        return self._inner.take(timeout_s)

    def describe(self) -> Any:
        return self._inner.describe()

    def close(self) -> None:
        self._inner.close()


def party(toy: Toy) -> None:
    """Run one party to its end, from wherever its record says it stands."""
    torch.set_num_threads(1)
    link, name = toy.link, toy.link.party
    record = Record(
        toy.folder / f"{name}.sqlite", job=link.job, run=link.run, party=name, partner=link.partner
    )
    with opened(link) as broker:
        way: Any = FaultyBroker(broker, os.getpid(), **toy.faults) if toy.faults else broker
        watched = Watched(way, toy.folder / f"{name}.published")
        session = Session(
            watched,
            record,
            {"job": "toy"},
            window=16,
            timeout_s=toy.deadline_s,
            heartbeat_s=0.1,
            resend_after_s=0.3,
        )
        with session:
            session.connect()
            state = (alpha if name == "alpha" else beta)(session, toy, record.checkpoint)
            session.finish()
    record.close()
    end = hashlib.sha256(state.numpy().tobytes()).hexdigest()
    (toy.folder / f"{name}.end").write_text(end)


def alpha(session: Session, toy: Toy, kept: bytes | None) -> torch.Tensor:
    """Forward, then what comes back."""
    done, state = restored(kept, 1)
    for batch in range(done, toy.steps):
        session.send(Step(0, batch, "forward"), {"x": state})
        if batch % 3 == 0:
            large = state.repeat(toy.size // WIDTH + 1)[: toy.size]
            session.send(Step(0, batch, "forward", topic="large"), {"x": large})
        got = session.receive(topic="train")
        assert got.header.step == Step(0, batch, "backward")
        state = mixed(state, got.tensors["x"], batch)
        noted(toy, batch)
        if (batch + 1) % toy.every == 0 or batch + 1 == toy.steps:
            with session.commit() as now:
                now.checkpoint(saved(batch + 1, state))
    return state


def beta(session: Session, toy: Toy, kept: bytes | None) -> torch.Tensor:
    """What comes, and back."""
    done, state = restored(kept, 2)
    for batch in range(done, toy.steps):
        got = session.receive(topic="train")
        assert got.header.step == Step(0, batch, "forward")
        state = mixed(state, got.tensors["x"], batch)
        if batch % 3 == 0:
            large = session.receive(topic="large")
            assert large.header.step == Step(0, batch, "forward", topic="large")
            state = mixed(state, large.tensors["x"][-WIDTH:], batch)
        noted(toy, batch)
        answer = Step(0, batch, "backward"), {"x": torch.sin(state)}
        if (batch + 1) % toy.every == 0 or batch + 1 == toy.steps:
            with session.commit() as now:
                now.checkpoint(saved(batch + 1, state))
                now.send(*answer)
        else:
            session.send(*answer)
    return state


def mixed(state: torch.Tensor, other: torch.Tensor, batch: int) -> torch.Tensor:
    """A new state that every bit of both decides."""
    return torch.cos(1.7 * state + 0.3 * other.roll(batch) + batch)


def saved(done: int, state: torch.Tensor) -> bytes:
    return done.to_bytes(4, "big") + state.numpy().tobytes()


def restored(kept: bytes | None, seed: int) -> tuple[int, torch.Tensor]:
    """How many steps are done, and the state after them."""
    if kept is None:
        return 0, torch.rand(WIDTH, generator=torch.Generator().manual_seed(seed))
    return int.from_bytes(kept[:4], "big"), torch.frombuffer(bytearray(kept[4:]), dtype=torch.float32)


def noted(toy: Toy, batch: int) -> None:
    """Tell whoever watches how far this party is."""
    (toy.folder / f"{toy.link.party}.at").write_text(str(batch))
    time.sleep(toy.pace_s)
