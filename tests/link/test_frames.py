"""Frames over a socket: however the bytes are cut, the same messages; and what is no frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.errors import LinkRefusedError
from transom.link.frames import PING, Connection, format_address

MAX_BYTES = 1_000
GREETING = b"transom/link/1\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname())
        callee, _ = server.accept()
    with caller, callee:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield caller, callee


def connection(sock: socket.socket, max_bytes: int = MAX_BYTES) -> Connection:
    return Connection(sock, None, None, max_bytes, whom="the partner", called=True)


def arrived(reader: Connection) -> bytes:
    """The next message, which is there or on its way."""
    while (message := reader.receive()) is None:
        pass
    return message


def prove(stranger: Connection) -> None:
    while not stranger.prove():
        pass


def frame(message: bytes | None) -> bytes:
    return (PING if message is None else len(message)).to_bytes(4, "big") + (message or b"")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(st.none() | st.binary(max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
def test_however_it_is_cut_the_same_messages(
    ends: tuple[socket.socket, socket.socket], messages: list[bytes | None], cuts: list[int]
) -> None:
    reader, content, found = connection(ends[1]), b"".join(map(frame, messages)), []
    while content:
        cuts.append(cut := cuts.pop(0))
        ends[0].sendall(content[:cut])
        content = content[cut:]
        while (message := reader.receive()) is not None:
            found.append(message)
    expected = [message for message in messages if message is not None]
    while len(found) < len(expected):  # loopback delivers in its own time
        found.append(arrived(reader))
    assert found == expected


def test_whoever_pings_for_ever_leaves_others_their_turn(ends: tuple[socket.socket, socket.socket]) -> None:
    reader = connection(ends[1])
    ends[0].sendall(3 * frame(None) + frame(b"message"))
    for _ in range(3):
        assert reader.receive() is None
        assert reader.pinged
    assert reader.receive() == b"message"
    assert reader.receive() is None
    assert not reader.pinged


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 3 * 2**18])
def test_what_one_end_puts_the_other_receives(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    writer, reader = (connection(sock, 2**20) for sock in ends)
    message, found = (b"transom!" * size)[:size], None
    for put in (None, message, None):
        writer.put(put)
    while not writer.flush() or found is None:
        found = found if found is not None else reader.receive()
    assert found == message


def test_a_length_beyond_the_most_is_refused(ends: tuple[socket.socket, socket.socket]) -> None:
    reader = connection(ends[1])
    ends[0].sendall((MAX_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(LinkRefusedError, match=f"{MAX_BYTES + 1} bytes, {MAX_BYTES}"):
        arrived(reader)


def test_an_end_within_a_frame_is_a_broken_connection(ends: tuple[socket.socket, socket.socket]) -> None:
    reader = connection(ends[1])
    ends[0].sendall(frame(b"whole") + frame(b"half")[:-1])
    ends[0].shutdown(socket.SHUT_WR)
    assert arrived(reader) == b"whole"
    with pytest.raises(ConnectionResetError):
        arrived(reader)


@pytest.mark.parametrize("greeting", [b"t", b"transom/link/1", b"transom/link/2\n", b"\n"])
def test_only_the_greeting_is_one(ends: tuple[socket.socket, socket.socket], greeting: bytes) -> None:
    listener = connection(ends[1])
    ends[0].sendall(greeting)
    ends[0].shutdown(socket.SHUT_WR)
    with closing(listener), pytest.raises((LinkRefusedError, ConnectionResetError)):
        prove(listener)


def test_the_greeting_may_come_byte_by_byte(ends: tuple[socket.socket, socket.socket]) -> None:
    listener = connection(ends[1])
    for number in range(len(GREETING)):
        assert not listener.prove()
        ends[0].sendall(GREETING[number : number + 1])
    prove(listener)
    assert ends[0].recv(100) == GREETING


def test_addresses_read_as_people_write_them() -> None:
    assert format_address(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert format_address(("::1", 80, 0, 0)) == "[::1]:80"
