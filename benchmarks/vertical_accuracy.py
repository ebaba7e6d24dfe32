"""Whether a vertical training is as good as one on the joined table.

    TRANSOM_DATA=DIR python benchmarks/vertical_accuracy.py [--quick] [--json] [--sets SET ...]

Per set the same modules (a bottom of each party's columns, a top), initial weights, batches, learning rate
and epochs, on the same rows: `score_split` by the code of `transom vertical simulate`, whose parties send
each other embeddings and gradients by a schedule (`--schedule`), `score_joint` in one piece with one
optimiser, step by step. Scores are of the same rows that neither trained on (30 %): AUC (higher is better) or
RMSE (lower is), mean over seeds. `standard_error` is of the difference of both means over seeds; `within`:
whether the split's is worse by no more. A seed sets weights and order, not the rows. Energy: one file, the
first half of its columns at the label party. Everything on one thread.
`--sets synthetic` is 1,000,000 rows of 500 columns, made up as they are written, of two seeds, one epoch; and
per count of rows the most memory that each party had for itself (a process each, equal buffers), and how many
bytes that grows by with each row, where the row itself has 1,000 at each party. Not among the sets unless
named: it writes 2 GB. Alone it is stored as `vertical_synthetic`.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, variance
from typing import Any

import numpy as np
import torch

import _vertical_synthetic as synthetic
from _bench import parser, report
from transom.vertical import run
from transom.vertical.half import make_half
from transom.vertical.job import Data, Task, Train, VerticalJob
from transom.vertical.metrics import SCORE, metrics
from transom.vertical.model import centre, standardise
from transom.vertical.part import Part, load_here
from transom.vertical.schedule import Units

SCHEDULES = ("vfl", "vfl-ps", "avfl", "avfl-ps", "pubsub")
Jobs = tuple[VerticalJob, VerticalJob]
Parts = tuple[Part, Part]


@dataclass(frozen=True)
class Set:
    """A pair of files (or one to be parted), and how long it is trained."""

    task: Task
    label: str
    id_column: str
    files: tuple[str, str]
    epochs: int
    batch_rows: int


SETS = {
    "credit": Set(
        "binary", "y", "id", ("default_credit_hetero_guest.csv", "default_credit_hetero_host.csv"), 10, 256
    ),
    "breast": Set("binary", "y", "id", ("breast_hetero_guest.csv", "breast_hetero_host.csv"), 20, 32),
    "motor": Set(
        "regression", "motor_speed", "idx", ("motor_hetero_guest.csv", "motor_hetero_host.csv"), 60, 32
    ),
    "energy": Set("regression", "Appliances", "id", ("energydata_complete.csv", ""), 30, 256),
}  # fmt: skip
SYNTHETIC = "synthetic"
MEMORY_ROWS = (100_000, 300_000, 1_000_000)
SHOWN = (
    "set",
    "schedule",
    "metric",
    "score_joint",
    "score_split",
    "standard_error",
    "within",
    "joint_s",
    "split_s",
)


def jobs_of(name: str, one: Set, folder: Path, schedule: str, epochs: int, rows: int) -> Jobs:
    """Both parties' jobs, on files of the data or made of one, or of so many rows made up."""
    if name == SYNTHETIC:
        train = Train(schedule, epochs, one.batch_rows)  # type: ignore[arg-type]
        return synthetic.make_jobs(synthetic.write(folder, rows), folder / "out", train)
    source = Path(os.environ["TRANSOM_DATA"]) / "vfl"
    paths = [source / file for file in one.files if file]
    if len(paths) == 1:
        paths = parted(paths[0], one.label, folder)
    train = Train(schedule, epochs, one.batch_rows)  # type: ignore[arg-type]
    label = VerticalJob(
        name, one.task, Data(paths[0], one.id_column, one.label), ("0", "1") if one.task == "binary" else (),
        train=train, out=folder / "out",
    )  # fmt: skip
    return label, replace(label, data=Data(paths[1], one.id_column), classes=())


