"""What a configuration opens, it closes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from transom.errors import TransomError
from transom.link.config import LinkConfig, connected

from .parties import record


def test_a_record_is_let_go_where_the_broker_does_not_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = LinkConfig(
            job="job",
            run="run",
            party="a",
            partner="b",
            listen=f"127.0.0.1:{taken.getsockname()[1]}",
            record=tmp_path,
        )
        with pytest.raises(TransomError, match="listen") as failed, connected(config, {}):
            pass
    assert failed.value is not None  # and its traceback, which holds what was open
    record("a", tmp_path / "run-a.sqlite").close()
