"""Shards on processes: one worker here, a pool on this machine, or Ray actors on several.

Every task runs on one thread wherever it runs, so the bytes do not depend on how many workers there are. A
pool starts a shard only when what it needs fits beside the running ones: peak memory is a matter of the
largest tensor, not of the number of workers.
Threat model: workers are the client's own; they get the secret over a pipe, or over Ray's connections, which
must be the client's too (Ray does not encrypt unless told to).
Does not protect: against whoever can read the memory of a worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import read_safetensors_head
from transom.checkpoint.threads import one_thread
from transom.errors import MisconfiguredError, extra
from transom.files import file_sha256, whole, write_file
from transom.obfuscation.keys import Settings, Space
from transom.obfuscation.memory import Shared, share
from transom.obfuscation.plan import run
from transom.obfuscation.shards import Entry, Shard, read_tensor, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

PROGRESS = "progress"  # the folder of those records
_PEAK_SHARE = 2.5  # of the largest tensor in float32; what idle workers keep must find room beside


@dataclass(frozen=True)
class Work:
    """What a worker needs to write any shard into `folder`, and the records of finished ones below it."""

    folder: Path
    entries: Mapping[str, Entry]
    config: Mapping[str, Any]
    settings: Settings
    kappas: Mapping[str, float]
    device: str
    secret: bytes = field(repr=False)


class Worker:
    """Writes shards. The matrices that all keys share are given, or made here."""

    def __init__(self, work: Work, bases: Mapping[str, Tensor] | None = None) -> None:
        self._work = work
        self._space = make_space(work.secret, work.config, work.settings, work.entries, bases)

    def write(self, shard: Shard) -> str:
        """Write a shard durably, then its record; returns the file's name. Raises OSError, TransomError."""
        names = [name for task in shard.tasks for name in task.outputs]
        with whole(self._work.folder / shard.file) as partial:
            with one_thread():
                write_safetensors(partial, names, self._tensors(shard))
            record = {"sha256": file_sha256(partial), "tensors": list(read_safetensors_head(partial)[0])}
        write_file(self._work.folder / PROGRESS / f"{shard.file}.json", json.dumps(record).encode())
        return shard.file

    def _tensors(self, shard: Shard) -> Iterator[tuple[str, Tensor]]:
        work = self._work
        for task in shard.tasks:
            sources = {name: read_tensor(work.entries[name]).to(work.device) for name in task.sources}
            made = run(task, sources, self._space, work.config, work.kappas)
            del sources
            for name in task.outputs:
                yield name, made.pop(name).cpu()
            give_back_memory()


def make_space(
    secret: bytes,
    config: Mapping[str, Any],
    settings: Settings,
    entries: Mapping[str, Entry],
    bases: Mapping[str, Tensor] | None = None,
) -> Space:
    """The keys' space, no wider than the products it is for: float64 only where a source tensor is."""
    import torch

    dtype = torch.float64 if any(entry.dtype == "F64" for entry in entries.values()) else torch.float32
    with one_thread():
        return Space(secret, int(config["hidden_size"]), settings, bases=bases, dtype=dtype)


def give_back_memory() -> None:
    """Return freed memory to the system now; glibc keeps pieces up to 32 MiB for itself."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def write_all(work: Work, shards: Sequence[Shard], workers: int, space: Space) -> Iterator[str]:
    """Write the shards on this machine, the most demanding first; yields each file's name as it is done.

    Workers read the space's matrices in shared memory, or make their own where the system has none.
    """
    ordered = sorted(shards, key=lambda shard: -shard.peak_bytes)
    if min(workers, len(ordered)) <= 1:
        worker = Worker(work, space.bases)
        yield from (worker.write(shard) for shard in ordered)
        return
    shared = share(space.bases)
    space.bases.clear()
    give_back_memory()
    context, given = get_context("spawn"), (work, shared)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=given)
    try:
        budget_bytes = int(_PEAK_SHARE * max(entry.size_fp32_bytes for entry in work.entries.values()))
        d = int(work.config["hidden_size"])
        keys_bytes = 2 * 4 * d * (d + 2 * work.settings.h)  # the key in use, and a result as large
        yield from _schedule(pool, ordered, workers, budget_bytes, keys_bytes)
    except BrokenProcessPool:
        raise MisconfiguredError(
            "a worker process died, perhaps for want of memory; take fewer --workers and go on with --resume"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        if shared is not None:
            shared.close()


def write_all_ray(work: Work, shards: Sequence[Shard], address: str) -> Iterator[str]:
    """Write the shards on a Ray cluster whose machines all see the source and the output folder.

    Raises MissingExtraError, MisconfiguredError (no cluster at `address`).
    """
    with extra("cluster", "ray"):
        import ray
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = type(error).__name__
        raise MisconfiguredError(f"no Ray cluster at {address!r} ({what}); start one there") from None
    try:
        count = max(1, min(len(shards), int(ray.cluster_resources().get("CPU", 1))))
        actors = [ray.remote(num_cpus=1)(Worker).remote(work) for _ in range(count)]
        pool = ray.util.ActorPool(actors)
        yield from pool.map_unordered(lambda actor, shard: actor.write.remote(shard), shards)
    finally:
        ray.shutdown()


def _schedule(
    pool: ProcessPoolExecutor, shards: Sequence[Shard], workers: int, budget_bytes: int, each_bytes: int = 0
) -> Iterator[str]:
    """Start what fits into the budget beside the running, `each_bytes` more for every shard in flight."""
    waiting = list(shards)
    running: dict[Future[str], int] = {}
    while waiting or running:
        for shard in list(waiting):
            takes_bytes = shard.peak_bytes + each_bytes
            fits = not running or sum(running.values()) + takes_bytes <= budget_bytes
            if fits and len(running) < workers:
                running[pool.submit(_write, shard)] = takes_bytes
                waiting.remove(shard)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            del running[future]
            yield future.result()


_worker: Worker | None = None


def _start(work: Work, shared: Shared | None) -> None:
    """Runs in each new process: it must not outlive the run, even one that is killed."""
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = Worker(work, shared.tensors() if shared else None)


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write(shard: Shard) -> str:
    if _worker is None:
        raise MisconfiguredError("a worker process did not start")
    return _worker.write(shard)
