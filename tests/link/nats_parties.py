"""Two parties at a real NATS server, a stranger to them, and a proxy that loses what the server says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import nats
from cryptography.hazmat.primitives.asymmetric import ec

from transom.errors import LinkTimeoutError
from transom.link.broker import Broker
from transom.link.nats import NatsBroker
from transom.link.nats_server import LocalServer
from transom.link.seal import Seal

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


def put(to: Broker, data: bytes, timeout_s: float = TAKE_S) -> None:
    to.publish(data, timeout_s=timeout_s)


def taken(by: Broker, count: int) -> list[bytes | None]:
    return [by.take(TAKE_S) for _ in range(count)]


def filled(by: Broker, data: bytes) -> tuple[int, str]:
    """Publish until nothing more goes: how many did, and what was told."""
    for sent in range(1_000):
        try:
            put(by, data, timeout_s=0.3)
        except LinkTimeoutError as error:
            return sent, str(error)
    raise AssertionError("it goes on and on")


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
