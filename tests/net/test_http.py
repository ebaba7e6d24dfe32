"""Kept connections: what ends a body, what ends a connection, what is never sent twice or read unasked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from transom.net.http import BrokenError, Site

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[tuple[Site, list[int]]]:
    """A site that plays `script` for each request, and the requests that each of its connections had."""
    counts: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(counts)
        counts.append(0)
        try:
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                counts[number] += 1
                await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    site = Site(f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", connect_s=5)
    try:
        yield site, counts
    finally:
        site.close()
        running.close()
        await running.wait_closed()


def plays(*pieces: bytes, close: bool = False) -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return script


async def asked(site: Site, pin: Any = None) -> tuple[int, bytes]:
    answer = await site.ask(REQUEST, pin)
    body = b""
    try:
        while piece := await answer.read():
            body += piece
    finally:
        site.release(answer)
    return answer.status, body


WHOLE = OK + b"Content-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    ("pieces", "close", "body", "kept"),
    [
        ([WHOLE], False, b"abc", True),
        ([WHOLE[i : i + 1] for i in range(len(WHOLE))], False, b"abc", True),
        (
            [OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", b"1\r\nc\r\n0\r\n\r\n"],
            False,
            b"abc",
            True,
        ),
        ([b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + WHOLE], False, b"abc", True),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE], False, b"abc", True),
        ([OK + b"\r\na", b"bc"], True, b"abc", False),
        ([WHOLE.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")], True, b"abc", False),
        ([b"HTTP/1.0 200 OK\r\n\r\nabc"], True, b"abc", False),
        ([WHOLE + WHOLE], False, b"abc", False),
        ([WHOLE + b"more"], False, b"abc", False),
    ],
)
async def test_a_body_ends_where_it_says(pieces: list[bytes], close: bool, body: bytes, kept: bool) -> None:
    async with server(plays(*pieces, close=close)) as (site, counts):
        assert await asked(site) == (200, body)
        assert await asked(site) == (200, body)
        assert counts == ([2] if kept else [1, 1])


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], BrokenError),
        ([OK], BrokenError),
        ([OK + b"Content-Length: 9\r\n\r\nabc"], BrokenError),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc"], BrokenError),
        ([b"HTTP/1.1 2\r\n\r\n"], ValueError),
        ([b"SSH-2.0-x\r\n"], ValueError),
        ([OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"], ValueError),
        ([OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], ValueError),
        ([OK + b"X: " + b"a" * 9000] + [b"a" * 9000] * 20, ValueError),
        ([b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"], ValueError),
    ],
)
async def test_what_is_no_whole_answer_is_an_error_and_asked_once(
    pieces: list[bytes], error: type[Exception]
) -> None:
    async with server(plays(*pieces, close=True)) as (site, counts):
        with pytest.raises(error):
            await asked(site)
        assert counts == [1]


async def test_bytes_that_nobody_asked_for_end_a_kept_connection() -> None:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(WHOLE)
        asyncio.get_running_loop().call_later(0.01, writer.write, WHOLE.replace(b"abc", b"xyz"))

    async with server(script) as (site, counts):
        assert await asked(site) == (200, b"abc")
        await asyncio.sleep(0.1)
        assert await asked(site) == (200, b"abc")
        assert counts == [1, 1]


async def test_a_kept_connection_serves_the_pin_it_was_opened_for() -> None:
    class Pin:
        def require(self, _certificate: bytes | None) -> None:
            self.checked = True

    async with server(plays(WHOLE)) as (site, counts):
        one, other = Pin(), Pin()
        for pin in (one, other, one, None, other, None):
            assert await asked(site, pin) == (200, b"abc")
        assert counts == [2, 2, 2]
        assert one.checked
        assert other.checked


async def test_what_nobody_reads_is_not_taken_from_the_network() -> None:
    sent = 0

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        size = 64 << 20
        writer.write(OK + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with server(script) as (site, _):
        answer = await site.ask(REQUEST, None)
        before = -1
        while sent != before:  # until it no longer gets on
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 32 << 20
        assert len(await answer.read()) > 0
        site.release(answer)


async def test_an_answer_left_early_ends_its_connection() -> None:
    async with server(plays(OK + b"Content-Length: 9\r\n\r\nabc")) as (site, counts):
        for _ in range(2):
            answer = await site.ask(REQUEST, None)
            assert await answer.read() == b"abc"
            site.release(answer)
        assert counts == [1, 1]


async def test_a_dead_address_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address of the name answers nothing; the second is tried beside it."""
    async with server(plays(WHOLE)) as (site, _):
        loop = asyncio.get_running_loop()
        real = await loop.getaddrinfo("127.0.0.1", site._port, type=1)
        dead = [(*real[0][:4], ("192.0.2.1", site._port))]

        async def both(*_: Any, **__: Any) -> Any:
            return dead + real

        monkeypatch.setattr(loop, "getaddrinfo", both)
        assert await asked(site) == (200, b"abc")
