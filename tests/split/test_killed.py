"""Runs of two processes that are killed end with the very bits of the one that was not; many more are in
`benchmarks/split_faults.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def faults(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("split_faults")


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
