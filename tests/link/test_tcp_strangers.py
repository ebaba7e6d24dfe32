"""The link over TCP among strangers: other keys, programs and clocks, and a partner that breaks the rules."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from transom.errors import LinkError, LinkRefusedError
from transom.link import frames
from transom.link.identity import client_context
from transom.link.tcp import TcpBroker
from transom.net.pin import format_pin, spki_sha256

from .brokers import WAIT_S, Party, party, require_working, tcp_pair, until
from .certificates import write_certificate


def refused(broker: TcpBroker) -> int:
    return int(broker.describe()["refused"])


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
    tcp_tls_pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party], name: str
) -> None:
    listens, connects = tcp_tls_pair
    STRANGERS[name](listens.address, parties)
    until(lambda: refused(listens) == 1)
    require_working(*tcp_tls_pair)
    assert listens.describe()["connections"] == connects.describe()["connections"] == "1"


def test_many_strangers_at_once_leave_the_partner_alone(
    tcp_tls_pair: tuple[TcpBroker, TcpBroker], parties: dict[str, Party]
) -> None:
    listens, _ = tcp_tls_pair
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
        require_working(*tcp_tls_pair)
        for thread in callers:
            thread.join()
        with suppress(ConnectionError):
            assert silent[0].recv(1) == b""  # only so many may try at once; the oldest had to go
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


def test_who_is_turned_away_before_it_greets_is_told(
    parties: dict[str, Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener says why and resets; a side that was slow to greet has to hear it all the same."""

    def slowly(certificate: bytes) -> bytes:
        time.sleep(0.2)
        return spki_sha256(certificate)

    monkeypatch.setattr(frames, "spki_sha256", slowly)
    (ours, as_ours), (_, as_theirs), (stranger, _) = parties.values()
    with (
        closing(TcpBroker(ours, as_theirs, listen=("127.0.0.1", 0))) as listens,
        closing(TcpBroker(stranger, as_ours, connect=listens.address)) as connects,
        pytest.raises(LinkRefusedError, match="does not know this side"),
    ):
        connects.take(5.0)


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
