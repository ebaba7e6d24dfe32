"""The broker in memory, and the one that does its worst: bounds, waits, and that each fault happens."""

from __future__ import annotations

import threading
import time

import pytest

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.faults import FaultyBroker
from transom.link.memory import memory_pair

MESSAGES = [b"message %d" % number for number in range(200)]


def test_messages_go_both_ways_in_order_and_are_bounded() -> None:
    a, b = memory_pair(capacity=2, max_bytes=8)
    for data in (b"one", b"two"):
        a.publish(data, timeout_s=1)
        b.publish(data[::-1], timeout_s=1)
    with pytest.raises(LinkTimeoutError, match="2 wait here, in this process"):
        a.publish(b"three", timeout_s=0.01)
    with pytest.raises(LinkRefusedError, match="9 bytes, 8 is the most"):
        a.publish(b"x" * 9, timeout_s=1)
    assert [b.take(1), b.take(1), b.take(0), a.take(1), a.take(1), a.take(0.01)] == [
        b"one", b"two", None, b"eno", b"owt", None
    ]  # fmt: skip
    assert a.describe() == {"broker": "memory"}


def test_a_wait_ends_with_what_it_waits_for() -> None:
    a, b = memory_pair(capacity=1)
    a.publish(b"first", timeout_s=1)
    later = threading.Thread(target=lambda: a.publish(b"second", timeout_s=30))
    later.start()
    assert [b.take(30), b.take(30)] == [b"first", b"second"]
    later.join()
    closer = threading.Timer(0.02, a.close)
    closer.start()
    with pytest.raises(LinkError, match="closed"):
        b.take(30)
    closer.join()
    with pytest.raises(LinkError, match="closed"):
        b.publish(b"late", timeout_s=1)


def carried(sealed: bool = True, **faults: float) -> tuple[FaultyBroker, FaultyBroker, list[bytes]]:
    """What arrives of all messages."""
    ends = memory_pair(capacity=10_000)
    a, b = (FaultyBroker(end, seed=7, sealed=sealed, **faults) for end in ends)
    for data in MESSAGES:
        a.publish(data, timeout_s=1)
    arrived = []
    deadline_s = time.monotonic() + 0.1
    while time.monotonic() < deadline_s:
        a.take(0)  # lets go of what it held
        data = b.take(0.01)
        if data is not None:
            arrived.append(data)
            deadline_s = time.monotonic() + 0.1
    return a, b, arrived


def test_without_faults_all_arrives() -> None:
    _, _, arrived = carried()
    assert arrived == MESSAGES


@pytest.mark.parametrize("fault", ["drop", "double", "reorder", "truncate", "corrupt", "replay", "flood"])
def test_each_fault_does_what_it_is_called(fault: str) -> None:
    a, b, arrived = carried(**{fault: 0.3})
    happened = a.faults[fault]
    assert 30 < happened < 90
    assert sum(a.faults.values()) == happened
    assert set(arrived) <= set(MESSAGES)  # nothing that was altered or made up
    lost = fault in ("drop", "truncate", "corrupt")
    added = happened if fault == "double" else len(arrived) - len(MESSAGES) if fault == "replay" else 0
    assert len(arrived) == len(MESSAGES) + added - happened * lost
    assert b.dropped == {"truncate": 1, "corrupt": 1, "flood": 8}.get(fault, 0) * happened
    assert (arrived == [data for data in MESSAGES if data in set(arrived)]) == (
        fault in ("drop", "truncate", "corrupt", "flood")
    )
    assert "faults" in a.describe()


def test_what_is_delayed_arrives_out_of_order() -> None:
    _, _, arrived = carried(delay_s=0.05)
    assert sorted(arrived) == sorted(MESSAGES)
    assert arrived != MESSAGES


def test_unsealed_what_is_altered_is_handed_on() -> None:
    a, b, arrived = carried(sealed=False, corrupt=0.3)
    assert a.faults["corrupt"] / 2 < len(set(arrived) - set(MESSAGES)) <= a.faults["corrupt"]
    assert b.dropped == 0
    assert a.max_bytes == memory_pair()[0].max_bytes
    a.close()
    with pytest.raises(LinkError, match="closed"):
        b.publish(b"late", timeout_s=1)
