"""One party of a vertical training as a process that tells how it goes: for `vertical_speed.py`.

    python _vertical_party.py LABEL_JOB FEATURE_JOB ROLE

It runs what `transom vertical train` runs, once it has read a line. A line of JSON says that it is ready, and
one follows its first step and each evaluation: when that was, and since the process began what was
computed, waited for and sent. `busy_s` is processor time of forward, backward and optimiser, of the workers'
tasks and of evaluations. The label party's scores of the rows of test lie beside its job, by evaluation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transom.link.told import Told
from transom.vertical import run
from transom.vertical.job import read_job
from transom.vertical.part import load_here
from transom.vertical.party import Party, make_party
from transom.vertical.schedule import way_of


class Watch:
    """Listens to a party, times what it does not tell, and tells all."""

    def __init__(self, scores: Path) -> None:
        self.scores, self.party = scores, None
        self.evaluations, self.evaluating_s, self.bytes = 0, 0.0, 0
        self._begun = False

    def __call__(self, told: Told) -> None:
        if told.kind == "evaluated":
            self.evaluations += 1
        elif told.kind != "step" or self._begun:
            return
        self._begun = True
        self._tell(told)

    def _tell(self, told: Told) -> None:
        party: Any = self.party
        side = party.side
        found = {
            "kind": told.kind, "at_s": time.monotonic(), "steps": told.step, "auc": told.found.get("auc"),
            "busy_s": side.pool.busy_s + self.evaluating_s, "cpu_s": time.process_time(),
            "wait_s": side.wait_s, "bytes": self.bytes, "given_out_again": sum(side.now.dropped.values()),
        }  # fmt: skip
        if party.job.role == "feature":
            found["staleness"] = side.ages.report()["mean"]
        print(json.dumps(found), flush=True)

    def watch(self, party: Party, broker: Any) -> None:
        """Count bytes, time evaluations, keep scores."""
        self.party: Any = party
        side: Any = party.side
        publish, half = broker.publish, side.pool.half

        def published(data: bytes, *, timeout_s: float) -> None:
            self.bytes += len(data)
            publish(data, timeout_s=timeout_s)

        broker.publish = published
        half.embed, half.outputs = self._timed(half.embed), self._timed(half.outputs)
        if party.job.role == "label":
            plain = side.scores

            def kept(outputs: Any) -> Any:
                found = plain(outputs)
                np.save(self.scores / f"scores{self.evaluations + 1}.npy", found)
                return found

            side.scores = kept

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            begun_s = time.thread_time()
            found = work(*given)
            self.evaluating_s += time.thread_time() - begun_s
            return found

        return timed


def main(label: str, feature: str, role: str) -> None:
    torch.set_num_threads(1)
    jobs = read_job(label), read_job(feature)
    number = ("label", "feature").index(role)
    job, part = jobs[number], load_here(jobs)[number]
    watch = Watch(Path(label).parent)
    workers: Any = "processes" if way_of(job).workers > 1 else "here"
    with run.way(job) as broker, closing(make_party(job, part, watch, workers=workers)) as party:
        watch.watch(party, broker)
        print(json.dumps({"kind": "ready"}), flush=True)
        sys.stdin.readline()
        run.train(party, broker)


if __name__ == "__main__":
    main(*sys.argv[1:])
