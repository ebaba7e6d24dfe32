"""The link over TCP: strangers, clocks, cuts, silence, and partners that go away and come back."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.identity import Identity, Partner, client_context, server_context
from transom.link.tcp import TcpBroker
from transom.net.pin import format_pin

from .brokers import party, tcp_pair
from .certificates import write_certificate
from .relay import Relay, relay

WAIT_S = 30.0
Party = tuple[Identity, Partner]


@pytest.fixture(scope="module")
def parties(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Party]:
    folder = tmp_path_factory.mktemp("parties")
    return {name: party(folder, name) for name in ("ours", "theirs", "stranger")}


@pytest.fixture
def pair(parties: dict[str, Party]) -> Iterator[tuple[TcpBroker, TcpBroker]]:
    with tcp_pair(parties["ours"], parties["theirs"]) as made:
        require_working(*made)
        yield made


def require_working(first: Broker, second: Broker) -> None:
    """Each gets what the other publishes; a few may be lost where a connection broke."""
    for sender, receiver in ((first, second), (second, first)):
        token, deadline_s = os.urandom(16), time.monotonic() + WAIT_S
        while True:
            assert time.monotonic() < deadline_s
            sender.publish(token, timeout_s=WAIT_S)
            taken = receiver.take(0.2)
            while taken not in (None, token):
                taken = receiver.take(0.2)
            if taken == token:
                break


def until(told: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not told():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def taken(broker: Broker, count: int) -> list[bytes | None]:
    return [broker.take(WAIT_S) for _ in range(count)]


def refused(broker: TcpBroker) -> int:
    return int(broker.describe()["refused"])


# Who is it?


def call(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, timeout=WAIT_S)


def say(content: bytes) -> Callable[[tuple[str, int], dict[str, Party]], None]:
    def act(address: tuple[str, int], parties: dict[str, Party]) -> None:
        with call(address) as sock:
            sock.sendall(content)
            require_nothing_but_alerts(sock)

    return act


def require_nothing_but_alerts(sock: socket.socket) -> None:
    """The other side ends the connection, and what it says until then is no greeting."""
    said = b""
    with suppress(OSError):
        while part := sock.recv(4096):
            said += part
    assert b"transom" not in said
    assert len(said) < 100 or isinstance(sock, ssl.SSLSocket)


def shake_hands(context: ssl.SSLContext, address: tuple[str, int]) -> None:
    with call(address) as raw, suppress(ssl.SSLError, ConnectionError), context.wrap_socket(raw) as sock:
        require_nothing_but_alerts(sock)


def with_another_key(address: tuple[str, int], parties: dict[str, Party]) -> None:
    shake_hands(client_context(parties["stranger"][0]), address)


def with_no_certificate(address: tuple[str, int], parties: dict[str, Party]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shake_hands(context, address)


def with_tls_1_2(address: tuple[str, int], parties: dict[str, Party]) -> None:
    context = client_context(parties["theirs"][0])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    shake_hands(context, address)


def with_our_own_key(address: tuple[str, int], parties: dict[str, Party]) -> None:
    shake_hands(client_context(parties["ours"][0]), address)


def with_a_reset(address: tuple[str, int], parties: dict[str, Party]) -> None:
    for content in (b"", b"\x16"):
        with call(address) as sock:
            sock.sendall(content)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with_another_key(address, parties)  # one that counts


STRANGERS = {
    "another key": with_another_key,
    "no certificate": with_no_certificate,
    "the listener's own key": with_our_own_key,
    "TLS 1.2": with_tls_1_2,
    "garbage": say(b"\0\xff" * 500),
    "HTTP": say(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "resets": with_a_reset,
    "plain greeting": say(b"transom/link/1\n" + struct.pack(">I", 5) + b"hello"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_stranger_is_dropped_and_counted_and_the_partner_goes_on(
    pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party], name: str
) -> None:
    listens, connects = pair
    STRANGERS[name](listens.address, parties)
    until(lambda: refused(listens) == 1)
    require_working(*pair)
    assert listens.describe()["connections"] == connects.describe()["connections"] == "1"


def test_many_strangers_at_once_leave_the_partner_alone(
    pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party]
) -> None:
    listens, _ = pair
    with ExitStack() as stack:
        silent = [stack.enter_context(call(listens.address)) for _ in range(60)]
        for number, sock in enumerate(silent):
            with suppress(OSError):  # dropped: there are too many
                sock.sendall(b"\x16\x03\x01"[: number % 4])
        callers = [
            threading.Thread(target=with_another_key, args=(listens.address, parties)) for _ in range(8)
        ]
        for thread in callers:
            thread.start()
        require_working(*pair)
        for thread in callers:
            thread.join()
        assert listens.describe()["connections"] == "1"
        identity, partner = parties["theirs"][0], parties["ours"][1]
        with closing(TcpBroker(identity, partner, connect=listens.address)) as anew:
            until(lambda: listens.describe()["connections"] == "2")  # the partner gets in between them
            with suppress(LinkError):
                anew.publish(b"x", timeout_s=1.0)


def test_who_shakes_hands_slowly_is_dropped(parties: dict[str, Party]) -> None:
    with tcp_pair(parties["ours"], parties["theirs"], silence_s=0.4) as pair, call(pair[0].address) as slow:
        for byte in b"\x16\x03\x01\x02":
            slow.sendall(bytes([byte]))
        with suppress(ConnectionError):
            assert slow.recv(1) == b""
        require_working(*pair)


@pytest.mark.parametrize("days", [(-900, -400), (400, 900)], ids=["past", "future"])
def test_a_wrong_clock_does_not_matter(tmp_path: Path, days: tuple[int, int]) -> None:
    for name in ("a", "b"):
        write_certificate(tmp_path / name, days=days)
    with tcp_pair(party(tmp_path, "a"), party(tmp_path, "b")) as pair:
        require_working(*pair)


def test_who_connects_to_a_stranger_is_told_both_pins_and_says_nothing(parties: dict[str, Party]) -> None:
    (ours, as_ours), (theirs, as_theirs), (stranger, as_stranger) = parties.values()
    with closing(TcpBroker(stranger, as_theirs, listen=("127.0.0.1", 0))) as wrong:
        address = wrong.address
        connects = TcpBroker(theirs, as_ours, connect=address)
        with pytest.raises(LinkRefusedError) as told:
            connects.take(WAIT_S)
        with pytest.raises(LinkRefusedError):
            connects.publish(b"private", timeout_s=WAIT_S)
        assert format_pin(as_stranger.pin.fingerprint) in str(told.value)
        assert format_pin(as_ours.pin.fingerprint) in str(told.value)
        assert wrong.take(0.0) is None
    with closing(connects), closing(TcpBroker(ours, as_theirs, listen=address)) as right:
        until(lambda: right.describe()["state"] == connects.describe()["state"] == "connected")
        require_working(right, connects)  # and when the partner is there, it goes on


def test_who_is_a_stranger_to_the_listener_is_told(parties: dict[str, Party]) -> None:
    (ours, as_ours), (_, as_theirs), (stranger, _) = parties.values()
    with (
        closing(TcpBroker(ours, as_theirs, listen=("127.0.0.1", 0))) as listens,
        closing(TcpBroker(stranger, as_ours, connect=listens.address)) as connects,
    ):
        with pytest.raises(LinkRefusedError, match="does not know this side"):
            connects.take(WAIT_S)
        assert listens.take(0.0) is None  # who listens is not told of strangers


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
@pytest.mark.parametrize("tls", [True, False])
def test_who_connects_to_another_service_is_told(parties: dict[str, Party], answer: bytes, tls: bool) -> None:
    identity, partner = (parties["theirs"][0], parties["ours"][1]) if tls else (None, None)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        closing(TcpBroker(identity, partner, connect=server.getsockname()[:2])) as connects,
        server.accept()[0] as sock,
    ):
        sock.sendall(answer)
        with pytest.raises(LinkRefusedError, match=r"no TLS|protocol"):
            connects.take(WAIT_S)


# What does it say?


def as_partner(listens: TcpBroker, parties: dict[str, Party]) -> ssl.SSLSocket:
    """The partner's key in the hands of a program that does not keep to the protocol, greeted."""
    sock = client_context(parties["theirs"][0]).wrap_socket(call(listens.address))
    sock.sendall(b"transom/link/1\n")
    greeting = b""
    while len(greeting) < 15:
        greeting += sock.recv(15 - len(greeting))
    return sock


