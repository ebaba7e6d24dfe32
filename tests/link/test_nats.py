"""The broker at a real server: every fact about NATS that it stands on, and what it makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link.broker import Broker
from transom.link.nats import NatsBroker
from transom.link.nats_client import headers_size
from transom.link.nats_server import LocalServer, local_server
from transom.link.seal import Seal

from .brokers import until

ANN, BOB, EVE = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
STREAM, TO_BOB = "TRANSOM-job=1~bob", "transom.job=1.run.bob"
TAKE_S = 30.0


def seal(party: str, run: str = "run", own: Any = None) -> Seal:
    own, theirs = (own or ANN, BOB) if party == "ann" else (own or BOB, ANN)
    partner = "bob" if party == "ann" else "ann"
    return Seal(own, theirs.public_key(), job="job.1", run=run, party=party, partner=partner)


@contextlib.contextmanager
def broker(
    url: str, party: str, *, run: str = "run", own: Any = None, **options: Any
) -> Iterator[NatsBroker]:
    with contextlib.closing(NatsBroker(url, seal(party, run, own), **options)) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with local_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def ann(server: LocalServer) -> Iterator[NatsBroker]:
    with broker(server.url, "ann") as made:
        yield made


@pytest.fixture
def bob(server: LocalServer) -> Iterator[NatsBroker]:
    with broker(server.url, "bob") as made:
        yield made


def put(to: Broker, data: bytes, timeout_s: float = TAKE_S) -> None:
    to.publish(data, timeout_s=timeout_s)


def taken(by: Broker, count: int) -> list[bytes | None]:
    return [by.take(TAKE_S) for _ in range(count)]


def asked(url: str, ask: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    """What the plain client says."""

    async def run() -> Any:
        async def quiet(_: Exception) -> None: ...

        client = await nats.connect(url, allow_reconnect=False, error_cb=quiet)
        try:
            return await ask(client, client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


def end(server: LocalServer, by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(server.pid, by)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def port_of(server: LocalServer) -> int:
    return int(server.url.rpartition(":")[2])


class Proxy:
    """Between a party and the server; while it is deaf, the party hears no answer."""

    def __init__(self, port: int) -> None:
        self._port, self.deaf = port, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                party, _ = self._listener.accept()
                self._sockets.append(party)
                try:
                    server = socket.create_connection(("127.0.0.1", self._port))
                except ConnectionRefusedError:  # it is being started again
                    party.shutdown(socket.SHUT_RDWR)
                    continue
                self._sockets.append(server)
                for way in ((party, server, False), (server, party, True)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=way))
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if not (self.deaf and answers):
                    to.sendall(data)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Every connection breaks; the next ones hear again."""
        self.deaf = False
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(port_of(server))) as made:
        yield made


# Messages go both ways, each one that was handed over.


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


# Sizes, bursts and space.


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
        with pytest.raises(nats.errors.TimeoutError):
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
        sent: list[bytes] = []

        def fill() -> None:
            while len(sent) < 100:
                put(ann, b"%6d" % len(sent) * 5_000, timeout_s=1.0)
                sent.append(b"%6d" % len(sent) * 5_000)

        with pytest.raises(LinkTimeoutError, match="maximum bytes exceeded"):
            fill()
        assert len(sent) < 100
        with broker(server.url, "bob", **options) as bob:
            put(ann, b"at last")
            assert sorted(filter(None, taken(bob, len(sent) + 1))) == sorted([*sent, b"at last"])


def test_one_way_that_is_full_leaves_the_other_its_space(server: LocalServer) -> None:
    options = {"stream_bytes": 100_000}
    with broker(server.url, "ann", **options) as ann, broker(server.url, "bob", **options) as bob:
        with pytest.raises(LinkTimeoutError):
            for _ in range(100):
                put(ann, bytes(30_000), timeout_s=0.5)
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
            sent = 0
            with pytest.raises(LinkTimeoutError, match="took no message for 0.2 s"):
                while sent < 1_000:
                    put(ann, b"%d" % sent, timeout_s=0.2)
                    sent += 1
            with broker(server.url, "bob", run="run2") as late, pytest.raises(LinkTimeoutError):
                put(late, b"x", timeout_s=0.2)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        arrived: set[bytes | None] = set()
        while len(arrived) < sent:
            arrived.add(bob.take(TAKE_S))
        assert arrived == {b"%d" % number for number in range(sent)}


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


def test_what_the_partner_did_not_seal_is_dropped_and_counted(server: LocalServer, bob: NatsBroker) -> None:
    with broker(server.url, "ann", own=EVE) as eve:
        put(eve, b"believe me")
    asked(server.url, lambda client, js: js.publish(TO_BOB, b"no seal at all"))
    with broker(server.url, "ann") as ann:
        put(ann, b"true")
        assert bob.take(TAKE_S) == b"true"
    assert bob.describe()["dropped"] == "2"
