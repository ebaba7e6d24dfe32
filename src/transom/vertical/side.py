"""What both sides of a vertical training have alike: workers, rows, progress, and how they wait.

Threat model: that of the room. Does not protect anything beyond it. Source: own.
Shapes: F columns, B rows of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transom.config import from_plain, to_plain
from transom.errors import CheckpointError
from transom.link.message import Step
from transom.link.numbers import Numbers
from transom.link.session import Received
from transom.link.talk import Message, Talk, pack, unpack
from transom.link.told import Kind, Listener, Told
from transom.link.tunnel import Tunnel
from transom.privacy.stream import Direction
from transom.vertical.half import Done
from transom.vertical.job import PREDICTED, VerticalJob
from transom.vertical.messages import EVALUATE, TRAIN
from transom.vertical.part import Part
from transom.vertical.pool import Pool, sum_of
from transom.vertical.schedule import Units, Way, chunks, interval
from transom.vertical.timeline import Timeline


@dataclass(frozen=True)
class Point:
    """An evaluation: after which epoch and step, the training's mean loss since the last one, metrics, and
    where the task's score lies with 95 % confidence."""

    epoch: int
    step: int
    train_loss: float | None
    metrics: Mapping[str, float]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Progress:
    """Where a party stands: units done (`Numbers` as plain), steps, epochs evaluated and averaged; units that
    were given out again, with their attempt; of an evaluation under way its attempt and the answers that
    came; units that the label party has received and not answered, with their attempt; what it counts;
    whether nothing more begins; the mark that both parties' folders of the run share; what its tunnel has
    learnt; whether it ended because a budget was spent; what its watch saw; replies of training that held no
    row."""

    done: tuple[int, ...] = (0,)
    steps: int = 0
    evaluated: int = 0
    next_average: int = 1
    attempts: Mapping[str, int] = field(default_factory=dict)
    evaluation: tuple[int, int] = (0, 0)
    unanswered: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    loss_sum: float = 0.0
    loss_count: int = 0
    history: tuple[Point, ...] = ()
    ends: bool = False
    mark: str = ""
    importance: tuple[float, ...] = ()
    spent: bool = False
    watched: tuple[float, ...] = ()
    rowless: tuple[str, ...] = ()
    over: bool = False


