"""A relay between two parties that is slow, far or broken on purpose: for the link's benchmarks and tests.

It runs in a process of its own. Each way has a rate (a bucket of 5 ms) and a delay, over which bytes keep
their order; on command it cuts every connection, or flips a byte of what passes next.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

CHUNK = 2**16
BURST_S = 0.005


@dataclass
class Relay:
    """Handle of a running relay. `port` is where to connect instead."""

    port: int
    _pipe: Connection
    _process: Any

    def cut(self) -> None:
        """Close every connection at once."""
        self._pipe.send("cut")

    def flip(self) -> None:
        """Alter one byte of what passes next, each way."""
        self._pipe.send("flip")


@contextlib.contextmanager
def relay(
    target: tuple[str, int], *, delay_s: float = 0.0, bytes_per_s: float = float("inf"), port: int = 0
) -> Iterator[Relay]:
    """A relay to `target` on loopback, each way `delay_s` later and at most `bytes_per_s`."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(target, delay_s, bytes_per_s, port, theirs), daemon=True)
    process.start()
    try:
        yield Relay(ours.recv(), ours, process)
    finally:
        process.kill()
        process.join()
        ours.close()
        theirs.close()


def _run(target: tuple[str, int], delay_s: float, bytes_per_s: float, port: int, pipe: Connection) -> None:
    asyncio.run(_Loop(target, delay_s, bytes_per_s).serve(port, pipe))


class _Loop:
    def __init__(self, target: tuple[str, int], delay_s: float, bytes_per_s: float) -> None:
        self._target, self._delay_s, self._rate = target, delay_s, bytes_per_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._flips = 0

    async def serve(self, port: int, pipe: Connection) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=CHUNK)
        pipe.send(server.sockets[0].getsockname()[1])
        while True:
            await asyncio.sleep(0.01)
            while pipe.poll():
                if pipe.recv() == "flip":
                    self._flips = 2
                    continue
                for writer in list(self._writers):
                    writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        ways = (self._pump(reader, far_writer), self._pump(far_reader, writer))
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(*ways)
        self._writers -= both
        for one in both:
            one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read at the rate, write after the delay; what is on its way is bounded by rate times delay."""
        loop = asyncio.get_running_loop()
        flying: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=4096)
        lander = asyncio.create_task(self._land(flying, writer))
        free_s = loop.time()
        try:
            while data := await reader.read(CHUNK):
                if self._flips:
                    self._flips -= 1
                    data = bytes([data[0] ^ 1]) + data[1:]
                free_s = max(free_s, loop.time() - BURST_S) + len(data) / self._rate
                await flying.put((free_s + self._delay_s, data))
                if free_s > loop.time():
                    await asyncio.sleep(free_s - loop.time())
            await flying.put((0.0, b""))
            await lander
        finally:
            lander.cancel()

    async def _land(self, flying: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await flying.get()
            if not data:
                writer.write_eof()
                return
            if due_s > loop.time():
                await asyncio.sleep(due_s - loop.time())
            writer.write(data)
            await writer.drain()