@pytest.mark.parametrize("length", [2**16 + 1, 2**31, 2**32 - 2])
def test_a_frame_that_is_too_large_is_refused_by_its_length(parties: dict[str, Party], length: int) -> None:
    with (
        tcp_pair(parties["ours"], parties["theirs"]) as (listens, connects),
        closing(connects),
    ):
        connects.close()
        with as_partner(listens, parties) as sock:
            sock.sendall(struct.pack(">I", 2) + b"ok" + struct.pack(">I", length))
            assert listens.take(WAIT_S) == b"ok"
            with pytest.raises(LinkRefusedError, match=f"{length} bytes, {2**16}"):
                listens.take(WAIT_S)
            with suppress(OSError):
                assert sock.recv(1) == b""


def test_memory_is_taken_for_what_arrives_not_for_what_is_announced() -> None:
    with closing(TcpBroker(None, None, listen=("127.0.0.1", 0), max_bytes=2**30)) as listens:
        with call(listens.address) as sock:
            tracemalloc.start()
            sock.sendall(b"transom/link/1\n" + struct.pack(">I", 2**30) + bytes(1000))
            until(lambda: listens.describe()["state"] == "connected")
            assert listens.take(0.1) is None
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 2**21


def test_half_a_message_is_none(parties: dict[str, Party]) -> None:
    with tcp_pair(parties["ours"], parties["theirs"]) as (listens, connects):
        connects.close()
        for cut in (1, 3, 4, 40):
            made = int(listens.describe()["connections"])
            with as_partner(listens, parties) as sock:
                sock.sendall((struct.pack(">I", 50) + bytes(50))[:cut])
                until(lambda made=made: int(listens.describe()["connections"]) == made + 1)
        with as_partner(listens, parties) as sock:
            sock.sendall(struct.pack(">I", 3) + b"new")
            assert listens.take(WAIT_S) == b"new"


# Going away and coming back


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
    pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party]
) -> None:
    listens, connects = (broker.describe() for broker in pair)
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
        ({"listen": ("127.0.0.1", 0), "max_bytes": 2**32 - 1}, "got 64, 4294967295"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], told: str) -> None:
    with pytest.raises(MisconfiguredError, match=told):
        TcpBroker(None, None, **settings)  # type: ignore[arg-type]


def test_one_key_alone_is_no_mutual_tls(parties: dict[str, Party]) -> None:
    with pytest.raises(MisconfiguredError, match="go together"):
        TcpBroker(parties["ours"][0], None, listen=("127.0.0.1", 0))


def test_a_taken_port_is_told_and_nothing_is_left_behind(pair: tuple[TcpBroker, TcpBroker]) -> None:
    before = threading.active_count()
    with pytest.raises(MisconfiguredError, match="cannot listen"):
        TcpBroker(None, None, listen=pair[0].address)
    for broker in pair:
        broker.close()
    assert threading.active_count() == before - 2


def test_the_servers_context_asks_for_tls_1_3(parties: dict[str, Party]) -> None:
    context = server_context(parties["ours"][0], parties["theirs"][1])
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.num_tickets == 0
