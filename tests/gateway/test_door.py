"""The door of gateway and engine, on raw sockets: half requests end, whole ones do not, one host is named."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from transom.net.listen import serve_in_thread
from transom.serving.engines.echo import EchoEngine
from transom.serving.gateway.config import GatewayConfig

Serve = Callable[..., Any]
LONGEST_S = 60.0  # of any wait here; nothing is concluded from less
CHAT = b'{"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONGEST_S) as sock:
        yield sock


def heard(sock: socket.socket) -> bytes:
    """All until the other side closes."""
    found = b""
    while piece := sock.recv(65536):
        found += piece
    return found


def status(url: str, sent: bytes) -> int:
    """The status of the first answer to `sent`, which asks for the connection's end."""
    with connected(url) as sock:
        sock.sendall(sent)
        return int(heard(sock).split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"\r\n", b"HTTP/1.1 408"),
        (b"GE", b"HTTP/1.1 408"),
        (b"GET /healthz HTTP/1.1\r\nHost: local", b"HTTP/1.1 408"),
        (HEALTH[:-2], b"HTTP/1.1 408"),
        (HEAD + b"Content-Length: 100\r\n\r\n", b"HTTP/1.1 408"),
        (HEAD + b"Content-Length: 100\r\n\r\n" + CHAT[:20], b"HTTP/1.1 408"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", b"HTTP/1.1 408"),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n", b"HTTP/1.1 100"),
        (b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx", b"HTTP/1.1 404"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("server", ["gateway", "engine"])
def test_a_half_request_ends(serve: Serve, server: str, sent: bytes, answer: bytes) -> None:
    served = serve(request_timeout_s=0.2)
    with connected(served.url if server == "gateway" else served.engine_url) as sock:
        sock.sendall(sent)
        said = heard(sock)
    assert said.startswith(answer)
    assert (b" 408 " in said) == (answer not in (b"", b"HTTP/1.1 404"))
    assert served.echo.seen == []


@pytest.mark.parametrize(
    ("second", "together"),
    [(b"G", True), (HEAD, True), (b"G", False), (b"\r\n", False), (HEAD, False)],
    ids=repr,
)
def test_a_half_request_behind_a_whole_one_ends(serve: Serve, second: bytes, together: bool) -> None:
    with connected(serve(request_timeout_s=0.3).url) as sock:
        sock.sendall(HEALTH + second if together else HEALTH)
        said = sock.recv(65536)
        if not together:
            sock.sendall(second)
        said += heard(sock)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in said


def test_a_trickle_ends(serve: Serve) -> None:
    with connected(serve(request_timeout_s=0.3).url) as sock:
        sock.sendall(HEAD)
        stop = time.monotonic() + LONGEST_S
        sock.settimeout(0.02)
        said = b""
        while b"408" not in said and time.monotonic() < stop:
            try:
                sock.sendall(b"X-A: b\r\n")
                said += sock.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert b"408" in said


def test_one_that_comes_at_a_rate_is_waited_for(serve: Serve) -> None:
    """64 KiB are worth four seconds beyond the limit."""
    body = CHAT[:-1] + b', "user": "' + b"u" * 65536 + b'"}'
    with connected(serve(request_timeout_s=0.2).url) as sock:
        sock.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-10])
        time.sleep(0.6)
        sock.sendall(body[-10:])
        assert heard(sock).startswith(b"HTTP/1.1 200")


def test_an_answer_that_takes_longer_is_waited_for(serve: Serve) -> None:
    served = serve(request_timeout_s=0.2, echo=EchoEngine(first_token_s=0.8))
    with connected(served.url) as sock:
        sock.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT)
        assert heard(sock).startswith(b"HTTP/1.1 200")


def test_one_that_takes_nothing_of_its_answer_ends() -> None:
    gone = threading.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watcher = asyncio.ensure_future(receive())
        while not watcher.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        gone.set()

    with serve_in_thread(endless, request_timeout_s=0.2) as url, connected(url) as sock:
        sock.sendall(HEALTH)
        assert gone.wait(LONGEST_S)


def asked(target: bytes, *headers: bytes) -> bytes:
    lines = [b"GET %b HTTP/1.1" % target, *headers, b"Connection: close", b"", b""]
    return b"\r\n".join(lines)


