"""Runs of two processes that are killed end with the very bits of the one that was not; many more are in
`benchmarks/split_faults.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def faults() -> Iterator[Any]:
    """The benchmark's module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import split_faults

        yield split_faults
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def world(faults: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return faults.World(tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize("transport", ["tcp", "nats"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_that_is_killed_ends_bit_for_bit(faults: Any, world: Any, transport: str, seed: int) -> None:
    found = faults.once(world, transport, seed, kills=2)
    assert found["exact"], found
    assert len(found["kills"].split(";")) == 2


def test_a_run_that_ended_otherwise_would_be_seen(faults: Any, world: Any) -> None:
    assert len({tuple(end.values()) for end in world.ends.values()}) == len(world.ends) > 1
    assert all(set(end) <= {"vendor", "customer"} and "vendor" in end for end in world.ends.values())
