"""A party's workers and its parameter server: who does which task, and one model out of all replicas.

The server's own replica (`half`) is what is saved, evaluated and used. With one worker in this process it is
the worker's, too. A worker that dies, or is silent for too long while it has a task, is replaced, with the
server's weights, and its tasks are given again.
Threat model: accidents: a worker that is killed or stuck, at any moment. Does not protect: a task that takes
longer than the deadline on every worker ends the run.
Source: Liu et al., arXiv 2510.12494, section 4.1 (aggregation within a party); McMahan et al. 2017, arXiv
1602.05629 (averages weighted by what each has learnt). Own: moments of the optimiser are averaged as well.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from transom.errors import LinkError, TransomError
from transom.link import state
from transom.vertical.half import STATE, Done, Half, Task

Told = Done | TransomError | None  # what came of a task, why there is nothing, or that the worker has died
Event = tuple[int, int, Told]  # of which worker, and of which of those that had its number


_MOST_DEATHS = 3
_STARTING_S = 120.0  # more than the deadline, for the first answer: a process has to start


class Worker(Protocol):
    """Does tasks in their order, and tells what came of each."""

    def give(self, task: Task) -> None: ...

    def close(self) -> None: ...


Make = Callable[[int, Callable[[Told], None]], Worker]  # number, and how it tells


class Pool:
    """Workers 0 to `count` - 1; each has at most `depth` tasks at once. `make` None: the server itself works,
    at once, in this thread. A worker that ends no task within `deadline_s` is given up."""

    def __init__(
        self, half: Half, count: int = 1, make: Make | None = None, depth: int = 1,
        deadline_s: float = math.inf,
    ) -> None:  # fmt: skip
        self.half, self.count, self.depth = half, count, depth
        self.busy_s, self.restarts, self.starting_s = 0.0, 0, _STARTING_S
        self.wake: Callable[[], None] = lambda: None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._kept: deque[Done] = deque()  # taken from the events, not yet by the party
        self._given: list[list[Task]] = [[] for _ in range(count)]
        self._since_s = [math.inf] * count  # since when each has been at its first task
        self._base, self._deadline_s = half.learner.steps, deadline_s
        self._lives = [0] * count  # how many workers had each number before
        self._deaths = [0] * count  # of each since it ended a task
        self._make = make
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Make the workers, with the weights of now."""
        self._workers = [self._started(number) for number in range(self.count)]
        self.spread()

    def close(self) -> None:
        """End the workers; what they have not told is lost."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()

    def give(self, task: Task, worker: int | None = None) -> int | None:
        """Which worker took it: this one, or the one with the fewest tasks; None where all have enough."""
        number = min(range(self.count), key=self._load) if worker is None else worker
        if self._load(number) >= self.depth:
            return None
        self._hand(number, task)
        return number

    def _load(self, number: int) -> int:
        return sum(task.kind not in ("get", "put") for task in self._given[number])

    @property
    def due_s(self) -> float:
        """Until when the first of the workers has to end its task."""
        return min(self._since_s) + self._deadline_s

    def replace_stuck(self) -> None:
        """Others take the place of workers that ended no task in time. Raises LinkError as `take` does."""
        if time.monotonic() < self.due_s:
            return
        while not self._events.empty():  # it may have ended it just now
            self._sort(self._events.get())
        overdue_s = time.monotonic() - self._deadline_s
        for number, since_s in enumerate(self._since_s):
            if since_s <= overdue_s:
                self._replace(number)

    @property
    def ready(self) -> bool:
        """Whether `take` may give something."""
        return bool(self._kept) or not self._events.empty()

    def take(self) -> Done | None:
        """What came of a task that was given, if there is one."""
        while not self._kept and not self._events.empty():
            self._sort(self._events.get())
        return self._kept.popleft() if self._kept else None

    def average(self) -> None:
        """The server's replica becomes the mean of the workers', each by the steps it made since they were
        alike; waits until they have done what they were given. Raises LinkError."""
        if self._make is None:
            return
        found = [state.read(data, {}) for data in self._collected()]
        shares = [one.steps - self._base for one in found]
        if sum(shares) == 0:
            return
        mean_into(self.half, found, [share / sum(shares) for share in shares])

    def spread(self) -> None:
        """All workers get the server's replica, after what they were given before."""
        self._base = self.half.learner.steps
        if self._make is None:
            return
        data = _state_task(self.half)
        for number in range(self.count):
            self._hand(number, data)

    def _collected(self) -> list[bytes]:
        found: dict[int, bytes] = {}
        for number in range(self.count):
            self._hand(number, Task("get", number))
        while len(found) < self.count:
            left_s = self.due_s - time.monotonic()
            try:
                event = self._events.get(timeout=None if left_s == math.inf else max(0.0, left_s))
            except queue.Empty:
                self.replace_stuck()
                continue
            number, life, done = event
            if isinstance(done, Done) and done.kind == "get" and life == self._lives[number]:
                found[number] = done.tensors[STATE].numpy().tobytes()
            self._sort(event)
        return [found[number] for number in range(self.count)]

    def _sort(self, event: Event) -> None:
        number, life, done = event
        if life < self._lives[number]:  # of one that was given up
            return
        if done is None:
            self._replace(number)
            return
        if isinstance(done, TransomError):
            raise done
        self._given[number].pop(0)
        self._since_s[number] = time.monotonic() if self._given[number] else math.inf
        if done.kind not in ("get", "put"):
            self.busy_s += done.busy_s
            self._deaths[number] = 0
            self._kept.append(done)

    def _replace(self, number: int) -> None:
        """A worker has died, or is stuck. Raises LinkError for one of which that is so again and again."""
        if not self._workers or self._make is None:
            return
        self.restarts += 1
        self._deaths[number] += 1
        if self._deaths[number] > _MOST_DEATHS:
            raise LinkError(
                f"a worker process died {self._deaths[number]} times without ending a task, or took longer "
                f"than {self._deadline_s:g} s for it; look at the machine's memory, at what a module of the "
                "job does, and at worker_deadline_s"
            )
        again, self._given[number] = self._given[number], []
        self._workers[number].close()
        self._lives[number] += 1
        self._workers[number] = self._started(number)
        self._hand(number, _state_task(self.half))
        for task in again:
            self._hand(number, task)

    def _hand(self, number: int, task: Task) -> None:
        if self._since_s[number] == math.inf:
            self._since_s[number] = time.monotonic()
        self._given[number].append(task)
        self._workers[number].give(task)

    def _started(self, number: int) -> Worker:
        if self._make is None:
            return _Here(self.half, self._teller(number))
        self._since_s[number] = time.monotonic() + self.starting_s
        return self._make(number, self._teller(number))

    def _teller(self, number: int) -> Callable[[Told], None]:
        life = self._lives[number]

        def tell(done: Told) -> None:
            self._events.put((number, life, done))
            self.wake()

        return tell


