"""How many epochs a vertical training needs to a quality, without a link: for the benchmark of the planner.

The modules, optimisers, batches, replicas and averages are those of a run; a gradient meets the weights of
its embedding, and is as old as the schedule makes it where as many batches are under way as may be.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from _link_scene import FORK
from transom.link import state
from transom.vertical.half import EMBEDDING, GRADIENT, LABELS, ROWS, Half, Task, make_half
from transom.vertical.metrics import metrics
from transom.vertical.model import standardise
from transom.vertical.part import Part
from transom.vertical.pool import mean_into
from transom.vertical.schedule import Units, interval
from vertical_accuracy import Jobs, Parts

MOST_EPOCHS = 40


@dataclass(frozen=True)
class Run:
    """Jobs with a seed and a plan's settings, replicas of the label and the feature party, batches under
    way."""

    jobs: Jobs
    replicas: tuple[int, int]
    ahead: int


def epochs_to(target: float, runs: Sequence[Run], parts: Parts) -> list[float]:
    """Of each run, until its AUC on the rows of test first is at the target, straight between two epochs (the
    first begins at 0.5); not a number after too many. On all cores."""
    with ProcessPoolExecutor(os.cpu_count(), FORK, _begin, (parts, target)) as pool:
        return list(pool.map(_epochs, runs))


_SHARED: list[Any] = []


def _begin(parts: Parts, target: float) -> None:
    torch.set_num_threads(1)
    _SHARED[:] = parts, target


def _epochs(run: Run) -> float:
    parts, target = _SHARED
    before = 0.5
    for epoch, value in enumerate(curve(run, parts), 1):
        if value >= target:
            return epoch - (value - target) / (value - before)
        before = value
    return float("nan")


def curve(run: Run, parts: Parts) -> Iterator[float]:
    """AUC after each epoch."""
    jobs, counts = run.jobs, run.replicas
    servers: list[Half] = [
        make_half(job, part.width, local=True) for job, part in zip(jobs, parts, strict=True)
    ]
    for half, part in zip(servers, parts, strict=True):
        if half.bottom is not None:
            standardise(half.bottom, part)
    crews = [
        [server] if count == 1 else [copied(job, part, server) for _ in range(count)]
        for job, part, server, count in zip(jobs, parts, servers, counts, strict=True)
    ]
    units, under_way, begun, due = Units.of(jobs[0], len(parts[0].train)), deque[Any](), 0, 1
    for unit in range(units.total):
        while begun < units.total and len(under_way) < run.ahead:
            maker = crews[1][begun % counts[1]]
            given = rows_of(parts[1], units, begun)
            under_way.append((maker, maker.do(Task("forward", begun, given, len(given[ROWS])))))
            begun += 1
        maker, made = under_way.popleft()
        numbers = parts[0].train[units.rows(unit)]
        size = len(numbers)
        graded = crews[0][unit % counts[0]].do(Task("train", unit, {
            **rows_of(parts[0], units, unit), EMBEDDING: made.tensors[EMBEDDING],
            LABELS: torch.from_numpy(parts[0].labels(numbers)),
        }, size))  # fmt: skip
        given = {**rows_of(parts[1], units, unit), GRADIENT: graded.tensors[GRADIENT]}
        maker.do(Task("backward", unit, given, size))
        if (unit + 1) % units.per_epoch == 0:
            epoch = units.epoch(unit) + 1
            for server, crew in zip(servers, crews, strict=True):
                averaged(server, crew, spread=epoch >= due)
            due = epoch + interval(epoch, jobs[0].train.aggregate_epochs) if epoch >= due else due
            yield auc(jobs, parts, servers)


def copied(job: Any, part: Part, server: Half) -> Half:
    half = make_half(job, part.width, local=True)
    half.restore(server.saved())
    return half


def averaged(server: Half, crew: list[Half], *, spread: bool) -> None:
    """The server's replica is the mean of the workers', who take it over if that is due."""
    if len(crew) == 1:
        return
    mean_into(server, [state.read(one.saved(), {}) for one in crew], [1 / len(crew)] * len(crew))
    if spread:
        for one in crew:
            one.restore(server.saved())


def rows_of(part: Part, units: Units, unit: int) -> dict[str, torch.Tensor]:
    return {ROWS: torch.from_numpy(part.rows(part.train[units.rows(unit)]))}


def auc(jobs: Jobs, parts: Parts, servers: list[Half]) -> float:
    label, feature = servers
    own, other = (torch.from_numpy(part.rows(part.test)) for part in parts)
    outputs = label.outputs(own, feature.embed(other))
    if label.top is None:
        raise SystemExit("the label party has no top")
    scores = label.top.scores(outputs).double().numpy()
    return metrics(jobs[0].task, scores, parts[0].labels(parts[0].test))["auc"]
