"""A worker as a process of its own: `python -m transom.vertical.worker` reads tasks and writes what came.

A frame is two lengths, a head as JSON and tensors as safetensors. The first one brings the job. The process
ends with its input, so that none outlives its party.
Threat model: none; both ends are one party's. Does not protect: a worker has the party's rows of its tasks.
Source: own.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from transom import errors
from transom.config import from_plain, load_json, to_plain
from transom.vertical.half import Done, Half, Task, make_half
from transom.vertical.job import VerticalJob
from transom.vertical.pool import Told

Frame = tuple[Mapping[str, Any], Mapping[str, Tensor]]  # a head and tensors
_LENGTH_BYTES = 8
_ENDING_S = 5.0


class Child:
    """A worker in a process of its own with so many threads, which makes its replica of the job."""

    def __init__(
        self, job: VerticalJob, features: int, tell: Callable[[Told], None], *, local: bool, threads: int = 1
    ) -> None:
        self._tell, self._closed = tell, False
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "transom.vertical.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )  # fmt: skip
        self._tasks: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._tasks.put((first_head(job, features, local=local, threads=threads), {}))
        self._threads = [
            threading.Thread(target=work, name="transom-worker", daemon=True)
            for work in (self._listen, self._speak)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def give(self, task: Task) -> None:
        self._tasks.put((task_head(task), task.tensors))

    def close(self) -> None:
        """End it, at once: what it has learnt and not told is lost."""
        self._closed = True
        self._process.kill()
        self._process.wait(_ENDING_S)
        self._tasks.put(None)
        for thread in self._threads:
            thread.join(_ENDING_S)
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _open(stream).close()

    def _speak(self) -> None:
        """A worker that is stuck reads nothing, and holds up this thread alone."""
        with contextlib.suppress(BrokenPipeError):  # its death is told by what listens
            while (frame := self._tasks.get()) is not None:
                write(_open(self._process.stdin), *frame)

    def _listen(self) -> None:
        output = _open(self._process.stdout)
        while (frame := read(output)) is not None:
            self._tell(told_of(*frame))
        if not self._closed:
            self._tell(None)


def write(stream: IO[bytes], head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """One frame."""
    text = json.dumps(head).encode()
    body = save({name: one.detach().cpu().contiguous() for name, one in tensors.items()}) if tensors else b""
    stream.write(len(text).to_bytes(_LENGTH_BYTES, "little") + len(body).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(text)
    stream.write(body)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The next frame; None where the stream ends, also within one."""
    try:
        lengths = stream.read(2 * _LENGTH_BYTES)
        sizes = [int.from_bytes(one, "little") for one in (lengths[:_LENGTH_BYTES], lengths[_LENGTH_BYTES:])]
        text, body = (stream.read(size) for size in sizes)
    except (OSError, ValueError):
        return None
    if len(lengths) < 2 * _LENGTH_BYTES or [len(text), len(body)] != sizes:
        return None
    return load_json(text), load(body) if body else {}


def first_head(job: VerticalJob, features: int, *, local: bool, threads: int = 1) -> dict[str, Any]:
    """Of the frame that a worker begins with."""
    return {"job": to_plain(job), "features": features, "local": local, "threads": threads}


def task_head(task: Task) -> dict[str, Any]:
    """Of a task's frame."""
    return {"kind": task.kind, "unit": task.unit, "batch_rows": task.batch_rows}


def told_of(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Done | errors.TransomError:
    """What an answer says."""
    if "error" not in head:
        return Done(head["kind"], head["unit"], tensors, head["loss"], head["busy_s"])
    known = {one.__name__: one for one in (errors.MisconfiguredError, errors.LinkRefusedError)}
    return known.get(head["error"], errors.LinkError)(head["message"])


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Do tasks until the source ends, or one cannot be done."""
    first = read(source)
    try:
        half = None if first is None else begun(first[0])
        while half is not None and (frame := read(source)) is not None:
            write(sink, *answered(half, *frame))
    except errors.TransomError as error:
        write(sink, failed(error), {})


def begun(head: Mapping[str, Any]) -> Half:
    """A worker's replica. Raises MisconfiguredError."""
    torch.set_num_threads(head["threads"])
    job = from_plain(VerticalJob, head["job"], "the job of a worker", folder=Path())
    return make_half(job, head["features"], local=head["local"])


def answered(half: Half, head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Frame:
    """What came of a task. Raises as `Half.do`."""
    done = half.do(Task(head["kind"], head["unit"], tensors, head["batch_rows"]))
    told = {"kind": done.kind, "unit": done.unit, "loss": done.loss, "busy_s": done.busy_s}
    return told, done.tensors


def failed(error: errors.TransomError) -> dict[str, str]:
    """The head of an answer after which there are no more."""
    return {"error": type(error).__name__, "message": str(error)}


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise errors.LinkError("a worker has no pipes")
    return stream


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a module prints goes to the log, not into the frames
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, output)
