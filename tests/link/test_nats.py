"""The broker at a real server: what is handed over arrives, whatever the server remembers or forgets."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from transom.link.nats import NatsBroker
from transom.link.nats_server import LocalServer, local_server

from .brokers import until
from .nats_parties import (
    EVE,
    STREAM,
    TAKE_S,
    TO_BOB,
    Proxy,
    asked,
    broker,
    end,
    port_of,
    put,
    taken,
)  # fmt: skip


def test_messages_arrive_in_order_and_both_ends_say_where(ann: NatsBroker, bob: NatsBroker) -> None:
    for number in range(20):
        put(ann, b"to bob %d" % number)
        put(bob, b"to ann %d" % number)
    assert taken(bob, 20) == [b"to bob %d" % number for number in range(20)]
    assert taken(ann, 20) == [b"to ann %d" % number for number in range(20)]
    assert bob.take(0.0) is None
    seen = bob.describe()
    assert seen["server"] == "NATS 2.15.1"
    assert seen["tls"].startswith("none: sizes and times")
    assert (seen["taken"], seen["dropped"], seen["connections"]) == ("20", "0", "1")


def test_a_message_that_is_handed_over_again_arrives_again(server: LocalServer, bob: NatsBroker) -> None:
    """Duplicates are known per stream and by id alone; so the id is of the hand-over, in every process."""
    for _ in range(2):
        with broker(server.url, "ann") as ann:
            put(ann, b"same")
            put(ann, b"same")
    with broker(server.url, "ann", run="run2") as ann, broker(server.url, "bob", run="run2") as other:
        put(ann, b"same")
        assert other.take(TAKE_S) == b"same"
    assert taken(bob, 4) == [b"same"] * 4
    assert bob.take(0.1) is None


def test_many_threads_publish_while_one_takes(ann: NatsBroker, bob: NatsBroker) -> None:
    sent = [[b"%d/%d" % (thread, number) for number in range(25)] for thread in range(4)]
    threads = [threading.Thread(target=lambda part=part: [put(ann, data) for data in part]) for part in sent]
    for thread in threads:
        thread.start()
    got = Counter(taken(bob, 100))
    for thread in threads:
        thread.join()
    assert got == Counter(data for part in sent for data in part)


def test_runs_and_jobs_do_not_mix(server: LocalServer, ann: NatsBroker) -> None:
    with broker(server.url, "bob", run="run.bob") as other:
        put(ann, b"x")
        assert other.take(0.2) is None


def test_a_message_whose_acknowledgement_was_lost_is_not_doubled(proxy: Proxy, bob: NatsBroker) -> None:
    with broker(proxy.url, "ann") as ann:
        put(ann, b"first")
        assert bob.take(TAKE_S) == b"first"
        proxy.deaf = True
        put(ann, b"second")
        assert bob.take(TAKE_S) == b"second"  # the server has it and knows its id
        proxy.cut()
        put(ann, b"third")
        assert bob.take(TAKE_S) == b"third"
        assert bob.take(0.3) is None
    assert ann.describe()["connections"] == "2"
    assert ann.describe()["published"] == "3"


def test_ids_of_what_was_taken_are_forgotten_at_a_restart(tmp_path: Path) -> None:
    """Then the broker doubles a message; the session above does not apply it twice."""
    with (
        local_server(tmp_path) as first,
        contextlib.closing(Proxy(port_of(first))) as proxy,
        broker(first.url, "bob") as bob,
        broker(proxy.url, "ann") as ann,
    ):
        put(ann, b"first")
        assert bob.take(TAKE_S) == b"first"
        until(lambda: ann.describe()["published"] == "1")  # its acknowledgement is heard
        proxy.deaf = True
        put(ann, b"twice")
        assert bob.take(TAKE_S) == b"twice"
        bob.close()  # the server has its acknowledgement
        end(first, signal.SIGTERM)
        with local_server(tmp_path, port_of(first)), broker(first.url, "bob") as again:
            assert again.take(0.3) is None
            proxy.cut()
            assert again.take(TAKE_S) == b"twice"


def test_a_purge_loses_what_is_there_and_not_what_is_handed_over_again(server: LocalServer) -> None:
    """The id of a purged message is still known: were it the message's, sending again would be a loss."""
    with broker(server.url, "ann") as ann:
        put(ann, b"batch")
        ann.close()  # once it is acknowledged

        async def purge(_: Any, js: Any) -> tuple[str, int, bool, int]:
            there = await js.get_last_msg(STREAM, TO_BOB)
            await js.purge_stream(STREAM)
            again = await js.publish(TO_BOB, there.data, headers=there.headers)
            state = (await js.stream_info(STREAM)).state
            return there.headers["Nats-Msg-Id"], again.seq, bool(again.duplicate), state.messages

        name, _, known, stored = asked(server.url, purge)
        assert name.startswith("job.1/run/ann/")
        assert (known, stored) == (True, 0)
    with broker(server.url, "ann") as ann, broker(server.url, "bob") as bob:
        put(ann, b"batch")
        assert bob.take(TAKE_S) == b"batch"


def test_a_purge_while_connected_does_not_swallow_the_next(
    server: LocalServer, ann: NatsBroker, bob: NatsBroker
) -> None:
    for _ in range(3):
        put(ann, b"batch")
        asked(server.url, lambda client, js: js.purge_stream(STREAM))
        put(ann, b"batch")
        assert bob.take(TAKE_S) == b"batch"
        while bob.take(0.05) is not None:
            pass


def test_what_the_partner_did_not_seal_is_dropped_and_counted(server: LocalServer, bob: NatsBroker) -> None:
    with broker(server.url, "ann", own=EVE) as eve:
        put(eve, b"believe me")
    asked(server.url, lambda client, js: js.publish(TO_BOB, b"no seal at all"))
    with broker(server.url, "ann") as ann:
        put(ann, b"true")
        assert bob.take(TAKE_S) == b"true"
    assert bob.describe()["dropped"] == "2"