LOCAL = b"Host: localhost"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (asked(b"http://evil.example/healthz", LOCAL), 403),
        (asked(b"https://evil.example/healthz", LOCAL), 403),
        (asked(b"HTTP://evil.example/healthz", LOCAL), 403),
        (asked(b"http://localhost@evil.example/healthz", LOCAL), 403),
        (asked(b"http://evil.example@localhost/healthz", LOCAL), 403),
        (asked(b"http://evil.example:80/healthz", LOCAL), 403),
        (asked(b"http://localhost/healthz", b"Host: evil.example"), 200),  # RFC 9112: the target decides
        (asked(b"http://localhost:1234/healthz", LOCAL), 200),
        (asked(b"http://[::1]/healthz", LOCAL), 200),
        (asked(b"ftp://localhost/healthz", LOCAL), 400),
        (asked(b"localhost/healthz", LOCAL), 400),
        (asked(b"//evil.example/healthz", LOCAL), 404),  # a path, in origin form
        (asked(b"/healthz", LOCAL, LOCAL), 403),
        (asked(b"/healthz", LOCAL, b"Host: evil.example"), 403),
        (asked(b"/healthz"), 403),
        *((asked(b"/healthz", b"Host: " + name), code) for name, code in [
            (b"localhost", 200), (b"LOCALHOST:8000", 200), (b"[::1]:8000", 200), (b"127.0.0.1", 200),
            (b"localhost.", 403), (b"localhost:", 403), (b"localhost:x", 403), (b"localhost:1:2", 403),
            (b"localhost:65536", 403), (b"a@localhost", 403), (b"localhost,localhost", 403),
            (b"::1", 403), (b"[::1", 403), (b"[::1]x", 403), (b"localhost evil", 403),
            (b"local\xc2\xadhost", 403),
        ]),
        *((asked(b"/healthz", LOCAL, b"Origin: " + name), code) for name, code in [
            (b"http://localhost", 200), (b"https://localhost:3000", 200), (b"http://[::1]:1", 200),
            (b"evil://localhost", 403), (b"ftp://localhost", 403), (b"localhost", 403), (b"//localhost", 403),
            (b"://localhost", 403), (b"http:localhost", 403), (b"http://localhost/", 403), (b"null", 403),
            (b"http://localhost http://localhost", 403), (b"http://a@localhost", 403), (b"", 403),
            (b"chrome-extension://localhost", 403), (b"http://localhost:80:80", 403),
        ]),
        (asked(b"/healthz", LOCAL, b"Origin: http://localhost", b"Origin: http://localhost"), 403),
        (asked(b"/healthz", LOCAL, b"X-Forwarded-Host: evil.example"), 200),
        (asked(b"/healthz", b"Host: evil.example", b"X-Forwarded-Host: localhost"), 403),
        (asked(b"/healthz", b"Host: evil.example", b"Forwarded: host=localhost"), 403),
    ],
    ids=lambda value: repr(value)[14:70] if isinstance(value, bytes) else str(value),
)  # fmt: skip
def test_one_known_host_is_named_and_web_origins_alone(serve: Serve, request_: bytes, expected: int) -> None:
    assert status(serve().url, request_) == expected


def test_no_one_connects_through_it(serve: Serve) -> None:
    served = serve(config=GatewayConfig(hosts=None))
    assert status(served.url, b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n") == 400


def test_the_answer_to_a_late_request_is_an_error_object(serve: Serve) -> None:
    with connected(serve(request_timeout_s=0.2).url) as sock:
        sock.sendall(HEAD)
        head, _, body = heard(sock).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_head_without_end_is_refused(serve: Serve) -> None:
    with connected(serve(config=GatewayConfig()).url) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        try:
            for _ in range(1024):  # 64 MiB, if it let us
                sock.sendall(b"a" * 65536)
        except OSError:
            pass
        with suppress(ConnectionResetError):
            assert heard(sock)[:12] in (b"HTTP/1.1 431", b"")
    assert status(serve(config=GatewayConfig()).url, HEALTH[:-2] + b"Connection: close\r\n\r\n") == 200


def test_one_that_reads_slowly_but_steadily_gets_all_of_it() -> None:
    size = 12 << 20

    async def large(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            head = [(b"content-length", str(size).encode()), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b"x" * size})

    with serve_in_thread(large, request_timeout_s=0.4) as url, connected(url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(HEALTH)
        found = 0
        while piece := sock.recv(65536):
            found += len(piece)
            time.sleep(0.008)
    assert found > size


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
def test_an_offer_of_another_protocol_is_not_taken(serve: Serve, name: bytes) -> None:
    """As Java's and curl's clients make one on every first request in plain HTTP."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings, close\r\n" + name + b": h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    )
    request = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT
    assert status(serve(config=GatewayConfig()).url, request) == 200
