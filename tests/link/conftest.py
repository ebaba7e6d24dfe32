"""Parties with keys, two of them connected, and two at a NATS server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from transom.link.nats import NatsBroker
from transom.link.nats_server import LocalServer, local_server
from transom.link.tcp import TcpBroker

from .brokers import Party, party, require_working, tcp_pair
from .nats_parties import Proxy, broker, port_of


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Party]:
    folder = tmp_path_factory.mktemp("parties")
    return {name: party(folder, name) for name in ("ours", "theirs", "stranger")}


@pytest.fixture
def tcp_tls_pair(parties: dict[str, Party]) -> Iterator[tuple[TcpBroker, TcpBroker]]:
    with tcp_pair(parties["ours"], parties["theirs"]) as made:
        require_working(*made)
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with local_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
def ann(server: LocalServer) -> Iterator[NatsBroker]:
    with broker(server.url, "ann") as made:
        yield made


@pytest.fixture
def bob(server: LocalServer) -> Iterator[NatsBroker]:
    with broker(server.url, "bob") as made:
        yield made


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[Proxy]:
    with contextlib.closing(Proxy(port_of(server))) as made:
        yield made
