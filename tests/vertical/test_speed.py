"""What `benchmarks/vertical_speed.py` calls a time to target, a share of a core and a speedup is that."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Script = Callable[[str], Any]


def line(at_s: float, auc: float | None, **more: float) -> dict[str, Any]:
    return {"kind": "evaluated", "at_s": at_s, "auc": auc, "busy_s": 0.0, **more}


def test_the_time_to_target_is_where_the_line_between_two_evaluations_crosses_it(
    benchmark_script: Script,
) -> None:
    speed = benchmark_script("vertical_speed")
    low, high = speed.TARGET - 0.03, speed.TARGET + 0.01
    points = [line(100.0, None), line(110.0, low), line(114.0, high, busy_s=7.0)]
    run = speed.Run({"label": points, "feature": points}, reached=True)
    assert run.time_to_target_s == pytest.approx(13.0)
    assert run.cpu_use("label") == pytest.approx(0.5)
    assert run.cpu_use("feature") == pytest.approx(1.5)
    assert speed.Run({"label": points, "feature": points}).time_to_target_s == 14.0


def test_lock_step_is_what_a_parameter_server_is_held_against_where_it_is_slower(
    benchmark_script: Script,
) -> None:
    speed = benchmark_script("vertical_speed")
    times = {"vfl": 20.0, "vfl-ps": 30.0, "avfl": 12.0, "pubsub": 8.0}
    rows = {name: {"time_to_target_s": one} for name, one in times.items()}
    found = speed.speedups(rows)
    assert found == {"speedup_vs_vfl": 2.5, "speedup_vs_vfl_ps": 2.5, "speedup_vs_avfl": 1.5}


@pytest.mark.parametrize("by_group", [True, False])
def test_a_third_of_a_core_is_a_third(
    benchmark_script: Script, monkeypatch: pytest.MonkeyPatch, by_group: bool, tmp_path: Path
) -> None:
    slowed = benchmark_script("_slowed")
    if not by_group:
        monkeypatch.setattr(slowed, "_GROUPS", tmp_path)  # as where no group can be made
    work = "import time\nprint(flush=True)\nwhile time.process_time() < 1e9: pass"
    process = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with slowed.share_of_core(1 / 3, "test") as share:
            share.give(process.pid)
            begun_s, before_s = time.monotonic(), _processor_s(process.pid)
            time.sleep(1.5)
            used_s = _processor_s(process.pid) - before_s
            assert used_s < 0.6 * (time.monotonic() - begun_s)
            process.kill()
            process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _processor_s(pid: int) -> float:
    """A process's, to the microsecond."""
    return time.clock_gettime((~pid << 3) | 2)
