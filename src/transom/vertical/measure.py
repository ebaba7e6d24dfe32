"""A party measures its own part of a training: real modules on its own rows, at several sizes of batches.

Models and rows are those of the job, and what is learnt is thrown away. Everything runs on one thread, as a
worker does.
Threat model: none; nothing of it leaves the party but what `transom.vertical.profile` makes of it.
Does not protect: other work on the machine makes the times longer, as it would in the training.
Source: own. Shapes: B rows of a batch, F columns, W width of an embedding.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from transom.checkpoint.threads import one_thread
from transom.link import state
from transom.link.mechanisms import Nothing
from transom.link.message import Step
from transom.link.tunnel import Tunnel
from transom.privacy.stream import SECRET_BYTES
from transom.vertical.half import EMBEDDING, GRADIENT, LABELS, ROWS, Half, Task, make_half
from transom.vertical.job import VerticalJob
from transom.vertical.messages import TRAIN
from transom.vertical.part import Part
from transom.vertical.pool import mean_into
from transom.vertical.profile import Measured, Profile

SIZES = tuple(4**power for power in range(2, 9))  # 16 to 65,536
_MOST_TIMES, _LEAST_TIMES = 200, 3
_SIZE_S = 0.6  # for a size, if the fewest times are done
_LONG_S = 1.0  # of a batch after which no larger one is tried
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def measure(
    job: VerticalJob, part: Part, advance: Callable[[float], None] = lambda share: None, *,
    cores: int, memory_bytes: float,
) -> Profile:  # fmt: skip
    """What a worker's work takes here; `advance` is told shares of the whole. `cores` and `memory_bytes` are
    what the party offers.

    Raises MisconfiguredError for a model that cannot be trained.
    """
    sizes, found = sizes_of(len(part.train)), []
    half, base_bytes = make_half(job, part.width, local=True), _resident_bytes()
    with one_thread():
        for done, rows in enumerate(sizes, 1):
            found.append(_size(job, part, half, rows, base_bytes))
            advance(done / len(sizes))
            if found[-1].forward_s + found[-1].backward_s > _LONG_S and len(found) > 1:
                break
        average_s, checkpoint_s, checkpoint_bytes = _server(half)
    return Profile(
        measured=tuple(found), average_s=average_s, checkpoint_s=checkpoint_s,
        checkpoint_bytes=checkpoint_bytes, checkpoint_steps=job.train.checkpoint_every_steps,
        cores=cores, memory_bytes=memory_bytes,
    )  # fmt: skip


def sizes_of(count: int) -> tuple[int, ...]:
    """Rows of the batches that are measured where so many are trained on, two sizes at least."""
    fitting = tuple(rows for rows in SIZES if rows < count)
    return (*fitting[:-1], count) if len(fitting) > 1 and 2 * fitting[-1] > count else (*fitting, count)


def _size(job: VerticalJob, part: Part, half: Half, rows: int, base_bytes: float) -> Measured:
    """The mean of several times, which is what many batches take, after a first one for memory alone."""
    once = _label if job.role == "label" else _feature
    tunnel = Tunnel(job.mechanism, Nothing(), secrets.token_bytes(SECRET_BYTES), "plan")
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_counting(kept), lambda tensor: tensor):
        once(part, half, tunnel, rows, 0)
    times: list[tuple[float, float]] = []
    begun_s = time.perf_counter()
    while len(times) < _MOST_TIMES:
        times.append(once(part, half, tunnel, rows, len(times) + 1))
        if len(times) >= _LEAST_TIMES and time.perf_counter() - begun_s > _SIZE_S:
            break
    forward_s, backward_s = (fmean(column) for column in zip(*times, strict=True))
    return Measured(rows, forward_s, backward_s, base_bytes + sum(kept.values()))


def _feature(part: Part, half: Half, tunnel: Tunnel, count: int, number: int) -> tuple[float, float]:
    """An embedding is made and released, and its gradient learnt from: seconds of both."""
    numbers = np.random.default_rng(number).permutation(part.train)[:count]
    begun_s = time.perf_counter()
    rows = {ROWS: torch.from_numpy(part.rows(numbers))}
    made = half.do(Task("forward", number, rows, count))
    tunnel.release(made.tensors[EMBEDDING].cpu(), Step(0, number, "forward", topic=TRAIN))
    between_s = time.perf_counter()
    gradient_BW = torch.full_like(made.tensors[EMBEDDING], 1e-6)
    half.do(Task("backward", number, {**rows, GRADIENT: gradient_BW}, count))
    _settle(half)
    return between_s - begun_s, time.perf_counter() - between_s


def _label(part: Part, half: Half, tunnel: Tunnel, count: int, number: int) -> tuple[float, float]:
    """A made-up embedding is graded: seconds of a forward pass alone, and of the rest."""
    numbers = np.random.default_rng(number).permutation(part.train)[:count]
    embedding_BW = torch.randn(count, half.job.width, generator=torch.Generator().manual_seed(number))
    begun_s = time.perf_counter()
    rows_BF = torch.from_numpy(part.rows(numbers)) if part.width else None
    half.outputs(rows_BF, embedding_BW).cpu()
    between_s = time.perf_counter()
    tensors = {EMBEDDING: embedding_BW, LABELS: torch.from_numpy(part.labels(numbers))}
    if part.width:
        tensors[ROWS] = torch.from_numpy(part.rows(numbers))
    half.do(Task("train", number, tensors, count)).tensors[GRADIENT].cpu()
    _settle(half)
    forward_s, whole_s = between_s - begun_s, time.perf_counter() - between_s
    return min(forward_s, whole_s / 2), max(whole_s - forward_s, whole_s / 2)


def _server(half: Half) -> tuple[float, float, int]:
    """Seconds for a worker's weights, to take them over and to give them back; seconds and bytes of a
    checkpoint of them."""
    averages, checkpoints, data = [], [], b""
    for _ in range(_LEAST_TIMES):
        begun_s = time.perf_counter()
        data = half.saved()
        checkpoints.append(time.perf_counter() - begun_s)
        mean_into(half, [state.read(data, {})], [1.0])
        half.saved()
        averages.append(time.perf_counter() - begun_s)
    return fmean(averages), fmean(checkpoints), len(data)


def _settle(half: Half) -> None:
    """Wait for a device that works on its own."""
    if half.job.device != "cpu":
        torch.cuda.synchronize(half.job.device)


def _counting(kept: dict[int, int]) -> Callable[[Tensor], Tensor]:
    """Notes what the way back keeps, each storage once."""

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note


def _resident_bytes() -> float:
    """What this process has in memory, as a worker would, with the table besides."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0.0
    return float(statm.read_text().split()[1]) * _PAGE_BYTES


def machine() -> tuple[int, float]:
    """Cores that this process may use, and the machine's memory in bytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, float(os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES)
