"""A small simulation of a vertical training by its events, for the planner's model to be held against.

It knows what the model leaves out: queues, workers that share cores, a unit that waits for its own worker.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from transom.vertical.epoch import Given

Then = Callable[[], None]


class Clock:
    """Events by their time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._numbers = itertools.count()
        self.crews: list[Crew] = []

    def after(self, seconds: float, then: Then) -> None:
        heapq.heappush(self._events, (self.now_s + seconds, next(self._numbers), then))

    def run(self) -> float:
        while True:
            ends = [(crew.next_s, number) for number, crew in enumerate(self.crews) if crew.at_work]
            event_s = self._events[0][0] if self._events else math.inf
            crew_s, number = min(ends, default=(math.inf, 0))
            if min(event_s, crew_s) == math.inf:
                return self.now_s
            if event_s <= crew_s:
                self._advance(event_s)
                heapq.heappop(self._events)[2]()
            else:
                self._advance(crew_s)
                self.crews[number].end_one()

    def _advance(self, to_s: float) -> None:
        for crew in self.crews:
            crew.work(to_s - self.now_s)
        self.now_s = to_s


@dataclass
class Line:
    """What serves one after the other: a direction of the link, a party's own process."""

    clock: Clock
    free_s: float = 0.0

    def serve(self, seconds: float, then: Then, later_s: float = 0.0) -> None:
        self.free_s = max(self.free_s, self.clock.now_s) + seconds
        self.clock.after(self.free_s - self.clock.now_s + later_s, then)


@dataclass
class Job:
    left_s: float
    then: Then
    worker: int | None


@dataclass
class Crew:
    """A party's workers on its cores: where there are more of them at work than cores, all are slower."""

    clock: Clock
    workers: int
    cores: int
    at_work: dict[int, Job] = field(default_factory=dict)
    first: deque[Job] = field(default_factory=deque)
    second: deque[Job] = field(default_factory=deque)

    def give(self, job: Job, *, urgent: bool = False) -> None:
        (self.first if urgent else self.second).append(job)
        self.start()

    def start(self) -> None:
        for waiting in (self.first, self.second):
            for job in list(waiting):
                free = [one for one in range(self.workers) if one not in self.at_work]
                wanted = [one for one in free if job.worker in (None, one)]
                if wanted:
                    waiting.remove(job)
                    self.at_work[wanted[0]] = job

    @property
    def rate(self) -> float:
        return min(1.0, self.cores / len(self.at_work)) if self.at_work else 1.0

    @property
    def next_s(self) -> float:
        return self.clock.now_s + min(job.left_s for job in self.at_work.values()) / self.rate

    def work(self, seconds: float) -> None:
        rate = self.rate
        for job in self.at_work.values():
            job.left_s -= seconds * rate

    def end_one(self) -> None:
        worker = min(self.at_work, key=lambda one: self.at_work[one].left_s)
        job = self.at_work.pop(worker)
        job.then()  # first: a party begins a batch before it takes the next gradient from its inbox
        self.start()


