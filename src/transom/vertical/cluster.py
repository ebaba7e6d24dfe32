"""A worker as an actor of a Ray cluster: for a party whose workers need more machines than one.

It gets the same frames as a worker in a process, and gives the same. It ends with its party, and one that
dies is replaced like any other.
Threat model: none; the cluster's machines are the party's own, and so must be what lies between them: rows
and weights go over Ray's connections, which are not encrypted unless Ray is told to.
Does not protect: who can reach the cluster can run anything on it.
Source: own; Moritz et al. 2018 (Ray).
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable
from typing import Any

from transom.errors import MisconfiguredError, TransomError, extra
from transom.vertical.half import Half, Task
from transom.vertical.job import VerticalJob
from transom.vertical.pool import Told
from transom.vertical.worker import answered, begun, failed, first_head, read, task_head, told_of, write

with extra("cluster", "ray"):
    import ray

_ENDING_S = 5.0
_JOINING = threading.Lock()


class Actor:
    """A worker in a cluster, which makes its replica of the job."""

    def __init__(self, job: VerticalJob, features: int, tell: Callable[[Told], None], *, local: bool) -> None:
        _join(job.train.cluster)
        self._tell, self._closed = tell, False
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        hired = ray.remote(num_cpus=1, max_restarts=0)(_Served)
        self._actor = hired.remote(first_head(job, features, local=local))
        self._thread = threading.Thread(target=self._listen, name="transom-worker", daemon=True)
        self._thread.start()

    def give(self, task: Task) -> None:
        frame = io.BytesIO()
        write(frame, task_head(task), task.tensors)
        self._answers.put(self._actor.do.remote(frame.getvalue()))

    def close(self) -> None:
        """End it, at once: what it has learnt and not told is lost."""
        self._closed = True
        ray.kill(self._actor)
        self._answers.put(None)
        self._thread.join(_ENDING_S)

    def _listen(self) -> None:
        while (answer := self._answers.get()) is not None:
            try:
                frame = read(io.BytesIO(ray.get(answer)))
            except ray.exceptions.RayError:  # also the calls after this one come to nothing
                if not self._closed:
                    self._tell(None)
                return
            if frame is not None:
                self._tell(told_of(*frame))


class _Served:
    """The replica, where the cluster has put it; all that crosses is bytes."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._half: Half | None = None

    def do(self, data: bytes) -> bytes:
        """What came of a task, or why nothing does any more."""
        frame, answer = read(io.BytesIO(data)), io.BytesIO()
        try:
            self._half = self._half or begun(self._head)
            if frame is not None:
                write(answer, *answered(self._half, *frame))
        except TransomError as error:
            write(answer, failed(error), {})
        return answer.getvalue()


def _join(address: str) -> None:
    """Be a driver of the cluster, if this process is not. Raises MisconfiguredError."""
    with _JOINING:  # both parties of a simulation may come at once
        if ray.is_initialized():
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            what = type(error).__name__
            raise MisconfiguredError(
                f"train.cluster: no Ray cluster at {address!r} ({what}); start one: ray start --head"
            ) from None
