"""A share of a core for a process and its children: for benchmarks in which one party is slow.

By a CPU quota where root may make a control group (v1 `cpu.cfs_quota_us` or v2 `cpu.max`), else by stopping
and continuing the process. Periods are short, so that each piece of work takes as long as on a slower
machine; with the usual 100 ms a party that computes now and then would not be slowed at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PERIOD_S = 0.01
_GROUPS = Path("/sys/fs/cgroup")


class Share:
    """So large a share of one core, for all that it is given. `how` says by what."""

    def __init__(self, share: float, name: str) -> None:
        self._share, self._ended = share, threading.Event()
        self._group, self.how = _group(share, name)

    def give(self, pid: int) -> None:
        """To a process that leads a group of its own, and to what it starts from now on."""
        if self._group is not None:
            (self._group / "cgroup.procs").write_text(str(pid))
        elif self._share < 1:
            threading.Thread(target=self._stop_and_go, args=(pid,), daemon=True).start()

    def close(self) -> None:
        """Once all that it was given to has ended."""
        self._ended.set()
        for _ in range(100):
            if self._group is None or not self._group.exists():
                return
            with contextlib.suppress(OSError):
                self._group.rmdir()
            time.sleep(0.02)

    def _stop_and_go(self, group: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not self._ended.is_set():
                os.killpg(group, signal.SIGCONT)
                time.sleep(PERIOD_S * self._share)
                os.killpg(group, signal.SIGSTOP)
                time.sleep(PERIOD_S * (1 - self._share))


@contextlib.contextmanager
def share_of_core(share: float, name: str) -> Iterator[Share]:
    """Until the end of the block."""
    with contextlib.closing(Share(share, name)) as one:
        yield one


def _group(share: float, name: str) -> tuple[Path | None, str]:
    """A control group with the quota, and what it is; None where none can be made."""
    period_us, quota_us = int(PERIOD_S * 1e6), int(PERIOD_S * 1e6 * share)
    first = {"cpu.cfs_period_us": str(period_us), "cpu.cfs_quota_us": str(quota_us)}
    second = {"cpu.max": f"{quota_us} {period_us}"}
    for root, settings in ((_GROUPS / "cpu", first), (_GROUPS, second)):
        group = root / f"transom-{os.getpid()}-{name}"
        if not (root / "cgroup.procs").exists():
            continue
        try:
            group.mkdir(exist_ok=True)
            for key, value in settings.items():
                (group / key).write_text(value)
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
        else:
            return group, f"{', '.join(settings)}: {quota_us} us in {period_us} us"
    return None, f"SIGSTOP and SIGCONT: {quota_us} us in {period_us} us" if share < 1 else "nothing"
