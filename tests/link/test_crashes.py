"""Whatever the broker does and whoever is killed, a run ends as if nothing had happened."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from transom.errors import LinkError
from transom.link import codec
from transom.link.broker import Broker
from transom.link.faults import FaultyBroker
from transom.link.memory import memory_pair
from transom.link.message import Header, Step
from transom.link.session import Session

from .parties import QUICK, Killed, Mortal, record, together

STEPS, AHEAD, PRIME = 12, 3, 99_991
Job = Callable[[Session, bytes | None, Callable[[], None]], list[int]]


def tensors(number: int) -> dict[str, torch.Tensor]:
    """A number, and noise that a second making would not repeat."""
    return {"x": torch.tensor([number]), "noise": torch.rand(3)}


def history(state: bytes | None) -> list[int]:
    """A checkpoint: the sums after each step."""
    return [int(one) for one in state.decode().split()] if state else []


def after(sums: list[int], got: int) -> list[int]:
    return [*sums, (31 * (sums[-1] if sums else 1) + got) % PRIME]


def saved(sums: list[int]) -> bytes:
    return " ".join(map(str, sums)).encode()


def asks(session: Session, state: bytes | None, tick: Callable[[], None]) -> list[int]:
    """Party a: asks `AHEAD` steps before their answers; what it asks hangs on the answers so far."""
    sums = history(state)
    for batch in range(AHEAD):
        session.send(Step(0, batch, "forward"), tensors(7 * batch))
    for batch in range(len(sums), STEPS):
        received = session.receive()
        assert received.header.step == Step(0, batch, "backward")
        tick()
        sums = after(sums, int(received.tensors["x"]))
        with session.commit() as commit:
            commit.checkpoint(saved(sums))
            if batch + AHEAD < STEPS:
                commit.send(Step(0, batch + AHEAD, "forward"), tensors(sums[-1]))
            tick()
    return sums


def answers(session: Session, state: bytes | None, tick: Callable[[], None]) -> list[int]:
    """Party b: answers each step with a sum over all before."""
    sums = history(state)
    for batch in range(len(sums), STEPS):
        received = session.receive()
        assert received.header.step == Step(0, batch, "forward")
        tick()
        sums = after(sums, int(received.tensors["x"]))
        with session.commit() as commit:
            commit.checkpoint(saved(sums))
            commit.send(Step(0, batch, "backward"), tensors(sums[-1]))
            tick()
    return sums


def undisturbed() -> tuple[list[int], list[int]]:
    asked: list[int] = []
    answered: list[int] = []
    for batch in range(STEPS):
        answered = after(answered, 7 * batch if batch < AHEAD else asked[batch - AHEAD])
        asked = after(asked, answered[-1])
    return asked, answered


def lives(
    party: str, job: Job, broker: Broker, folder: Path, sent: list[bytes], deaths: list[int]
) -> list[int]:
    """Run a job to its end over as many lives as it takes; each begins with the files the last one left."""
    for life in range(len(deaths) + 1):
        end = Mortal(broker, sent, deaths[life] if life < len(deaths) else None)
        here = folder / f"{party}{life}"
        held = record(party, here / "record")
        session = Session(end, held, {"model": "m"}, window=AHEAD + 1, **QUICK)
        try:
            session.connect()
            sums = job(session, held.checkpoint, end.tick)
            end.left = None
            session.finish()
        except (Killed, LinkError) as error:
            if not end.dead or "Killed" not in repr(error):
                raise
            session.close()
            shutil.copytree(here, folder / f"{party}{life + 1}")  # before anything is closed well
        else:
            assert held.boot == life + 1
            assert held.held == {}
            return sums
        finally:
            end.close()
            session.close()
            held.close()
    raise AssertionError("it died more often than it was to")


def disturbed(folder: Path, seed: int, deaths: int, **faults: float) -> tuple[FaultyBroker, FaultyBroker]:
    drawn = random.Random(seed)
    a, b = memory_pair()
    ends = FaultyBroker(a, seed, **faults), FaultyBroker(b, seed + 1, **faults)
    sent: tuple[list[bytes], list[bytes]] = [], []
    dying = [[drawn.randrange(4, 40) for _ in range(deaths)] for _ in range(2)]
    results = together(
        lambda: lives("a", asks, ends[0], folder, sent[0], dying[0]),
        lambda: lives("b", answers, ends[1], folder, sent[1], dying[1]),
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    assert tuple(results) == undisturbed()
    for of in sent:
        bytes_of: dict[Header, set[bytes]] = defaultdict(set)
        for data in of:
            bytes_of[codec.peek(data)].add(data)
        assert [header.number for header in sorted(bytes_of, key=lambda header: header.number)] == list(
            range(STEPS)
        )
        assert all(len(each) == 1 for each in bytes_of.values())
    return ends


def test_nothing_disturbs(tmp_path: Path) -> None:
    disturbed(tmp_path, 0, 0)


@pytest.mark.parametrize(
    "fault", ["drop", "double", "delay_s", "reorder", "truncate", "corrupt", "replay", "flood"]
)
def test_each_fault_alone(tmp_path: Path, fault: str) -> None:
    ends = disturbed(tmp_path, 1, 0, **{fault: 0.05 if fault == "delay_s" else 0.3})
    assert fault == "delay_s" or ends[0].faults[fault] + ends[1].faults[fault]


@pytest.mark.parametrize("seed", range(4))
def test_kills_alone(tmp_path: Path, seed: int) -> None:
    disturbed(tmp_path, seed, 3)


@pytest.mark.parametrize("seed", range(10))
def test_all_at_once(tmp_path: Path, seed: int) -> None:
    chances = dict.fromkeys(["drop", "double", "reorder", "truncate", "corrupt", "replay", "flood"], 0.1)
    disturbed(tmp_path, seed, 2, delay_s=0.02, **chances)
