"""Engines played by hand: a raw server whose every byte a test writes, on threads or on its own loop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

MODELS = json.dumps({"data": [{"id": "m"}]})
PROPS = json.dumps({"default_generation_settings": {"n_ctx": 512}})
FIXED = {"/v1/models": MODELS, "/props": PROPS}


@contextmanager
def raw_engine(script: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """A server that reads one request a connection and lets `script(socket, path)` answer by hand."""
    server = socket.create_server(("127.0.0.1", 0))
    closing = threading.Event()

    def serve_one(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            script(connection, head.split()[1].decode())

    def run() -> None:
        while not closing.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve_one, args=(connection,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    runner = threading.Thread(target=run)
    runner.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        closing.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        runner.join()
        for thread in threads:
            thread.join()


def answer(
    connection: socket.socket, body: str, status: str = "200 OK", kind: str = "application/json"
) -> None:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(head.encode() + b"Connection: close\r\n\r\n" + data)


Script = Callable[[dict[str, Any], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def host(script: Script, cards: Mapping[str, str] = FIXED) -> AsyncIterator[str]:
    """A server on this loop: cards are answered, every other request's body goes to `script`, by hand.

    Connections are kept for the next request until `script` closes its writer.
    """

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                path = head.split()[1]
                if path in cards:
                    writer.write(http_answer(cards[path].encode()))
                    continue
                size = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
                await script(json.loads(await reader.readexactly(int(size.split(":")[1]))), reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway went away, as it should
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def http_answer(body: bytes, kind: str = "application/json") -> bytes:
    """A whole answer on a connection that is kept."""
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind.encode(), len(body))
        + body
    )


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


async def ask(app: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, str]:
    """(status, text) from an ASGI application, on this loop and without sockets."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    status, chunks = 0, []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        chunks.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    method = "GET" if path == "/metrics" else "POST"
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    await app(scope | {"raw_path": path.encode(), "http_version": "1.1", "scheme": "http"}, receive, send)
    return status, b"".join(chunks).decode()
