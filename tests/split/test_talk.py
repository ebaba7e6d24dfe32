"""A checkpoint comes back as it was kept, or is refused; one is due before the partner's window is full."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.config import from_plain, to_plain
from transom.errors import CheckpointError, MisconfiguredError
from transom.link.codec import HEADER_BYTES
from transom.link.exchange import Agreement
from transom.link.message import Header, Step
from transom.link.session import Received
from transom.link.talk import Talk, pack, unpack
from transom.link.window import Window
from transom.split.customer import Point, Progress
from transom.split.job import Train
from transom.split.messages import request
from transom.split.metrics import Tally

COUNTS = st.integers(0, 2**31)
LOSSES = st.floats(0, 1e12)
TALLIES = st.builds(Tally, LOSSES, COUNTS, COUNTS)
POINTS = st.builds(Point, COUNTS, st.none() | LOSSES, st.dictionaries(st.sampled_from("abc"), LOSSES))
ABOUT = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
PROGRESS = st.builds(
    Progress, COUNTS, TALLIES, COUNTS, TALLIES, st.lists(POINTS, max_size=3).map(tuple), st.booleans()
)


@given(
    PROGRESS, st.binary(max_size=50), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3)
)
def test_a_checkpoint_comes_back_to_the_bit(progress: Progress, learnt: bytes, about: dict[str, str]) -> None:
    plain, again = unpack(pack(about, to_plain(progress), learnt), about)
    assert from_plain(Progress, plain, "it") == progress
    assert again == learnt


@given(st.binary(max_size=60))
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(data, {})


@pytest.mark.parametrize("cut", [0, 4, 8, 30])
def test_half_a_checkpoint_is_refused(cut: int) -> None:
    with pytest.raises(CheckpointError):
        unpack(pack({"job": "a"}, {"steps": 1})[:cut], {"job": "a"})


def test_what_it_is_of_is_told_with_both_values() -> None:
    data = pack({"job": "a", "same": "s"}, {})
    with pytest.raises(CheckpointError, match=r"job was 'a', and is 'b'\. "):
        unpack(data, {"job": "b", "same": "s"})
    with pytest.raises(CheckpointError, match=r"more was 'None', and is 'c'"):
        unpack(data, {"job": "a", "same": "s", "more": "c"})


class Endless:
    """In place of a session: there is always a message of 1,000 numbers."""

    def receive(self, topics: tuple[str, ...]) -> Received:
        import torch

        return Received(Header("j", "r", "p", 0, Step(0, 0, "forward")), request(torch.zeros(10, 100)))


def talk(window: Window, **train: Any) -> Talk:
    of = Train(**train)
    agreement = Agreement("p", 1, window, 2**20, 0.0)
    return Talk(Endless(), agreement, of.checkpoint_every_steps, of.micro_batches)  # type: ignore[arg-type]


def test_a_checkpoint_is_due_by_steps_messages_and_bytes() -> None:
    by_steps = talk(Window(64, 2**28), checkpoint_every_steps=3)
    assert [by_steps.stepped() for _ in range(3)] == [False, False, True]
    for window in (Window(64, 2**28), Window(4096, 64 * (4016 + HEADER_BYTES))):
        held = talk(window, checkpoint_every_steps=1000)
        for _ in range(15):
            held.receive("train")
        assert not held.stepped()
        held.receive("train")
        assert held.stepped()
        assert held.is_ahead


def test_more_micro_batches_than_the_window_holds_are_refused() -> None:
    talk(Window(64, 2**28), micro_batches=16)
    with pytest.raises(MisconfiguredError, match="set window to 68"):
        talk(Window(64, 2**28), micro_batches=17, batch_rows=17)
