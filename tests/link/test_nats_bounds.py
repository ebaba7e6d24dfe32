"""The broker at a real server: sizes, bursts, space, and a server that is away or hangs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import nats
import pytest

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.nats import NatsBroker
from transom.link.nats_client import headers_size
from transom.link.nats_server import LocalServer, local_server

from .brokers import until
from .nats_parties import (
    STREAM,
    TAKE_S,
    TO_BOB,
    asked,
    broker,
    end,
    filled,
    port_of,
    put,
    taken,
)  # fmt: skip


def test_headers_count_so_what_just_fits_is_sent_and_one_byte_more_is_not(tmp_path: Path) -> None:
    with (
        local_server(tmp_path, settings="max_payload: 64KB") as server,
        broker(server.url, "ann") as ann,
        broker(server.url, "bob") as bob,
    ):
        put(ann, b"connected")
        largest = bytes(ann.max_bytes)
        assert 65_000 < len(largest) < 65_536
        put(ann, largest)
        with pytest.raises(LinkRefusedError, match=f"{len(largest) + 1} bytes"):
            put(ann, largest + b"x")
        put(ann, b"after")
        assert taken(bob, 3) == [b"connected", largest, b"after"]
        assert ann.describe()["connections"] == "1"
        bob.close()
        put(ann, largest)
        until(lambda: ann.describe()["published"] == "4")
        there = asked(server.url, lambda client, js: js.get_last_msg(STREAM, TO_BOB))
        assert len(there.data) + headers_size(there.headers) == 2**16  # to the byte

        async def without_a_check(client: Any, _: Any) -> None:  # nats-py compares the data alone
            await client.publish(TO_BOB, bytes(65_536), headers={"Nats-Msg-Id": "x"})
            with pytest.raises((nats.errors.Error, asyncio.CancelledError)):
                await (await client.subscribe("nothing")).next_msg(timeout=TAKE_S)
            assert "maximum payload" in str(client.last_error)

        asked(server.url, without_a_check)


def test_too_large_before_the_server_is_known_is_refused_once_it_is(tmp_path: Path) -> None:
    with local_server(tmp_path, settings="max_payload: 64KB") as server, broker(server.url, "ann") as ann:
        with pytest.raises(LinkRefusedError, match="max_payload"):
            put(ann, bytes(65_536))
        with pytest.raises(LinkRefusedError):
            put(ann, bytes(2**26))


def test_a_fetch_of_several_returns_with_the_first_and_an_empty_one_raises(
    server: LocalServer, ann: NatsBroker
) -> None:
    put(ann, b"one")

    async def fetch(_: Any, js: Any) -> int:
        pull = await js.pull_subscribe(TO_BOB, "run~bob", STREAM)
        got = await pull.fetch(10, timeout=200)  # this test's own limit would end it
        with pytest.raises(TimeoutError):
            await pull.fetch(10, timeout=0.1)
        for message in got:
            await message.ack()
        return len(got)

    assert asked(server.url, lambda client, js: asyncio.wait_for(fetch(client, js), TAKE_S)) == 1


def test_a_burst_does_not_drop_the_connection(ann: NatsBroker, bob: NatsBroker) -> None:
    """More than the server lets pile up for a client that does not read: it is asked for by and by."""
    burst = [bytes([number]) * 7_000_000 for number in range(12)]
    for data in burst:
        put(ann, data)
    assert taken(bob, len(burst)) == burst
    assert (ann.describe()["connections"], bob.describe()["connections"]) == ("1", "1")


def test_a_full_stream_makes_publish_wait_and_say_what_the_server_said(server: LocalServer) -> None:
    options = {"stream_bytes": 100_000}
    with broker(server.url, "ann", **options) as ann:
        sent, told = filled(ann, bytes(30_000))
        assert "maximum bytes exceeded" in told
        with broker(server.url, "bob", **options) as bob:
            put(ann, b"at last")
            assert sorted(filter(None, taken(bob, sent + 1))) == sorted([bytes(30_000)] * sent + [b"at last"])


def test_one_way_that_is_full_leaves_the_other_its_space(server: LocalServer) -> None:
    options = {"stream_bytes": 100_000}
    with broker(server.url, "ann", **options) as ann, broker(server.url, "bob", **options) as bob:
        filled(ann, bytes(30_000))
        for number in range(20):
            put(bob, b"%6d" % number * 5_000)
            assert ann.take(TAKE_S) == b"%6d" % number * 5_000
    counts = asked(server.url, lambda client, js: js.streams_info())
    assert {info.config.name for info in counts} == {STREAM, "TRANSOM-job=1~ann"}


def test_what_waits_and_is_too_large_for_the_next_server_is_told_and_dropped(tmp_path: Path) -> None:
    with local_server(tmp_path) as first, broker(first.url, "ann") as ann, broker(first.url, "bob") as bob:
        put(ann, b"before")
        assert bob.take(TAKE_S) == b"before"
        end(first)
        for data in (bytes(70_000), b"small"):
            put(ann, data)
        with local_server(tmp_path, port_of(first), "max_payload: 64KB"):
            until(lambda: ann.max_bytes < 65_536)
            got = {bob.take(TAKE_S)}
            with pytest.raises(LinkRefusedError, match=r"70000 bytes.*max_payload"):
                put(ann, b"next")
            put(ann, b"after")
            while b"after" not in got:
                got.add(bob.take(TAKE_S))
            assert got - {b"before"} == {b"small", b"after"}


# A server that is away.


def test_a_server_that_hangs_holds_nobody_beyond_the_deadline(server: LocalServer) -> None:
    with broker(server.url, "ann") as ann, broker(server.url, "bob") as bob:
        put(ann, b"before")
        assert bob.take(TAKE_S) == b"before"
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert bob.take(0.2) is None
            filled(ann, b"waits")
            with broker(server.url, "bob", run="run2") as late, pytest.raises(LinkTimeoutError):
                put(late, b"x", timeout_s=0.2)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert bob.take(TAKE_S) == b"waits"
        put(ann, b"after")
        until(lambda: bob.take(TAKE_S) == b"after")


def test_both_ends_go_on_when_the_server_comes_again(tmp_path: Path) -> None:
    with local_server(tmp_path) as first, broker(first.url, "ann") as ann, broker(first.url, "bob") as bob:
        put(ann, b"before")
        assert bob.take(TAKE_S) == b"before"
        end(first)
        assert bob.take(0.1) is None
        put(ann, b"while it is away")
        with local_server(tmp_path, port_of(first)):
            got = {bob.take(TAKE_S)}
            put(bob, b"after")
            assert ann.take(TAKE_S) == b"after"
            while b"while it is away" not in got:  # `before` may come again
                got.add(bob.take(TAKE_S))
        assert got <= {b"before", b"while it is away"}


def test_a_server_that_is_absent_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    with local_server(tmp_path) as first:
        pass
    with broker(first.url, "ann") as ann, broker(first.url, "bob") as bob:
        assert bob.take(0.1) is None
        with pytest.raises(LinkTimeoutError, match=r"for 0\.3 s.*(refused|no servers)"):
            put(ann, b"x", timeout_s=0.3)
        with local_server(tmp_path, port_of(first)):
            put(ann, b"y")
            assert bob.take(TAKE_S) == b"y"


def test_a_closed_end_says_so(ann: NatsBroker) -> None:
    ann.close()
    ann.close()
    for call in (ann.take, lambda timeout_s: put(ann, b"x", timeout_s)):
        with pytest.raises(LinkError, match="closed"):
            call(TAKE_S)
