"""What every broker has to do, whatever carries the messages: `brokers.py` lists the kinds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.broker import Broker

from .brokers import HELD_BYTES, KINDS, WAIT_S, Pair, Sizes, taken

SIZES = Sizes()


@pytest.fixture(params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with KINDS[request.param](tmp_path, SIZES) as made:
        yield made


def numbered(count: int, size: int = 40, name: bytes = b"") -> list[bytes]:
    return [(name + b"%d " % number).ljust(size, b".") for number in range(count)]


def publish(broker: Broker, messages: list[bytes]) -> None:
    for message in messages:
        broker.publish(message, timeout_s=WAIT_S)


def filled(broker: Broker) -> list[bytes]:
    """Publish until nothing more goes in; what went in."""
    messages: list[bytes] = []
    while sum(map(len, messages)) <= HELD_BYTES:
        message = b"%d " % len(messages) + bytes(SIZES.max_bytes - 10)
        try:
            broker.publish(message, timeout_s=0.3)
        except LinkTimeoutError:
            return messages
        messages.append(message)
    raise AssertionError("nobody takes, and yet it goes on")


def test_both_directions_at_once_each_in_order(pair: Pair) -> None:
    there, back = numbered(300, name=b"there "), numbered(300, 3_000, name=b"back ")
    with ThreadPoolExecutor(4) as pool:
        sends = [pool.submit(publish, broker, sent) for broker, sent in zip(pair, (there, back), strict=True)]
        takes = [pool.submit(taken, broker, 300) for broker in pair]
        for send in sends:
            send.result()
        assert [take.result() for take in takes] == [back, there]
    assert [broker.take(0.0) for broker in pair] == [None, None]


@pytest.mark.parametrize("size", [0, 1, 4, SIZES.max_bytes - 1, SIZES.max_bytes])
def test_an_empty_and_the_largest_message(pair: Pair, size: int) -> None:
    for sender, receiver in (pair, pair[::-1]):
        message = (b"\0\xff\r\n" * size)[:size]
        publish(sender, [message, b"next"])
        assert taken(receiver, 2) == [message, b"next"]


def test_a_message_that_is_too_large_is_refused_before_a_byte_is_sent(pair: Pair) -> None:
    for sender, receiver in (pair, pair[::-1]):
        assert sender.max_bytes == SIZES.max_bytes
        with pytest.raises(LinkRefusedError, match=f"{SIZES.max_bytes + 1} bytes"):
            sender.publish(bytes(SIZES.max_bytes + 1), timeout_s=WAIT_S)
        publish(sender, [b"next"])
        assert taken(receiver, 1) == [b"next"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(st.binary(max_size=3_000), max_size=12))
def test_messages_arrive_byte_for_byte(pair: Pair, messages: list[bytes]) -> None:
    publish(pair[0], messages)
    publish(pair[1], messages[::-1])
    assert taken(pair[1], len(messages)) == messages
    assert taken(pair[0], len(messages)) == messages[::-1]


def test_where_nobody_takes_publish_waits_and_memory_stays_bounded(pair: Pair) -> None:
    sender, receiver = pair
    messages = filled(sender)
    with pytest.raises(LinkTimeoutError):
        sender.publish(b"one more", timeout_s=0.0)
    with ThreadPoolExecutor(1) as pool:  # it goes on as soon as somebody takes
        waiting = pool.submit(publish, sender, numbered(5))
        arrived = taken(receiver, len(messages) + 5)  # where the space is the server's, not in order
        assert sorted(filter(None, arrived)) == sorted(messages + numbered(5))
        waiting.result()


def test_a_full_way_does_not_stop_the_other_one(pair: Pair) -> None:
    sender, receiver = pair
    filled(sender)
    with ThreadPoolExecutor(1) as pool:
        back = pool.submit(publish, receiver, numbered(50))
        assert taken(sender, 50) == numbered(50)
        back.result()


def test_take_gives_up_when_its_time_is_over(pair: Pair) -> None:
    for broker in pair:
        assert broker.take(0.0) is None
        assert broker.take(0.05) is None


def test_a_take_that_waits_gets_what_comes(pair: Pair) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair[1].take, WAIT_S)
        pair[0].publish(b"late", timeout_s=WAIT_S)
        assert waiting.result() == b"late"


def test_many_threads_may_publish(pair: Pair) -> None:
    names = [b"a ", b"b ", b"c ", b"d "]
    with ThreadPoolExecutor(len(names)) as pool:
        sends = [pool.submit(publish, pair[0], numbered(60, 700, name)) for name in names]
        arrived = taken(pair[1], 60 * len(names))
        for send in sends:
            send.result()
    for name in names:
        assert [one for one in arrived if one and one.startswith(name)] == numbered(60, 700, name)


def test_close_ends_those_who_wait(pair: Pair) -> None:
    sender = pair[0]
    filled(sender)
    ends: list[object] = []

    def wait(call: str) -> None:
        try:
            ends.append(sender.take(WAIT_S) if call == "take" else sender.publish(b"more", timeout_s=WAIT_S))
        except LinkError as error:
            ends.append(type(error))

    threads = [threading.Thread(target=wait, args=(call,)) for call in ("take", "publish")]
    for thread in threads:
        thread.start()
    sender.close()
    for thread in threads:
        thread.join(WAIT_S / 3)
        assert not thread.is_alive()
    assert LinkError in ends  # of publish; take may end with none, too
    assert set(ends) <= {LinkError, None}


def test_after_close_nothing_is_published_and_closing_twice_is_no_error(pair: Pair) -> None:
    pair[0].close()
    with pytest.raises(LinkError):
        pair[0].publish(b"late", timeout_s=0.1)
    pair[0].close()


def test_what_was_published_before_close_arrives(pair: Pair) -> None:
    publish(pair[0], numbered(10, 20_000))
    pair[0].close()
    assert taken(pair[1], 10) == numbered(10, 20_000)


def test_it_says_what_is_connected(pair: Pair) -> None:
    publish(pair[0], [b"x"])
    taken(pair[1], 1)
    for broker in pair:
        found = broker.describe()
        assert found
        assert all(isinstance(text, str) and text for one in found.items() for text in one)
