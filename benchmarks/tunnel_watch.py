"""Does the watch for hijackers end honest trainings, and does it end hijacked ones?

    FASHION_MNIST=DIR TRANSOM_DATA=DIR python benchmarks/tunnel_watch.py [--quick] [--json] [--seeds N]

Tasks and tunnels are those of `tunnel_defence` on fewer rows, for 300 batches and more. `false_alarms` of so
many honest `runs`, `at_most` the upper end of their share's 95 % interval; `ended` of so many `hijacks`, each
the better known of both attacks. A hijack through a tunnel of one value has one direction, as an honest
training has: there the tunnel has to do it, and none is counted.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _bench import parser, report
from transom.audit import tunnel_case
from transom.audit.attacks import tunnel_hijack
from transom.audit.attacks.tunnel_view import SSIM
from transom.audit.attacks.vertical_inversion import VARIANCE
from transom.errors import LinkRefusedError
from transom.report.statistics import interval
from transom.vertical import run
from transom.vertical.job import VerticalJob
from tunnel_defence import BUDGET_S, Task, credit, fashion, jobs_of, minilm, settings

TASKS = {"fashion": fashion, "credit": credit, "minilm": minilm}
TUNNELS: tuple[tuple[str, float | None], ...] = (("none", None), ("gaussian", 100.0), ("r3elu-dp-1", 30.0))
BATCHES = 300


def watched(task: Task, tunnel: str, epsilon: float | None, seed: int, out: Path) -> Any:
    """Both parties' jobs: enough epochs for the watch to judge."""
    batches = len(task.parts[1].train) // task.batch_rows
    longer = replace(task, epochs=-(-BATCHES // batches))
    jobs = jobs_of(longer, tunnel, settings(tunnel, epsilon), seed, out)
    return jobs[0], replace(jobs[1], watch=True)


def alarmed(jobs: tuple[VerticalJob, VerticalJob], task: Task) -> bool:
    """Whether an honest training was ended."""
    try:
        run.simulate(jobs, task.parts, lambda told: None)
    except LinkRefusedError as error:
        if "directions, a task's at most" not in str(error):
            raise
        return True
    return False


def ended(jobs: tuple[VerticalJob, VerticalJob], task: Task) -> bool:
    """Whether a hijacked one was, which follows the recorded training."""
    run.simulate(jobs, task.parts, lambda told: None)
    seen = tunnel_case.seen_of(jobs[1], task.parts[1])
    made = tunnel_case.made(jobs[1], task.parts[1], *seen, task.known, "", task.shape)
    first = tunnel_hijack.attacks(SSIM if task.shape else VARIANCE)[0]
    return "the watch ended" in first.attack(made.target, made.knowledge, made.data, BUDGET_S).note


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=10)
    args = flags.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, make in list(TASKS.items())[: 1 if args.quick else None]:
        task = make(True)
        for tunnel, epsilon in TUNNELS:
            alarms = hijacks = caught = 0
            seeds = 1 if args.quick else args.seeds
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as folder:
                    alarms += alarmed(watched(task, tunnel, epsilon, seed, Path(folder)), task)
                if tunnel == "none" and seed < 3:
                    with tempfile.TemporaryDirectory() as folder:
                        caught += ended(watched(task, tunnel, epsilon, seed, Path(folder)), task)
                    hijacks += 1
            rows.append({
                "task": name, "tunnel": tunnel, "runs": seeds, "false_alarms": alarms, "hijacks": hijacks,
                "ended": caught,
            })  # fmt: skip
    total = {key: sum(row[key] for row in rows) for key in ("runs", "false_alarms", "hijacks", "ended")}
    at_most = interval(total["false_alarms"], total["runs"])[1]
    report("tunnel_watch", {**total, "at_most": at_most, "rows": rows}, rows, args)


if __name__ == "__main__":
    main()
