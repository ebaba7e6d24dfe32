"""JSON asked of another machine: what comes back is bounded, and nothing else is followed or believed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from transom.errors import EvidenceError
from transom.net.ask import JsonClient
from transom.net.http import LongAnswerError
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import KeyPin, make_certificate

Handler = Callable[[Request], Awaitable[Response]]


def app(handler: Handler) -> Starlette:
    return Starlette(routes=[Route("/ask", handler, methods=["POST"])])


def client(url: str, **changed: Any) -> JsonClient:
    return JsonClient(url, **{"timeout_s": 20.0, "limit_bytes": 1000} | changed)


async def asked(url: str, body: dict[str, Any] | None = None, **changed: Any) -> tuple[int, bytes]:
    async with aclosing(client(url, **changed)) as asking:
        return await asking.post("/ask", body or {})


async def echo(request: Request) -> Response:
    return Response(await request.body(), 418)


async def test_status_and_body_come_back_as_they_are() -> None:
    with serve_in_thread(app(echo)) as url:
        status, body = await asked(url, {"ä": [1, None]})
    assert (status, json.loads(body)) == (418, {"ä": [1, None]})


async def test_one_connection_serves_many_requests() -> None:
    ports = set()

    async def note(request: Request) -> Response:
        assert request.client
        ports.add(request.client.port)
        return Response(b"{}")

    with serve_in_thread(app(note)) as url:
        async with aclosing(client(url)) as asking:
            assert [await asking.post("/ask", {}) for _ in range(5)] == [(200, b"{}")] * 5
    assert len(ports) == 1


@pytest.mark.parametrize(("length", "fits"), [(1000, True), (1001, False), (5_000_000, False)])
async def test_an_answer_is_read_up_to_its_limit(length: int, fits: bool) -> None:
    async def long(_: Request) -> Response:
        return Response(b"x" * length)

    with serve_in_thread(app(long)) as url:
        if fits:
            assert await asked(url) == (200, b"x" * length)
        else:
            with pytest.raises(LongAnswerError, match="1000 bytes"):
                await asked(url)


async def test_a_redirect_is_told_and_not_followed() -> None:
    async def away(_: Request) -> Response:
        return RedirectResponse("/elsewhere", 307)

    with serve_in_thread(app(away)) as url:
        assert (await asked(url))[0] == 307


async def test_a_compressed_answer_is_none() -> None:
    async def packed(_: Request) -> Response:
        return Response(b"...", headers={"content-encoding": "gzip"})

    with serve_in_thread(app(packed)) as url, pytest.raises(ValueError, match="compressed"):
        await asked(url)


async def test_silence_ends_in_time() -> None:
    async def silent(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    with serve_in_thread(app(silent)) as url, pytest.raises(TimeoutError):
        await asked(url, timeout_s=0.2)


async def test_what_is_no_http_is_a_value_error() -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        with pytest.raises(ValueError, match="HttpParser"):
            await asked(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_tls_is_believed_by_pin_or_by_wish_only(tmp_path: Path) -> None:
    pin = make_certificate(tmp_path)
    tls = Tls(tmp_path / "tls.pem", tmp_path / "tls.key")
    seen: list[bytes] = []

    async def note(request: Request) -> Response:
        seen.append(await request.body())
        return Response(b"{}")

    with serve_in_thread(app(note), tls=tls) as url:
        for refused in ({}, {"pin": KeyPin(bytes(32))}):
            with pytest.raises((OSError, EvidenceError)):
                await asked(url, **refused)
        assert seen == []
        assert await asked(url, pin=pin) == (200, b"{}")
        assert await asked(url, any_certificate=True) == (200, b"{}")
    assert len(seen) == 2