class _Here:
    """The server at work."""

    def __init__(self, half: Half, tell: Callable[[Told], None]) -> None:
        self._half, self._tell = half, tell

    def give(self, task: Task) -> None:
        self._tell(self._half.do(task))

    def close(self) -> None:
        """Nothing to end."""


class Threaded:
    """A worker in a thread of this process, with a replica of its own: for tests and a laptop."""

    def __init__(self, half: Half, tell: Callable[[Told], None]) -> None:
        self._half, self._tell = half, tell
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="transom-worker", daemon=True)
        self._thread.start()

    def give(self, task: Task) -> None:
        self._tasks.put(task)

    def close(self) -> None:
        self._tasks.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                self._tell(self._half.do(task))
            except TransomError as error:
                self._tell(error)
                return


def mean_into(half: Half, states: Sequence[state.State], shares: Sequence[float]) -> None:
    """Make the half the mean of the states by their shares, which sum to 1: weights, moments and buffers of
    floats; counts are those of the state with the most steps."""
    most = max(states, key=lambda one: one.steps)
    learner = half.learner
    named = [(share, one) for share, one in zip(shares, states, strict=True) if share]
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(sum_of([share * one.weights[name] for share, one in named]))
            kept = {"step": most.moments["step"][name].clone()}
            for kind in ("exp_avg", "exp_avg_sq"):
                mean = sum_of([share * one.moments[kind][name] for share, one in named])
                kept[kind] = mean.to(parameter.device)
            learner.optimiser.state[parameter] = kept
        for name, buffer in learner.buffers.items():
            if buffer.is_floating_point():
                buffer.copy_(sum_of([share * one.buffers[name] for share, one in named]))
            else:
                buffer.copy_(most.buffers[name])
    learner.steps = most.steps
    half.forget()


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """In the order given, so that it has the same bits each time."""
    total = tensors[0].clone()
    for one in tensors[1:]:
        total += one
    return total


def _state_task(half: Half) -> Task:
    return Task("put", tensors={STATE: torch.frombuffer(bytearray(half.saved()), dtype=torch.uint8)})
