"""The mailbox: bounded both ways, in order, and honest about trouble."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.mailbox import Mailbox, Queue


@given(
    capacity=st.integers(1, 5),
    max_bytes=st.integers(1, 40),
    steps=st.lists(st.none() | st.binary(max_size=20), max_size=40),
)
def test_a_queue_against_a_deque(capacity: int, max_bytes: int, steps: list[bytes | None]) -> None:
    queue, model = Queue(capacity, max_bytes), deque[bytes]()
    for step in steps:
        if step is not None and not queue.full:
            queue.put(step)
            model.append(step)
        elif step is None and model:
            assert queue.first == model[0]
            assert queue.pop() == model.popleft()
        assert len(queue) == len(model) <= capacity
        assert queue.full == (len(model) == capacity or sum(map(len, model)) >= max_bytes)


def mailbox() -> tuple[Mailbox, list[str]]:
    woken: list[str] = []
    return Mailbox(2, 10, 1_000, lambda: woken.append("woken")), woken


def test_a_message_stays_first_until_it_is_sent() -> None:
    box, woken = mailbox()
    assert box.first() is None
    for message in (b"one", b"two"):
        box.publish(message, timeout_s=0.0)
    assert woken == ["woken"]  # for the first; the carrier goes on by itself
    assert [box.first(), box.first()] == [b"one", b"one"]
    with pytest.raises(LinkTimeoutError, match="2 wait here, not connected yet"):
        box.publish(b"three", timeout_s=0.0)
    box.sent()
    assert box.first() == b"two"
    box.publish(b"three", timeout_s=0.0)


def test_the_carrier_that_is_woken_finds_room() -> None:
    """It looks while `take` may still hold the lock; nobody would wake it again."""
    seen: list[bool] = []
    box = Mailbox(1, 10, 1_000, lambda: seen.append(box.full))
    box.deliver(b"one")
    assert box.take(0.0) == b"one"
    assert seen == [False]


def test_the_carrier_is_woken_when_there_is_room_again() -> None:
    box, woken = mailbox()
    for message in (b"one", b"two"):
        assert not box.full
        box.deliver(message)
    assert box.full
    assert box.take(0.0) == b"one"
    assert box.take(0.0) == b"two"
    assert woken == ["woken"]
    assert box.take(0.0) is None


def test_what_arrived_comes_before_trouble_and_the_last_word_stays() -> None:
    box, _ = mailbox()
    box.deliver(b"one")
    box.tell(LinkRefusedError("a stranger"))
    assert box.take(0.0) == b"one"
    for _ in range(2):
        with pytest.raises(LinkRefusedError):
            box.take(0.0)
        with pytest.raises(LinkRefusedError):
            box.publish(b"one", timeout_s=0.0)
    box.tell(None)
    assert box.take(0.0) is None
    box.tell(LinkError("closed"), last=True)
    box.tell(None)
    with pytest.raises(LinkError, match="closed"):
        box.take(0.0)
