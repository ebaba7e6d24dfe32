"""A party's vertical training as an audit's target: what was recorded of it, what is known, the truth.

Either party's record holds both ways, so each can ask what the other reads in its own: the feature party has
the truth of what its embeddings tell, the label party that of what its gradients tell. Where both jobs are
here, as after a simulation, both are asked.
Threat model: run by a party on its own machine, with the partner's part played by the attacks. Which rows are
known is drawn by a fixed seed, anew for no audit. Does not protect anything.
Source: own; the attacks are `attacks.vertical_*`.

Shapes: N rows of training, K known ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transom.audit.attacks.vertical_view import Exchanged, Known, Seen, Truth
from transom.config import read_config
from transom.errors import CheckpointError, MisconfiguredError
from transom.link.mechanisms import Gaussian, Laplace
from transom.report.statistics import Floats
from transom.vertical import part as parts
from transom.vertical import traffic
from transom.vertical.folder import Head
from transom.vertical.job import Role, VerticalJob
from transom.vertical.part import Part

Parts = dict[Role, Part]


@dataclass(frozen=True, eq=False)
class Case:
    """For the attacks; `told` says for the reader how it was made."""

    target: Exchanged
    knowledge: Known
    data: Truth
    told: dict[str, Any] = field(default_factory=dict)


def case(
    job: VerticalJob, partner: VerticalJob | None = None, known_rows: int = 200, known_labels: int = 10
) -> Case:
    """What the parties sent of the rows that they trained on. `known_rows` of them are the label party's with
    all columns, and `known_labels` of each class (or so many numbers) the feature party's.

    Raises as `part.load` and `traffic.read`, CheckpointError for a folder that is of another run or file.
    """
    jobs = (job,) if partner is None else (job, partner)
    mine = loaded(jobs)
    kept_by = next((one for one in jobs if traffic.files(traffic.folder_of(one))), job)
    count = len(mine[kept_by.role].train)
    require_same(kept_by, mine[kept_by.role])
    kept = traffic.read(kept_by)
    sigmas = {one.role: deviation(one) for one in jobs}
    target = Exchanged(
        Seen(*traffic.views(kept_by, count, kept, "forward"), sigmas.get("feature", 0.0)),
        Seen(*traffic.views(kept_by, count, kept, "backward"), sigmas.get("label", 0.0)),
    )
    data = truth(mine)
    told = {
        "rows": count,
        "epochs": f"{len(target.embeddings.views_ENW)} of {kept_by.train.epochs} recorded whole",
        "noise": sigmas,
    }
    return Case(target, known(data, count, known_rows, known_labels), data, told)


def deviation(job: VerticalJob) -> float:
    """Of the noise that was added to each number; 0 where it is not the same for all."""
    law = job.mechanism
    if isinstance(law, Gaussian):
        return law.sigma
    return math.sqrt(2) * law.scale if isinstance(law, Laplace) else 0.0


def loaded(jobs: Sequence[VerticalJob]) -> Parts:
    """The parties' parts that are here. Raises MisconfiguredError for two jobs of one party."""
    if len(jobs) == 1:
        return {jobs[0].role: parts.load(jobs[0])}
    label, feature = sorted(jobs, key=lambda job: job.role == "feature")
    if label.role == feature.role or label.name != feature.name:
        raise MisconfiguredError(
            f"the jobs are of the {label.role} party of {label.name!r} and of the {feature.role} party of "
            f"{feature.name!r}; give both parties' jobs of one training"
        )
    both = parts.load_here((label, feature))
    return {"label": both[0], "feature": both[1]}


def truth(mine: Parts) -> Truth:
    """Of the rows of training, as far as they are here."""
    label, feature = mine.get("label"), mine.get("feature")
    labels_N = None if label is None else label.labels(label.train)
    if feature is None:
        return Truth(labels_N=labels_N)
    return Truth(feature.rows(feature.train).astype(np.float64), feature.names, labels_N)


def known(data: Truth, count: int, rows: int, labels: int) -> Known:
    """Rows whose columns the label party knows, and labels that the feature party knows."""
    draw = np.random.default_rng(0)
    rows_K = draw.permutation(count)[:rows]
    if data.labels_N is None:
        return Known(rows_K)
    order_N, labels_N = draw.permutation(count), data.labels_N
    if labels_N.dtype.kind == "f":
        chosen = order_N[:labels]
        rarer = 1
    else:
        classes, counts = np.unique(labels_N, return_counts=True)
        chosen = np.concatenate([order_N[labels_N[order_N] == one][:labels] for one in classes])
        rarer = int(classes[counts.argmin()])
    by_row = {int(row): labels_N[row].item() for row in chosen}
    columns_NF: Floats | None = data.values_NF
    return Known(rows_K, by_row, rarer, columns_NF)


def require_same(job: VerticalJob, part: Part) -> Head:
    """What the recorded run left, whose rows these are. Raises CheckpointError."""
    path = job.folder / "job.json"
    if not path.exists():
        raise CheckpointError(
            f"{job.folder} holds no finished run; train first, with train.record_traffic_mb, or set `out` to "
            "its folder"
        )
    head = read_config(Head, path, what="what a run left", error=CheckpointError)
    if (head.about.get("file"), head.about.get("order of the IDs")) != (part.digest, part.order_hash):
        raise CheckpointError(
            f"{job.data.path} or its alignment has changed since the run in {job.folder}; restore it, or "
            "train again"
        )
    return head
