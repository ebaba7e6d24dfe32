"""Serving on this machine: only loopback unless allowed, a port that is free, and an end that is an end."""

from __future__ import annotations

import socket
import threading
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from transom.errors import EngineDownError, MisconfiguredError
from transom.net.listen import listen, require_loopback, serve_in_thread, url_of
from transom.serving.engines.echo import EchoEngine


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_permission(host: str) -> None:
    require_loopback(host, allow_remote=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", ""])
def test_other_addresses_need_it(host: str) -> None:
    with pytest.raises(MisconfiguredError, match="--allow-remote"):
        require_loopback(host, allow_remote=False)
    require_loopback(host, allow_remote=True)


def test_a_taken_port_is_a_clear_error() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(MisconfiguredError, match="--port"):
        listen("127.0.0.1", urlsplit(url_of(sock)).port or 0)


def test_the_server_is_gone_afterwards() -> None:
    before = threading.active_count()
    with (
        serve_in_thread(EchoEngine().app()) as url,
        closing(HTTPConnection(urlsplit(url).netloc, timeout=30)) as client,
    ):
        client.request("GET", "/healthz")
        assert client.getresponse().status == 200
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", urlsplit(url).port or 0))


def test_an_application_that_fails_to_start_is_reported() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": ""})

    with pytest.raises(EngineDownError), serve_in_thread(broken):
        pytest.fail("it served")


def test_the_command_refuses_a_public_address_before_loading_anything() -> None:
    from transom.cli.app import App
    from transom.cli.engine import engine

    app = App()
    app.command()(engine)
    result = CliRunner().invoke(app, ["/nowhere", "--host", "0.0.0.0"])
    assert isinstance(result.exception, MisconfiguredError)