class Training:
    """One run, unit by unit. `uneven`: each task takes up to so much more or less than its mean; `learns`:
    the feature party learns from a batch before it begins another."""

    def __init__(
        self, given: Given, batch_rows: int, label: int, feature: int, *, uneven: float = 0.0,
        learns: bool = False,
    ) -> None:  # fmt: skip
        self.given, self.batch_rows, self.epochs, self.learns = given, batch_rows, given.epochs, learns
        self.chance, self.uneven = random.Random(0), uneven
        schedule = given.schedule
        if schedule in ("vfl-ps", "avfl-ps"):
            label = feature = max(label, feature)
        self.ahead = {"vfl": 1, "pubsub": given.under_way}.get(schedule, feature)
        if schedule in ("vfl", "avfl"):
            label = feature = 1
        self.shares = feature if schedule == "vfl-ps" else 1
        self.paired, self.workers = schedule.endswith("-ps"), feature
        self.clock = Clock()
        self.label = Crew(self.clock, label, given.label.cores)
        self.feature = Crew(self.clock, feature, given.feature.cores)
        self.clock.crews = [self.label, self.feature]
        self.forth, self.back, self.label_own, self.feature_own = (Line(self.clock) for _ in range(4))
        self.bundle = 1 if schedule.startswith("vfl") else given.bundle
        self.per_epoch = math.ceil(given.rows / (batch_rows * self.bundle)) * self.shares
        self.begun = self.done = self.going = 0

    def epoch_s(self) -> float:
        """The mean time of an epoch."""
        self._begin()
        total_s = self.clock.run()
        assert self.done == self.per_epoch * self.epochs
        return total_s / self.epochs

    def _rows(self, unit: int) -> int:
        within, whole = unit % self.per_epoch // self.shares, self.batch_rows * self.bundle
        rows = min(whole, self.given.rows - within * whole)
        return len(range(unit % self.shares, rows, self.shares))

    def _begin(self) -> None:
        while self.going < self.ahead and self.begun < self.per_epoch * self.epochs:
            lockstep = self.given.schedule in ("vfl", "vfl-ps")
            if lockstep and self.begun // self.shares > self.done // self.shares:
                return
            if self.given.schedule != "pubsub" and self.begun // self.per_epoch > self.done // self.per_epoch:
                return
            unit, self.begun, self.going = self.begun, self.begun + 1, self.going + 1
            self._unit(unit)

    def _took(self, seconds: float) -> float:
        return seconds * self.chance.uniform(1 - self.uneven, 1 + self.uneven)

    def _unit(self, unit: int) -> None:
        """The way of a unit: forward, label party, back."""
        rows, label, feature = self._rows(unit), self.given.label, self.given.feature
        transfer_s = rows * self.given.width * self.given.value_bytes / self.given.wire.bytes_per_s
        worker = unit % self.workers if self.paired else None
        batches = math.ceil(rows / self.batch_rows)  # of a bundle, each computed by itself
        each, latency_s = rows / batches, self.given.wire.latency_s
        label_s = batches * (label.forward(each) + label.backward(each))
        forward_s, backward_s = batches * feature.forward(each), batches * feature.backward(each)
        label_own_s, feature_own_s = label.message(rows), feature.message(rows)
        if self.label.workers == 1:  # it is the party's own process, which sends and receives as well
            label_s, label_own_s = label_s + 2 * label_own_s, 0.0
        if self.feature.workers == 1:
            forward_s, backward_s = forward_s + feature_own_s, backward_s + feature_own_s
            feature_own_s = 0.0
        steps: list[Callable[[Then], None]] = [
            lambda then: self.feature.give(Job(self._took(forward_s), then, worker), urgent=not self.learns),
            lambda then: self.feature_own.serve(feature_own_s, then),
            lambda then: self.forth.serve(transfer_s, then, latency_s),
            lambda then: self.label_own.serve(label_own_s, then),
            lambda then: self.label.give(Job(self._took(label_s), then, worker)),
            lambda then: self.label_own.serve(label_own_s, then),
            lambda then: self.back.serve(transfer_s, then, latency_s),
            lambda then: self.feature_own.serve(feature_own_s, then),
            lambda then: self.feature.give(Job(self._took(backward_s), then, worker), urgent=self.learns),
        ]
        self._go(iter(steps))

    def _go(self, steps: object) -> None:
        step = next(steps, None)  # type: ignore[call-overload]
        if step is None:
            self._ended()
        else:
            step(lambda: self._go(steps))

    def _ended(self) -> None:
        self.done, self.going = self.done + 1, self.going - 1
        if self.shares > 1 and self.done % self.shares == 0:
            self.clock.after(self.shares * self.given.feature.average_s, self._begin)
        else:
            self._begin()
