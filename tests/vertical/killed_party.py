"""One party as a process, for tests that kill it: `killed_party.py ROLE SCHEDULE PORT OUT`."""

from __future__ import annotations

import importlib
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))


from transom.link.config import LinkConfig
from transom.link.told import Told
from transom.vertical import run
from transom.vertical.party import make_party

scene: Any = importlib.import_module("tests.vertical.scene")


def main(role: str, schedule: str, port: str, out: str) -> None:
    torch.set_num_threads(1)
    number, other = (0, "feature") if role == "label" else (1, "label")
    meets: dict[str, Any] = {"listen" if role == "label" else "connect": f"127.0.0.1:{port}"}
    link = LinkConfig(job="test", run="run", party=role, partner=other, timeout_s=60, **meets)
    settings = {"schedule": schedule, "workers": 2, "epochs": 4, "deadline_s": 1.0}
    job = replace(scene.make_jobs("binary", Path(out), **settings)[number], link=link)

    def tell(told: Told) -> None:
        if told.kind == "step":
            print(told.step, flush=True)

    with closing(make_party(job, scene.make_parts("binary")[number], tell)) as party, run.way(job) as broker:
        run.train(party, broker, heartbeat_s=0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
