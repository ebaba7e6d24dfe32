"""Jobs that are disturbed end like the one that was not; `benchmarks/link_faults.py` runs many more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def faults(benchmark_script: Callable[[str], Any]) -> Any:
    return benchmark_script("link_faults")


@pytest.fixture(scope="module")
def runs(faults: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One calm run and six disturbed ones, by turns over TCP and NATS."""
    return list(faults.all_runs(tmp_path_factory.mktemp("faults"), list(range(1, 7))))


def test_every_step_is_applied_once_whatever_goes_wrong(runs: list[dict[str, Any]]) -> None:
    assert [run for run in runs if not run["exact"]] == []
    assert {run["transport"] for run in runs} == {"tcp", "nats"}


def test_something_went_wrong_in_each(runs: list[dict[str, Any]]) -> None:
    assert all(run["events"] for run in runs)


def test_a_lost_step_would_be_seen(faults: Any, runs: list[dict[str, Any]]) -> None:
    assert not faults.judged({**runs[0], "ends": ("", "")}, runs[1])["exact"]
    assert not faults.judged({**runs[0], "problems": ["alpha applied 23 messages"]}, runs[0])["exact"]
