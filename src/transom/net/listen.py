"""Serve an ASGI app on this machine: in the foreground, or in a thread for tests and the demonstration.

Threat model: someone on the network. The servers here speak plain text without authentication, so an address
beyond loopback must be asked for in so many words. Clients that are slow on purpose: `transom.net.door`.
Does not protect against: other users of this machine, who can reach loopback too.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from transom.errors import EngineDownError, MisconfiguredError
from transom.net.urls import is_loopback

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Tls:
    """Paths of a PEM certificate (chain) and its private key. Raises MisconfiguredError if unusable."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        import ssl

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise MisconfiguredError(
                f"cannot serve TLS with {self.certificate} and {self.key} ({type(error).__name__}); "
                "give a PEM certificate and its key, for one from transom attest cert"
            ) from None


def require_loopback(host: str, *, allow_remote: bool) -> None:
    """Raises MisconfiguredError when `host` is reachable from other machines and that was not allowed."""
    if not allow_remote and not is_loopback(host):
        raise MisconfiguredError(
            f"host {host!r} is not a loopback address, and this server has neither TLS nor authentication; "
            "bind 127.0.0.1, or pass --allow-remote if another layer protects it"
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 picks a free one. Raises MisconfiguredError if it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise MisconfiguredError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, 0 for any"
        ) from error


def url_of(sock: socket.socket, tls: Tls | None = None) -> str:
    """The base URL of a listening socket."""
    host, port = sock.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def serve(
    app: ASGIApp,
    sock: socket.socket,
    tls: Tls | None = None,
    *,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> None:
    """Serve in the foreground until SIGINT or SIGTERM, then finish what runs for up to five seconds.

    `request_timeout_s`: see `transom.net.door`.
    """
    with sock:
        _server(app, tls, request_timeout_s).run(sockets=[sock])


@contextmanager
def serve_in_thread(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: Tls | None = None,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[str]:
    """Serve in a background thread; yields the base URL (without a trailing slash), stops at the end."""
    sock = listen(host, port)
    server = _server(app, tls, request_timeout_s)

    def run() -> None:
        with suppress(SystemExit):  # how uvicorn reports an application that does not start
            server.run(sockets=[sock])

    thread = threading.Thread(target=run, name="transom-server", daemon=True)
    with sock:
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise EngineDownError(
                        "the server stopped while starting; its application failed to start"
                    )
                time.sleep(0.005)
            yield url_of(sock, tls)
        finally:
            server.should_exit = True
            thread.join()


def _server(app: ASGIApp, tls: Tls | None, request_timeout_s: float) -> uvicorn.Server:
    import uvicorn

    from transom.net.door import Door

    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=cast("type[Door]", partial(Door, request_timeout_s=request_timeout_s)),
            proxy_headers=False,
            log_config=None,
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=5,
            timeout_keep_alive=75,  # of the default, 5 s, clients notice the end just as they use them again
            server_header=False,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
    )