def parted(path: Path, label: str, folder: Path) -> list[Path]:
    """Two files with row numbers as IDs, of the halves of the columns."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != label]
    halves = {"label": [label, *names[: len(names) // 2]], "feature": names[len(names) // 2 :]}
    for party, columns in halves.items():
        with (folder / f"{party}.csv").open("w", newline="", encoding="utf-8") as file:
            cells = ([str(number), *(row[one] for one in columns)] for number, row in enumerate(rows))
            csv.writer(file).writerows([["id", *columns], *cells])
    return [folder / f"{party}.csv" for party in halves]


def joint(jobs: Jobs, parts: Parts) -> float:
    """The score of one model on the joined table, trained on the job's batches one after the other."""
    label, feature = (make_half(job, part.width, local=True) for job, part in zip(jobs, parts, strict=True))
    top, own, other = label.top, label.bottom, feature.bottom
    if top is None or own is None or other is None:
        raise SystemExit("both parties have columns here")
    standardise(own, parts[0])
    standardise(other, parts[1])
    centre(top, parts[0])
    train = jobs[0].train
    modules = torch.nn.ModuleList([own, other, top])
    optimiser = torch.optim.AdamW(modules.parameters(), train.learning_rate, weight_decay=train.weight_decay)

    def outputs(rows: Any) -> torch.Tensor:
        own_BF, other_BF = (torch.from_numpy(part.rows(rows)) for part in parts)
        found: torch.Tensor = top(torch.cat([own(own_BF), other(other_BF)], 1))
        return found

    units = replace(Units.of(jobs[0], len(parts[0].train)), shares=1)
    for unit in range(units.total):
        rows = parts[0].train[units.rows(unit)]
        loss = top.losses(outputs(rows), torch.from_numpy(parts[0].labels(rows))).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.no_grad():
        scores: Any = top.scores(outputs(parts[0].test)).double().numpy()
    return metrics(jobs[0].task, scores, parts[0].labels(parts[0].test))[SCORE[jobs[0].task]]


def split(jobs: Jobs, parts: Parts) -> float:
    """The score of both parties' model."""
    side = run.simulate(jobs, parts, lambda told: None)
    return side.now.history[-1].metrics[SCORE[jobs[0].task]]


def measured(name: str, schedule: str, seeds: int, epochs: int | None, rows: int) -> dict[str, Any]:
    """A row of the table."""
    one = Set("binary", "0", "", ("", ""), 1, 1024) if name == SYNTHETIC else SETS[name]
    found: dict[str, list[float]] = {"joint": [], "split": [], "joint_s": [], "split_s": []}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            both = jobs_of(name, one, Path(folder), schedule, epochs or one.epochs, rows)
            jobs = tuple(replace(job, train=replace(job.train, seed=seed)) for job in both)
            parts = load_here(both)
            for way, work in (("joint", joint), ("split", split)):
                begun_s = time.monotonic()
                found[way].append(work(jobs, parts))  # type: ignore[arg-type]
                found[f"{way}_s"].append(time.monotonic() - begun_s)
    sign = 1 if one.task == "binary" else -1
    error = math.sqrt(sum(variance(found[way]) / seeds for way in ("joint", "split")))
    worse = sign * (mean(found["joint"]) - mean(found["split"]))
    return {
        "set": name, "metric": SCORE[one.task], "schedule": schedule, "seeds": seeds,
        "rows": len(parts[0]), "rows_of_test": len(parts[0].test),
        "score_joint": mean(found["joint"]), "score_split": mean(found["split"]),
        "standard_error": error, "within": worse <= error,
        "each_joint": found["joint"], "each_split": found["split"],
        "joint_s": mean(found["joint_s"]), "split_s": mean(found["split_s"]),
    }  # fmt: skip


def memory(counts: Sequence[int]) -> dict[str, Any]:
    """What each party needed for itself, by rows."""
    points = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            points.append(synthetic.peak_mb(Path(folder), count))
    grows = synthetic.growth(points)
    within = max(grows.values()) <= synthetic.BOUND_BYTES
    return {"points": points, "bytes_a_row": grows, "bound_bytes": synthetic.BOUND_BYTES, "within": within}


def main() -> None:
    """Measure the sets, and print and store."""
    flags = parser(__doc__)
    flags.add_argument("--sets", nargs="+", choices=[*SETS, SYNTHETIC], default=list(SETS))
    flags.add_argument("--rows", type=int, default=MEMORY_ROWS[-1], help="of the synthetic set")
    flags.add_argument("--schedule", nargs="+", choices=SCHEDULES, default=["pubsub"])
    args = flags.parse_args()
    if "TRANSOM_DATA" not in os.environ and args.sets != [SYNTHETIC]:
        sys.exit("set TRANSOM_DATA to the folder that holds vfl/")
    torch.set_num_threads(1)
    chosen = [name for name in args.sets if name in ("breast", "motor")] if args.quick else args.sets
    seeds, epochs = (2, 5) if args.quick else (3, None)
    rows = [
        measured(name, one, 2 if name == SYNTHETIC else seeds, epochs, args.rows)
        for name in chosen
        for one in args.schedule
    ]
    record = {"sets": rows, "numpy": np.__version__, "torch": torch.__version__}
    if SYNTHETIC in chosen:
        record["memory"] = memory([count for count in MEMORY_ROWS if count <= args.rows])
    name = "vertical_synthetic" if args.sets == [SYNTHETIC] else "vertical_accuracy"
    report(name, record, [{key: row[key] for key in SHOWN} for row in rows], args)


if __name__ == "__main__":
    main()
