"""Which batches there are, in which order, and how many of them are under way at once.

A *unit* is what one message carries: a batch, a bundle of them, or in `vfl-ps` a worker's share of one. Units
are numbered through the run. Both parties derive rows and order from the job and the count of rows, without a
word.
Threat model: none; order and composition of batches are known to both parties by design.
Does not protect: against a partner that takes other rows.
Source: Liu et al., arXiv 2510.12494, section 4 and equation 7 (interval of aggregation).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transom.link.message import Step
from transom.privacy.stream import Stream
from transom.vertical.job import VerticalJob

EVALUATED_ROWS = 4096  # of a message, at least
EVALUATED_AHEAD = 4  # messages of an evaluation that are on their way at once


@dataclass(frozen=True)
class Way:
    """How a schedule goes. `shares`: parts of a batch; `bundle`: batches of a unit; `ahead`: units under way;
    `lockstep`: one batch after the other; `paired`: a unit's worker is given by its number, at both parties;
    `waits`: an epoch begins when the one before was evaluated. `gathers`: the server steps with the gradients
    of all shares."""

    workers: int
    shares: int
    ahead: int
    lockstep: bool
    paired: bool
    waits: bool
    averages: Literal["never", "each", "seldom"]
    bundle: int = 1

    @property
    def gathers(self) -> bool:
        return self.shares > 1

    @property
    def local(self) -> bool:
        """Whether a worker applies its gradients itself."""
        return not self.gathers


def way_of(job: VerticalJob) -> Way:
    """The schedule of a job, as this party goes it."""
    train, workers, bundle = job.train, job.train.workers, job.train.bundle
    if train.schedule == "vfl" or (train.schedule == "vfl-ps" and workers == 1):
        return Way(1, 1, 1, True, False, True, "never")
    if train.schedule == "vfl-ps":
        return Way(workers, workers, workers, True, True, True, "never")
    if train.schedule == "avfl":
        return Way(1, 1, workers, False, False, True, "never", bundle)
    if train.schedule == "avfl-ps":
        return Way(workers, 1, workers, False, True, True, "each", bundle)
    ahead = min(train.embeddings, (train.staleness + 1) // bundle)
    return Way(workers, 1, ahead, False, False, False, "seldom", bundle)


def interval(epoch: int, most: int) -> int:
    """Epochs from this one (from 1) to the next average: 1 early, `most` late.

    >>> [interval(epoch, 5) for epoch in (1, 4, 5, 6, 9, 30)]
    [1, 2, 3, 4, 5, 5]
    """
    half = most / 2
    return max(1, math.ceil(half * math.tanh(2 * epoch / most - 2) + half))


@dataclass(frozen=True)
class Units:
    """The units of a run on so many rows of training; `rows(unit)` are their places among these."""

    name: str
    seed: int
    count: int
    batch_rows: int
    epochs: int
    shares: int
    bundle: int = 1

    @classmethod
    def of(cls, job: VerticalJob, count: int) -> Units:
        train, way = job.train, way_of(job)
        return cls(job.name, train.seed, count, train.batch_rows, train.epochs, way.shares, way.bundle)

    @cached_property
    def per_epoch(self) -> int:
        return math.ceil(self.count / self.bundle_rows) * self.shares

    @property
    def bundle_rows(self) -> int:
        return self.batch_rows * self.bundle

    @property
    def steps(self) -> int:
        """Of a run."""
        return math.ceil(self.count / self.batch_rows) * self.epochs

    @property
    def total(self) -> int:
        return self.per_epoch * self.epochs

    def epoch(self, unit: int) -> int:
        return unit // self.per_epoch

    def whole(self, unit: int) -> int:
        """The number in the run of the batch that it is a share of, or of its bundle."""
        return unit // self.shares

    def whole_rows(self, unit: int) -> int:
        """Rows of the batch that it is a share of, or of its bundle."""
        within = unit % self.per_epoch // self.shares
        return min(self.bundle_rows, self.count - within * self.bundle_rows)

    def batch_size(self, unit: int) -> int:
        """Rows of its batches; the last one of a bundle may have fewer."""
        return min(self.batch_rows, self.whole_rows(unit))

    def steps_of(self, unit: int) -> int:
        """How many batches it has, each a step; of all shares of a batch one."""
        return math.ceil(self.whole_rows(unit) / self.batch_rows)

    def batches(self, unit: int) -> NDArray[np.int64]:
        """The number in the run of each row's batch."""
        epoch, within = divmod(unit, self.per_epoch)
        first = epoch * math.ceil(self.count / self.batch_rows) + within // self.shares * self.bundle
        place = np.arange(len(self.rows(unit))) // self.batch_rows
        return first + place

    def rows(self, unit: int) -> NDArray[np.int64]:
        epoch, within = divmod(unit, self.per_epoch)
        start = within // self.shares * self.bundle_rows
        batch = self._order(epoch)[start : start + self.bundle_rows]
        return batch if self.shares == 1 else np.array_split(batch, self.shares)[within % self.shares]

    def step(self, unit: int, topic: str, attempt: int = 0) -> Step:
        """What a message of the unit is of, on the way forth."""
        epoch, within = divmod(unit, self.per_epoch)
        return Step(epoch, within, "forward", attempt, topic)

    def unit(self, step: Step) -> int:
        """The reverse of `step`; -1 for one that is none."""
        fits = step.epoch < self.epochs and step.batch < self.per_epoch
        return step.epoch * self.per_epoch + step.batch if fits else -1

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Of the rows in an epoch; those of two epochs are kept, which may overlap."""
        kept: dict[int, NDArray[np.int64]] = self._orders
        if epoch not in kept:
            if len(kept) > 1:
                del kept[min(kept)]
            secret = hashlib.sha256(f"order/{self.name}/{self.seed}".encode()).digest()
            kept[epoch] = Stream(secret, f"order/{epoch}").permutation(self.count)
        return kept[epoch]

    @cached_property
    def _orders(self) -> dict[int, NDArray[np.int64]]:
        return {}


def chunks(count: int, batch_rows: int) -> list[tuple[int, int]]:
    """Beginnings and ends of the messages that carry so many rows which nothing is learnt from; one is empty
    where there are none. A message's size does not grow with the rows."""
    size = max(batch_rows, EVALUATED_ROWS)
    return list(_spans(count, size)) or [(0, 0)]


def _spans(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(start + size, count)
