"""Runs that are disturbed end as a calm one, or near it; many more are in `benchmarks/vertical_faults.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def faults(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("vertical_faults")


@pytest.fixture(scope="module")
def world(faults: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = faults.World(tmp_path_factory.mktemp("faults"))
    faults.CALM_RUNS = 1
    return found


@pytest.mark.parametrize(
    ("schedule", "transport", "seed"), [("vfl", "nats", 2), ("vfl-ps", "tcp", 2), ("pubsub", "tcp", 1)]
)
def test_a_disturbed_run_ends_as_it_must(
    faults: Any, world: Any, schedule: str, transport: str, seed: int
) -> None:
    found = faults.once(world, schedule, transport, seed)
    assert not found["late"], found
    assert found["faults"]
    assert abs(found["auc_off"]) < 0.05, found
    assert [one for one in found["problems"] if not one.startswith("the AUC is")] == []


def test_a_run_that_ended_otherwise_would_be_seen(faults: Any, world: Any) -> None:
    ends = [world.end(schedule)[0] for schedule in ("vfl", "vfl-ps")]
    assert ends[0] != ends[1]
    assert all(set(end) == {"label", "feature"} for end in ends)
