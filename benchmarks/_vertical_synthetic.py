"""A made-up set of any length, written in pieces, and what a party that trains on it needs of memory.

As scikit-learn's `make_classification`: points around corners of a hypercube, two clusters a class, of
`INFORMATIVE` columns that are mixed, as many that are mixtures of these, and the rest noise; 1 % of the
labels are wrong. Half of each kind is each party's. Both files are .npy arrays of float32, which are mapped,
not read. Memory is what the process has for itself (`RssAnon` of `/proc/PID/status`, its peak): pages of the
mapped file are the system's to drop.
"""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from _link_scene import free_port, start
from transom.link.config import LinkConfig
from transom.vertical import align, run
from transom.vertical.align import Aligned
from transom.vertical.ids import order_hash
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.part import load
from transom.vertical.party import make_party

ROLES = ("label", "feature")
COLUMNS, INFORMATIVE, CLUSTERS = 500, 40, 2  # CLUSTERS of each class
PIECE_ROWS = 10_000
BOUND_BYTES = 600  # a row: its ID, its place, its turn; while an alignment is read, once more of each
LIMIT_S = 1800.0


def write(folder: Path, rows: int, columns: int = COLUMNS, seed: int = 11) -> tuple[Path, Path]:
    """The label party's file, whose first column is the label, and the feature party's."""
    draw = np.random.default_rng(seed)
    known = min(INFORMATIVE, columns // 4)
    corners = draw.choice([-1.0, 1.0], size=(2 * CLUSTERS, known)).astype(np.float32)
    mix, more = (draw.normal(size=(known, known)).astype(np.float32) / np.sqrt(known) for _ in range(2))
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "label.npy", folder / "feature.npy"
    widths = columns - columns // 2, columns // 2
    files = [
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width + first))
        for path, width, first in zip(paths, widths, (1, 0), strict=True)
    ]
    for begin in range(0, rows, PIECE_ROWS):
        count = min(PIECE_ROWS, rows - begin)
        cluster_B = draw.integers(0, 2 * CLUSTERS, count)
        known_BK = (corners[cluster_B] + draw.normal(size=(count, known))).astype(np.float32) @ mix
        rest_BF = draw.normal(size=(count, columns - 2 * known)).astype(np.float32)
        all_BF = np.concatenate([known_BK, known_BK @ more, rest_BF], 1)
        label_B = (cluster_B % 2) ^ (draw.random(count) < 0.01)
        files[0][begin : begin + count, 0] = label_B
        files[0][begin : begin + count, 1:] = all_BF[:, ::2]
        files[1][begin : begin + count] = all_BF[:, 1::2]
    del files
    return paths


def make_jobs(paths: tuple[Path, Path], out: Path, train: Train) -> tuple[VerticalJob, VerticalJob]:
    """The label party's job and the feature party's."""
    feature = VerticalJob("synthetic", "binary", Data(paths[1]), bottom=Net((64,)), train=train, out=out)
    label = replace(feature, data=Data(paths[0], label_column="0"), classes=("0", "1"))
    return label, feature


def aligned(job: VerticalJob, rows: int) -> None:
    """What `transom vertical psi` would leave: rows of these files have their number as ID."""
    names = tuple(sorted(map(str, range(rows))))
    places = np.array(names, dtype=np.int64)
    align.write(job, Aligned(names, places, order_hash(names), rows, "psi"))


def peak_mb(folder: Path, rows: int, columns: int = COLUMNS, batch_rows: int = 1024) -> dict[str, Any]:
    """The most that each party had for itself in a training of one epoch, a process each, over TCP."""
    paths = write(folder, rows, columns)
    jobs = make_jobs(paths, folder / "out", Train("pubsub", 1, batch_rows, deadline_s=120.0))
    place, alive = f"127.0.0.1:{free_port()}", {}
    for job, other, way in zip(jobs, reversed(ROLES), ("listen", "connect"), strict=True):
        link = LinkConfig(
            job="synthetic",
            run="r1",
            party=job.role,
            partner=other,
            timeout_s=LIMIT_S,
            **{way: place},  # type: ignore[arg-type]
        )
        one = replace(job, link=link)
        aligned(one, rows)
        alive[job.role] = start(lambda one=one: _work(one), folder / f"{job.role}.error")
    peaks, begun_s = dict.fromkeys(ROLES, 0.0), time.monotonic()
    while any(process.is_alive() for process in alive.values()):
        for role, process in alive.items():
            peaks[role] = max(peaks[role], own_mb(process.pid))
        if time.monotonic() > begun_s + LIMIT_S or list(folder.glob("*.error")):
            for process in alive.values():
                process.kill()
        time.sleep(0.02)
    if problems := [path.read_text() for path in folder.glob("*.error")]:
        raise SystemExit(problems[0])
    score = json.loads((jobs[0].folder / "report.json").read_text())["score"]
    took_s = time.monotonic() - begun_s
    own = {f"{role}_mb": peaks[role] for role in ROLES}
    return {"rows": rows, "columns": columns, **own, "auc": score["value"], "took_s": took_s}


def _work(job: VerticalJob) -> None:
    part = load(job)
    with run.way(job) as broker, closing(make_party(job, part, lambda told: None)) as party:
        run.train(party, broker)


def own_mb(pid: int) -> float:
    """Memory of a process that is no file's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return found[0] / 1024 if found else 0.0


def growth(points: list[dict[str, Any]]) -> dict[str, float]:
    """Bytes that each party had more for each row more, between the fewest rows and the most."""
    first, last = points[0], points[-1]
    rows = last["rows"] - first["rows"]
    return {role: (last[f"{role}_mb"] - first[f"{role}_mb"]) * 2**20 / rows for role in ROLES}
