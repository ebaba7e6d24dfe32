"""Parties with keys, and two of them connected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transom.link.tcp import TcpBroker

from .brokers import Party, party, require_working, tcp_pair


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Party]:
    folder = tmp_path_factory.mktemp("parties")
    return {name: party(folder, name) for name in ("ours", "theirs", "stranger")}


@pytest.fixture
def tcp_tls_pair(parties: dict[str, Party]) -> Iterator[tuple[TcpBroker, TcpBroker]]:
    with tcp_pair(parties["ours"], parties["theirs"]) as made:
        require_working(*made)
        yield made
