"""Shared matrices: a spawned process reads the same pages, nothing has a name, and nothing is left."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transom.obfuscation.memory import share

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(5, 1, dtype=torch.float64),
    "c": torch.empty(0, 4),
}

CHILD = """
import json, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import torch
from transom.obfuscation.memory import share

def start(shared):
    global given
    given = shared.tensors()

def total():
    return os.getpid(), float(given["a"].sum())

if __name__ == "__main__":
    shared = share({"a": torch.arange(6.0)})
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=start, initargs=(shared,)) as pool:
        _, before = pool.submit(total).result()
        shared.tensors()["a"].zero_()
        pid, after = pool.submit(total).result()
    print(json.dumps([pid != os.getpid(), before, after]))
"""


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_tensors_come_back() -> None:
    shared = share(TENSORS)
    assert shared is not None
    made = shared.tensors()
    shared.close()
    assert made.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert made[name].dtype == tensor.dtype
        assert torch.equal(made[name], tensor)


def test_a_spawned_process_sees_the_very_pages(tmp_path: Path) -> None:
    """What is written here after it started is what it reads."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [True, 15.0, 0.0]


def test_the_memory_has_no_name_and_ends_with_its_last_map() -> None:
    before = descriptors()
    shared = share(TENSORS)
    assert shared is not None
    assert str(Path(f"/proc/self/fd/{shared.descriptor}").readlink()) == "/memfd:transom (deleted)"
    made = shared.tensors()
    assert "memfd:transom" in Path("/proc/self/maps").read_text()
    shared.close()
    del made
    assert descriptors() <= before
    assert "memfd:transom" not in Path("/proc/self/maps").read_text()


def test_it_does_not_leave_in_a_file_or_over_a_pipe() -> None:
    """Only a process that is being spawned can be given it: elsewhere a pickle of it is refused."""
    shared = share(TENSORS)
    assert shared is not None
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(shared)
    shared.close()


@pytest.mark.parametrize("call", ["memfd_create", "posix_fallocate"])
def test_where_the_system_has_none_there_is_none(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    before = descriptors()
    monkeypatch.setattr(os, call, refuse)
    assert share(TENSORS) is None
    monkeypatch.undo()
    assert descriptors() <= before