class Side:
    """A party at work on its rows; `about` is what its state is of."""

    def __init__(
        self, job: VerticalJob, part: Part, pool: Pool, way: Way, about: Mapping[str, str], tell: Listener,
        tunnel: Tunnel,
    ) -> None:  # fmt: skip
        self.job, self.part, self.pool, self.way, self.tunnel = job, part, pool, way, tunnel
        self.about, self.tell = about, tell
        self.units = Units.of(job, len(part.train))
        self.spans = chunks(len(part.test), job.train.batch_rows)
        self.now, self.done = Progress(), Numbers()
        self.wait_s = 0.0
        self.timeline = Timeline(way.workers)
        self.due = False  # whether a checkpoint is
        self._gathered: dict[int, Mapping[str, Tensor]] = {}
        kept = PREDICTED if job.role == "feature" else 0
        self.budget = job.noise.budget(job.mechanism, len(part), kept)
        self._charged: set[Step] = set()  # before a restart: they leave as the same bytes

    def standing(self) -> Progress:
        """As `now`, with what a process that is killed would lose of what it received."""
        return self.now

    def charge(self, sent: Sequence[Step]) -> None:
        """What an earlier process released, as the record has it."""
        rowless = set(self.now.rowless)
        for step in sent:
            if str(step) not in rowless and (numbers := self._released_by(step)) is not None:
                self.budget.spend(numbers)
                self._charged.add(step)

    def release(self, rows_BW: Tensor, step: Step) -> Tensor | None:
        """Rows as they may leave, or None where the budget of one of them is spent: then nothing more begins,
        and the run ends."""
        numbers = self._released_by(step)
        if numbers is not None and step not in self._charged:
            if not self.budget.affords(numbers):
                self.now = replace(self.now, ends=True, spent=True)
                return None
            self.budget.spend(numbers)
        return self.tunnel.release(rows_BW, step)

    @property
    def learnt(self) -> tuple[float, ...]:
        """What the tunnel has learnt of the importance of values."""
        return self.tunnel.importance[self._own]

    @learnt.setter
    def learnt(self, importance: tuple[float, ...]) -> None:
        self.tunnel.importance[self._own] = importance

    @property
    def _own(self) -> Direction:
        """The way that this party's rows go."""
        return "forward" if self.job.role == "feature" else "backward"

    def _released_by(self, step: Step) -> NDArray[np.int64] | None:
        """The rows whose values a message of this party holds; None for one that tells of none."""
        if step.direction != self._own:
            return None
        if step.topic == TRAIN:
            return self.unit_rows(max(self.units.unit(step), 0))
        return self.test_rows(step.batch) if step.topic == EVALUATE and self.job.role == "feature" else None

    def finished(self, talk: Talk, done: Done) -> None:
        """A worker has done a task."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """How many are done."""
        return self.now.steps

    def keep(self, talk: Talk, last: Message | None = None) -> None:
        """A checkpoint, and a last message with it. What workers have learnt is counted before it is kept:
        else a restart would have it learnt twice."""
        self.collect()
        while (done := self.pool.take()) is not None:
            self.finished(talk, done)
        self.due = False
        talk.commit(self.saved(), last)

    def saved(self) -> bytes:
        """All that a restart needs."""
        plain = {**to_plain(replace(self.standing(), importance=self.learnt)), "done": self.done.to_plain()}
        return pack(self.about, plain, self.pool.half.saved())

    def restore(self, data: bytes) -> None:
        """Stand where `saved` was called. Raises CheckpointError."""
        plain, learnt = unpack(data, self.about)
        self.now = from_plain(Progress, plain, "this checkpoint is of another version", error=CheckpointError)
        self.done = Numbers.from_plain(list(self.now.done))
        self.pool.half.restore(learnt)
        self.learnt = self.now.importance

    def tensor(self, numbers: NDArray[np.int64]) -> Tensor | None:
        """These rows' columns [B, F]; None for a label-only party."""
        return torch.from_numpy(self.part.rows(numbers)) if self.part.width else None

    def unit_rows(self, unit: int) -> NDArray[np.int64]:
        return self.part.train[self.units.rows(unit)]

    def test_rows(self, chunk: int) -> NDArray[np.int64]:
        start, end = self.spans[chunk]
        return self.part.test[start:end]

    def worker_of(self, unit: int) -> int | None:
        """Which worker a unit is for; None: any."""
        return unit % self.way.workers if self.way.paired else None

    @property
    def partner_has(self) -> bool:
        """Whether the partner has something of this party's to work on, as far as messages tell, or it is on
        its way."""
        raise NotImplementedError

    def spent(self, what: str, begun_s: float, ended_s: float) -> None:
        """The party's process has done something."""
        self.timeline.note(what, begun_s, ended_s, self.pool.busy_s, partner=self.partner_has)

    def wait(self, talk: Talk, topics: tuple[str, ...], until_s: float = math.inf) -> Received | None:
        """A message, or None once a worker is done or at a time; how long it took is counted."""
        begun_s = time.monotonic()
        received = talk.wait(topics, lambda: self.pool.ready, min(until_s, self.pool.due_s))
        self.wait_s += time.monotonic() - begun_s
        self.pool.replace_stuck()
        return received

    def gather(self, unit: int, tensors: Mapping[str, Tensor]) -> bool:
        """Keep a share's gradients; with the last one of its batch the server steps, and tells the workers.
        Whether it did."""
        self._gathered[unit] = {
            name.removeprefix("of/"): one for name, one in tensors.items() if name.startswith("of/")
        }
        if len(self._gathered) < self.way.shares:
            return False
        parts = [self._gathered[unit] for unit in sorted(self._gathered)]
        self.pool.half.step({name: sum_of([part[name] for part in parts]) for name in parts[0]})
        self._gathered.clear()
        self.pool.spread()
        return True

    def collect(self) -> None:
        """The server's replica is the mean of the workers', where these learn."""
        if self.way.local:
            self.pool.average()

    def average(self, epoch: int) -> int:
        """After so many epochs: one model of all replicas, which the workers take over when that is due. The
        epoch after which it is due next."""
        self.collect()
        due = self.way.averages == "each" or epoch >= self.now.next_average
        if self.way.averages == "never" or not due:
            return self.now.next_average
        self.pool.spread()
        return epoch + interval(epoch, self.job.train.aggregate_epochs)

    def told(self, kind: Kind, found: Mapping[str, float] | None = None) -> None:
        self.tell(Told(kind, self.now.steps, self.units.steps, found or {}))
