"""The mailbox: bounded both ways, in order, and honest about trouble."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

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
            assert queue.pop() == model.popleft()
        assert len(queue) == len(model) <= capacity
        assert queue.full == (len(model) == capacity or sum(map(len, model)) >= max_bytes)


def mailbox() -> tuple[Mailbox, list[str]]:
    woken: list[str] = []
    return Mailbox(2, 10, 1_000, lambda: woken.append("woken")), woken


def test_messages_wait_for_the_carrier_in_order() -> None:
    box, woken = mailbox()
    assert box.next() is None
    for message in (b"one", b"two"):
        box.publish(message, timeout_s=0.0)
    assert woken == ["woken"]  # for the first; the carrier goes on by itself
    assert box.waiting == 2
    with pytest.raises(LinkTimeoutError, match="2 wait here, not connected yet"):
        box.publish(b"three", timeout_s=0.0)
    assert box.next() == b"one"
    box.publish(b"three", timeout_s=0.0)
    assert [box.next(), box.next(), box.next()] == [b"two", b"three", None]


def test_while_it_is_held_nothing_is_published_and_what_is_then_too_large_is_refused() -> None:
    box = Mailbox(2, 10, 1_000, lambda: None, held=True)
    with pytest.raises(LinkTimeoutError, match="0 wait here"):
        box.publish(b"one", timeout_s=0.0)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(box.publish, b"12345", timeout_s=30.0)
        box.carries(4)
        with pytest.raises(LinkRefusedError, match="5 bytes, 4 is the most"):
            waits.result()
    box.publish(b"1234", timeout_s=0.0)
    assert (box.next(), box.state) == (b"1234", "connected")


def test_the_opposite_end_takes_what_is_published_and_each_hears_of_its_own_trouble() -> None:
    one, _ = mailbox()
    other = one.opposite()
    one.publish(b"there", timeout_s=0.0)
    other.publish(b"back", timeout_s=0.0)
    one.end()
    assert (one.take(0.0), other.take(0.0), other.take(0.0)) == (b"back", b"there", None)
    with pytest.raises(LinkError, match="closed"):
        one.take(0.0)


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
