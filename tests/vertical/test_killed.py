"""Parties that are killed -9 and started again: synchronous runs end with the very bits of a calm one."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transom.vertical import run

from .scene import Heard, Jobs, make_jobs, make_parts, states_of

SCRIPT = Path(__file__).with_name("killed_party.py")
ROLES = ("label", "feature")


class Processes:
    """Both parties, each in a process."""

    def __init__(self, schedule: str, out: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.schedule, self.out = schedule, out
        self.parties = {role: self.start(role) for role in ROLES}

    def start(self, role: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), role, self.schedule, str(self.port), str(self.out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    def kill(self, role: str, step: int) -> bool:
        """Once it has come to a step, and start it again; whether it came to it."""
        party = self.parties[role]
        assert party.stdout is not None
        for line in party.stdout:
            if int(line) >= step:
                party.kill()
                party.communicate()
                self.parties[role] = self.start(role)
                return True
        return False

    def end(self) -> list[int]:
        for party in self.parties.values():
            party.communicate(timeout=120)
        return [party.returncode for party in self.parties.values()]


def calm(folder: Path, schedule: str) -> Jobs:
    jobs = make_jobs("binary", folder, schedule=schedule, workers=2, epochs=4)
    run.simulate(jobs, make_parts("binary"), Heard())
    return jobs


@pytest.mark.parametrize(("schedule", "seed"), [("vfl", 1), ("pubsub", 3)])
def test_a_run_whose_parties_are_killed_ends_as_a_calm_one(tmp_path: Path, schedule: str, seed: int) -> None:
    pick, processes = random.Random(seed), Processes(schedule, tmp_path / "a")
    assert processes.kill(pick.choice(ROLES), pick.randint(2, 13))
    assert processes.end() == [0, 0]
    jobs = make_jobs("binary", tmp_path / "a", schedule=schedule, workers=2, epochs=4)
    reports: Any = [json.loads((job.folder / "report.json").read_text()) for job in jobs]
    assert len(reports[0]["history"]) == 4
    if schedule != "pubsub":
        assert reports[0]["steps"] == reports[1]["steps"] == 16
        assert states_of(jobs) == states_of(calm(tmp_path / "calm", schedule))
