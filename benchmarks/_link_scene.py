"""What scenes of two parties need, whatever runs over the link: ports, keys, processes, a server to kill."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _bench
from transom.link.nats_server import server_binary
from transom.net.pin import make_certificate

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def make_keys(folder: Path, names: Sequence[str]) -> None:
    """Key and certificate of each party."""
    for name in names:
        make_certificate(folder / name, name)


def start(work: Callable[[], object], error: Path) -> Any:
    """Work in a process of its own with one thread; the error that ends it is written to `error`."""

    def guarded() -> None:
        try:
            import torch

            torch.set_num_threads(1)
            work()
        except BaseException:
            error.parent.mkdir(parents=True, exist_ok=True)
            error.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)

    process = FORK.Process(target=guarded, daemon=True)
    process.start()
    return process


class Nats:
    """A real server that can be killed and started again on its port and folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url, self._folder, self._port = f"nats://127.0.0.1:{port}", folder, port
        self.start()

    def start(self) -> None:
        command = [server_binary(), "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def do(self, what: Any) -> bool:
        """Run `what(connection, jetstream)` on a connection of a stranger's; whether all of it was done."""

        async def go() -> None:
            import nats

            connection = await nats.connect(self.url, connect_timeout=1, allow_reconnect=False)
            try:
                await what(connection, connection.jetstream())
            finally:
                await connection.close()

        try:
            asyncio.run(asyncio.wait_for(go(), 3))
        except Exception as error:  # the server may be down just now
            print(f"a stranger could not {what.__name__}: {error!r}", file=sys.stderr)
            return False
        return True


def main(
    name: str,
    doc: str | None,
    all_runs: Callable[[Path, list[int]], Iterable[dict[str, Any]]],
    columns: Sequence[str],
    runs: tuple[int, int],
) -> None:
    """A script whose runs are disturbed: so many of them, or so few with `--quick`, with seeds from `--first`
    on. Prints what did not end `exact`."""
    flags = _bench.parser(doc)
    flags.add_argument("--runs", type=int, default=runs[0])
    flags.add_argument("--first", type=int, default=1, help="seed of the first run")
    args = flags.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        count = runs[1] if args.quick else args.runs
        for found in all_runs(Path(folder), list(range(args.first, args.first + count))):
            rows.append(found)
            if not found["exact"]:
                print(found, file=sys.stderr)
    record = {
        "runs": len(rows),
        "exact": sum(row["exact"] for row in rows),
        "late": sum(row["late"] for row in rows),
        "longest_s": max(row["took_s"] for row in rows),
    }
    _bench.report(name, record, [{one: row[one] for one in columns} for row in rows], args)
