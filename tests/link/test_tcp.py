"""The link over TCP: strangers, clocks, cuts, silence, and partners that go away and come back."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from transom.errors import LinkTimeoutError, MisconfiguredError
from transom.link.identity import server_context
from transom.link.tcp import TcpBroker
from transom.net.pin import format_pin

from .brokers import WAIT_S, Party, require_working, taken, tcp_pair, until
from .relay import Relay, relay


@pytest.mark.parametrize("who", ["listens", "connects"])
def test_either_side_may_go_away_and_come_back(parties: dict[str, Party], who: str) -> None:
    (ours, as_ours), (theirs, as_theirs) = parties["ours"], parties["theirs"]
    with tcp_pair(parties["ours"], parties["theirs"]) as (listens, connects):
        require_working(listens, connects)
        if who == "listens":
            listens.close()
            connects.publish(b"waits for the partner", timeout_s=WAIT_S)
            with closing(TcpBroker(ours, as_theirs, listen=listens.address)) as anew:
                require_working(anew, connects)
        else:
            connects.close()
            with closing(TcpBroker(theirs, as_ours, connect=listens.address)) as anew:
                require_working(listens, anew)


SENDER = """
import sys
from transom.link.identity import Identity, Partner
from transom.link.tcp import TcpBroker
own, partner, port = sys.argv[1:]
broker = TcpBroker(Identity(own), Partner("partner", partner), connect=("127.0.0.1", int(port)))
while True:
    broker.publish(bytes(60_000), timeout_s=60)
