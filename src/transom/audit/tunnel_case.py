"""A feature party's training as the target of attacks on its tunnel: recorded traffic, and the party itself.

Without recorded traffic both parties train here, in a folder of their own, as their jobs say.
Threat model: run by the feature party on its own machine, with its partner's part played by the attacks.
Which rows are known is drawn by a fixed seed, anew for no audit. Does not protect anything.
Source: own; the attacks are `attacks.tunnel_*`.

Shapes: N rows of training, K known ones, F columns.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from transom.audit.attacks.tunnel_view import Aux, Hidden, Tunnelled
from transom.audit.attacks.vertical_view import Seen
from transom.audit.vertical_case import deviation, require_same
from transom.errors import CheckpointError, MisconfiguredError
from transom.link.hijack import Watch
from transom.link.r3elu import R3elu, R3eluDp
from transom.report.statistics import Bools, Floats
from transom.vertical import part as parts
from transom.vertical import run, traffic
from transom.vertical.half import Half, make_half
from transom.vertical.job import VerticalJob
from transom.vertical.model import standardise
from transom.vertical.part import Part

BRIGHT = "sum of all columns above its median"
_TRAFFIC_MB = 4096


@dataclass(frozen=True, eq=False)
class Case:
    """For the attacks; `told` says for the reader how it was made."""

    target: Tunnelled
    knowledge: Aux
    data: Hidden
    told: dict[str, Any] = field(default_factory=dict)


def case(
    feature: VerticalJob, label: VerticalJob | None, known: int, column: str, shape: tuple[int, int] | None
) -> Case:
    """What the feature party sent of the rows that it trained on, `known` of which the attacker knows; the
    property is that a column (or the sum of all) is above its median.

    Raises MisconfiguredError for a job, a column or a shape that does not fit, and as `traffic.read`.
    """
    if feature.role != "feature":
        raise MisconfiguredError("a tunnel is audited by the feature party; give its job first")
    recorded = bool(traffic.files(traffic.folder_of(feature)))
    if recorded:
        part = parts.load(feature) if label is None else parts.load_here((label, feature))[1]
        found = made(feature, part, *seen_of(feature, part), known, column, shape)
    elif label is not None:
        found = _live(feature, label, known, column, shape)
    else:
        raise MisconfiguredError(
            f"{traffic.folder_of(feature)} has no traffic: train with train.record_traffic_mb, or give the "
            "label party's job as --partner, and both train here"
        )
    found.told["seen"] = "recorded" if recorded else "a run of both parties here"
    return found


def made(
    feature: VerticalJob, part: Part, seen: Seen, importance: tuple[float, ...], known: int, column: str,
    shape: tuple[int, int] | None,
) -> Case:  # fmt: skip
    """A case of what was seen of a part's rows of training."""
    values_NF = part.rows(part.train).astype(np.float64)
    if shape is not None and shape[0] * shape[1] != values_NF.shape[1]:
        raise MisconfiguredError(
            f"images of {shape[0]} x {shape[1]} have {shape[0] * shape[1]} columns, and the file "
            f"{values_NF.shape[1]}"
        )
    mechanism = feature.mechanism
    if isinstance(mechanism, R3elu | R3eluDp) and importance:
        mechanism = replace(mechanism, importance=importance)
    target = Tunnelled(
        seen, _maker(feature, part), values_NF, mechanism, feature.width, feature.train.batch_rows,
        feature.train.epochs * math.ceil(len(part.train) / feature.train.batch_rows),
        Watch(feature.task != "multiclass") if feature.watch else None,
    )  # fmt: skip
    count = len(part.train)
    rows_K = np.sort(np.random.default_rng(0).permutation(count)[: min(known, count // 2)])
    has_N, said = _property(values_NF, part.names, column)
    told = {
        "rows": count,
        "known rows": len(rows_K),
        "epochs": len(seen.views_ENW),
        "tunnel": feature.noise.kind,
        "mechanism": str(feature.mechanism),
        "watch": feature.watch,
    }
    return Case(target, Aux(rows_K), Hidden(_shown(values_NF, shape), has_N, said, shape), told)


def _live(
    feature: VerticalJob, label: VerticalJob, known: int, column: str, shape: tuple[int, int] | None
) -> Case:
    both = parts.load_here((label, feature))
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(feature.train, record_traffic_mb=_TRAFFIC_MB)
        jobs = (
            replace(label, out=Path(folder), link=None),  # not with the records of a real run
            replace(feature, out=Path(folder), link=None, train=kept),
        )
        run.simulate(jobs, both, lambda told: None)
        return made(feature, both[1], *seen_of(jobs[1], both[1]), known, column, shape)


def seen_of(job: VerticalJob, part: Part) -> tuple[Seen, tuple[float, ...]]:
    """What was recorded of the rows of training, and what the tunnel learnt of importance."""
    head = require_same(job, part)
    if head.about.get("noise") != job.noise_told:
        raise CheckpointError(
            f"the run in {job.folder} had another tunnel than this job's {job.noise.kind}: set the "
            "job's noise to what it trained with"
        )
    views = traffic.views(job, len(part.train), traffic.read(job), "forward")
    return Seen(*views, deviation(job)), head.importance


def _maker(job: VerticalJob, part: Part) -> Callable[[], Half]:
    def make() -> Half:
        half = make_half(replace(job, device="cpu"), part.width, local=True)
        if half.bottom is not None:
            standardise(half.bottom, part)
        return half

    return make


def _property(values_NF: Floats, names: tuple[str, ...], column: str) -> tuple[Bools, str]:
    if column and column not in names:
        raise MisconfiguredError(f"--property {column!r:.60} is none of the {len(names)} columns of the job")
    of_N = values_NF[:, names.index(column)] if column else values_NF.sum(1)
    said = f"{column} above its median" if column else BRIGHT
    middle = np.median(of_N)
    found_N: Bools = of_N > middle if (of_N > middle).any() else of_N >= middle  # most are the largest
    return found_N, said


def _shown(values_NF: Floats, shape: tuple[int, int] | None) -> Floats:
    """Images of other scales than 0 to 1 are brought to it, by their largest value."""
    if shape is None:
        return values_NF
    if values_NF.min() < 0:
        raise MisconfiguredError("images have grey values of 0 and more; leave --image out for other columns")
    return values_NF / max(1.0, float(values_NF.max()))
