"""Shared by every test: one torch thread, no network beyond this machine, one copy of the packaged model."""

from __future__ import annotations

import fcntl
import importlib
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# What the suite says depends on the code alone; `make fuzz` searches on, with other examples every time.
settings.register_profile("steady", derandomize=True, database=None, deadline=None)
settings.register_profile(
    "search", max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("steady")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # a model is found on disk or not at all
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was skipped, and why, in the last lines: nothing is skipped in silence."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}", yellow=True)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Two threads under load take three times the wall time of one."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What gateways record goes nowhere near the ledger of whoever runs the tests."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as safetensors, dequantised once for all processes. Not to be written to."""
    from transom.checkpoint.load import load

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a folder of its own in the run's
        root = root.parent
    folder, unfinished = root / "smollm2", root / "smollm2.partial"
    with (root / "smollm2.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            load("smollm2").model.save_pretrained(unfinished)
            unfinished.rename(folder)
    return folder


def is_local(address: Any) -> bool:
    """Whether a socket address stays on this machine; a UNIX socket's is a path."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def only_loopback() -> Iterator[None]:
    """A test that reaches for another machine fails, at the socket."""
    patch = pytest.MonkeyPatch()
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def connect(self: socket.socket, address: Any) -> None:
        if not is_local(address):
            raise PermissionError("a test tried to connect beyond loopback")
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        if not is_local(address):
            raise PermissionError("a test tried to connect beyond loopback")
        return real_connect_ex(self, address)

    patch.setattr(socket.socket, "connect", connect)
    patch.setattr(socket.socket, "connect_ex", connect_ex)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def benchmark_script() -> Callable[[str], Any]:
    """The module of a script in `benchmarks`, by its name."""

    def load(name: str) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
            return importlib.import_module(name)

    return load


@pytest.fixture
def covers() -> Callable[[list[tuple[float, float]], float], bool]:
    """Whether so many of the 95 % intervals cover the truth as chance allows (three standard errors)."""

    def check(intervals: list[tuple[float, float]], truth: float) -> bool:
        share = np.mean([low <= truth <= high for low, high in intervals])
        return bool(share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(intervals)))

    return check