"""


def test_a_partner_that_is_killed_comes_back(parties: dict[str, Party]) -> None:
    (ours, as_ours), (theirs, as_theirs) = parties["ours"], parties["theirs"]
    with closing(TcpBroker(ours, as_theirs, listen=("127.0.0.1", 0), max_bytes=2**16)) as listens:
        port = str(listens.address[1])
        for _ in range(2):
            made = int(listens.describe()["connections"])
            command = [sys.executable, "-c", SENDER, theirs.folder, as_ours.certificate_path, port]
            with subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
            ) as sender:
                until(lambda made=made: int(listens.describe()["connections"]) > made)
                for _ in range(20):
                    assert listens.take(WAIT_S) == bytes(60_000)
                sender.kill()
            while (message := listens.take(0.1)) is not None:
                assert message == bytes(60_000)


@contextmanager
def through(
    parties: dict[str, Party], *, silence_s: float = 20.0, cut_after: int | None = None
) -> Iterator[tuple[TcpBroker, Relay, TcpBroker]]:
    """A pair with a relay between them."""
    (ours, as_ours), (theirs, as_theirs) = parties["ours"], parties["theirs"]
    with (
        closing(TcpBroker(ours, as_theirs, listen=("127.0.0.1", 0), silence_s=silence_s)) as listens,
        relay(listens.address, cut_after) as between,
        closing(TcpBroker(theirs, as_ours, connect=between.address, silence_s=silence_s)) as connects,
    ):
        yield listens, between, connects


@pytest.mark.parametrize("cut_after", [1, 700, 2_000, 2_600, 70_000, 123_457])
def test_cuts_lose_whole_messages_only(parties: dict[str, Party], cut_after: int) -> None:
    published: set[bytes] = set()
    with through(parties, cut_after=cut_after) as (listens, between, connects):
        while between.connections < 4:
            message = os.urandom(8) * 6_000
            with suppress(LinkTimeoutError):
                connects.publish(message, timeout_s=0.02)
                published.add(message)
            if (arrived := listens.take(0.0)) is not None:
                assert arrived in published
        between.cut_after = None
        while (arrived := listens.take(0.2)) is not None:
            assert arrived in published
        require_working(listens, connects)


def test_a_partner_that_fell_silent_is_noticed_on_both_sides(parties: dict[str, Party]) -> None:
    with through(parties, silence_s=0.5) as (listens, between, connects):
        require_working(listens, connects)
        between.freeze()
        until(lambda: int(listens.describe()["connections"]) >= 2)
        require_working(listens, connects)


def test_quiet_is_not_silent_and_full_is_not_either(parties: dict[str, Party]) -> None:
    with tcp_pair(parties["ours"], parties["theirs"], silence_s=0.4) as (listens, connects):
        require_working(listens, connects)
        time.sleep(1.0)
        sent = 0
        with suppress(LinkTimeoutError):
            while True:
                connects.publish(bytes(2**16), timeout_s=1.0)
                sent += 1
        assert taken(listens, sent) == [bytes(2**16)] * sent
        assert listens.describe()["connections"] == connects.describe()["connections"] == "1"


def test_nobody_there_is_a_timeout_that_says_so(parties: dict[str, Party]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()[:2]
    with closing(TcpBroker(None, None, connect=address, capacity=1)) as connects:
        connects.publish(b"waits", timeout_s=1.0)
        with pytest.raises(LinkTimeoutError, match="not connected"):
            connects.publish(b"does not", timeout_s=0.3)
        assert connects.take(0.0) is None
        with closing(TcpBroker(None, None, listen=address)) as listens:
            assert listens.take(WAIT_S) == b"waits"


# Settings, and what it says


def test_ipv6(parties: dict[str, Party]) -> None:
    with tcp_pair(parties["ours"], parties["theirs"], host="::1") as (listens, connects):
        require_working(listens, connects)
        assert listens.describe()["listens"].startswith("[::1]:")
        assert connects.describe()["partner"].startswith("[::1]:")


def test_a_name_with_several_addresses(parties: dict[str, Party]) -> None:
    (ours, as_ours), (theirs, as_theirs) = parties["ours"], parties["theirs"]
    with (
        closing(TcpBroker(ours, as_theirs, listen=("127.0.0.1", 0))) as listens,
        closing(TcpBroker(theirs, as_ours, connect=("localhost", listens.address[1]))) as connects,
    ):
        require_working(listens, connects)


def test_it_says_what_tls_and_whose_keys(
    tcp_tls_pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party]
) -> None:
    listens, connects = (broker.describe() for broker in tcp_tls_pair)
    pins = [format_pin(parties[name][1].pin.fingerprint) for name in ("ours", "theirs")]
    assert (
        [listens["own_pin"], listens["partner_pin"]] == [connects["partner_pin"], connects["own_pin"]] == pins
    )
    assert listens["tls"] == connects["tls"] == "TLSv1.3"
    assert listens["cipher"] == connects["cipher"] != ""
    assert listens["partner"] == connects["address"]
    assert connects["connects"] == listens["listens"] == connects["partner"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
@pytest.mark.parametrize("role", ["listen", "connect"])
def test_plain_text_stays_on_loopback(host: str, role: str) -> None:
    with pytest.raises(MisconfiguredError, match="loopback"):
        TcpBroker(None, None, **{role: (host, 1)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "one of listen and connect"),
        ({"listen": ("127.0.0.1", 0), "connect": ("127.0.0.1", 1)}, "one of listen and connect"),
        ({"listen": ("127.0.0.1", 0), "capacity": 0}, "got 0"),
        ({"connect": ("127.0.0.1", 65536)}, "65536"),
        ({"connect": ("a" * 64 + ".example", 1)}, "no name of a host"),
        ({"listen": ("two..dots", 1)}, "no name of a host"),
        ({"listen": ("127.0.0.1", 0), "max_bytes": 2**32 - 1}, "got 64, 4294967295"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], told: str) -> None:
    with pytest.raises(MisconfiguredError, match=told):
        TcpBroker(None, None, **settings)  # type: ignore[arg-type]


def test_one_key_alone_is_no_mutual_tls(parties: dict[str, Party]) -> None:
    with pytest.raises(MisconfiguredError, match="go together"):
        TcpBroker(parties["ours"][0], None, listen=("127.0.0.1", 0))


def test_a_taken_port_is_told_and_nothing_is_left_behind(tcp_tls_pair: tuple[TcpBroker, TcpBroker]) -> None:
    before = threading.active_count()
    with pytest.raises(MisconfiguredError, match="cannot listen"):
        TcpBroker(None, None, listen=tcp_tls_pair[0].address)
    for broker in tcp_tls_pair:
        broker.close()
    assert threading.active_count() == before - 2


def test_the_servers_context_asks_for_tls_1_3(parties: dict[str, Party]) -> None:
    context = server_context(parties["ours"][0], parties["theirs"][1])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.num_tickets == 0
