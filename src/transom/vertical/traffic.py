"""What the parties of a training sent each other of its rows, kept by one of them for an audit of its own.

    OUT/ROLE/traffic/000000.safetensors, ...    tensors [B, W] by step: forward embeddings, backward gradients

A file is written before each checkpoint, so that of a run that was killed and went on nothing is missing; of
what is sent once more after a kill, the last is read. A run that begins removes what an earlier one kept.
Beyond so many megabytes nothing more is kept. Values that a lossy wire rounds are kept as they were before.
Threat model: that of the party's folder. Does not protect: embeddings tell of features, gradients of labels;
whoever has the files can attack them as the partner can. Only their owner may read them.
Source: own. Shapes: B rows of a unit, W width, E epochs, R rows of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.errors import CheckpointError, LinkRefusedError, extra, system_errors
from transom.files import read_private, write_file
from transom.link.exchange import Agreement
from transom.link.message import Step
from transom.link.session import Received, Session
from transom.link.talk import Message, Talk, Tensors
from transom.privacy.stream import Direction
from transom.vertical.job import VerticalJob
from transom.vertical.messages import TRAIN
from transom.vertical.schedule import Units

with extra("link", "torch"):
    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

Rows = NDArray[np.float32]
_MB = 2**20


class Keeper:
    """Rows on their way to the files of a folder; `anew` removes those that are there."""

    def __init__(self, folder: Path, most_mb: int, *, anew: bool) -> None:
        self.folder = folder
        if anew:
            for path in files(folder):
                path.unlink()
        self._left_bytes = most_mb * _MB - sum(path.stat().st_size for path in files(folder))
        self._waiting: dict[str, Rows] = {}

    def add(self, step: Step, tensors: Tensors) -> None:
        """Keep the rows of a message of training, if it has any and there is room."""
        rows_BW = tensors["rows"].detach().to("cpu", torch.float32)
        if step.topic != TRAIN or not len(rows_BW) or rows_BW.nbytes > self._left_bytes:
            return
        self._waiting[str(step)] = rows_BW.numpy().copy()
        self._left_bytes -= rows_BW.nbytes

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            name = f"{len(files(self.folder)):06}.safetensors"
            write_file(self.folder / name, save(self._waiting), mode=0o600)
            self._waiting = {}


class KeptTalk(Talk):
    """A conversation that is kept."""

    def __init__(
        self, session: Session, agreement: Agreement, every_steps: int, at_once: int, keeper: Keeper
    ) -> None:
        super().__init__(session, agreement, every_steps, at_once)
        self._keeper = keeper

    def _counted(self, received: Received) -> Received:
        self._keeper.add(received.header.step, received.tensors)
        return super()._counted(received)

    def send(self, step: Step, tensors: Tensors) -> None:
        self._keeper.add(step, tensors)
        super().send(step, tensors)

    def commit(self, state: bytes | None, message: Message | None = None) -> None:
        self._keeper.flush()
        super().commit(state, message)


def folder_of(job: VerticalJob) -> Path:
    """Where a party keeps it."""
    return job.folder / "traffic"


def files(folder: Path) -> list[Path]:
    """Those of a folder, in their order."""
    return sorted(folder.glob("*.safetensors"))


def read(job: VerticalJob) -> dict[Step, Rows]:
    """What was kept, by step. Raises CheckpointError for a file that is damaged, and MisconfiguredError."""
    found: dict[Step, Rows] = {}
    for path in files(folder_of(job)):
        with system_errors(f"cannot read {path}", "restore it", CheckpointError):
            data = read_private(path)
        try:
            found |= {Step.read(name): _rows(one, job.width) for name, one in load(data).items()}
        except (SafetensorError, ValueError, LinkRefusedError):
            raise CheckpointError(f"{path} is damaged; restore it, or remove it and train again") from None
    return found


def views(
    job: VerticalJob, count: int, kept: Mapping[Step, Rows], direction: Direction
) -> tuple[Rows, NDArray[np.int64]]:
    """What went one way of `count` rows of training, by epoch [E, R, W], and the batch that each row was in
    [E, R]. Of a unit that was given out again, the last attempt; an epoch that was not kept whole is left
    out. Raises CheckpointError for units of another run."""
    units = Units.of(job, count)
    found: dict[int, tuple[Rows, NDArray[np.int64]]] = {}
    for step in sorted(one for one in kept if one.direction == direction):
        unit = units.unit(step)
        if unit < 0 or len(units.rows(unit)) != len(kept[step]):
            raise CheckpointError(
                f"{folder_of(job)} is of another run: {step} has {len(kept[step])} rows; train again"
            )
        if step.epoch not in found:
            found[step.epoch] = np.zeros((count, job.width), np.float32), np.full(count, -1)
        rows_RW, batch_R = found[step.epoch]
        rows_RW[units.rows(unit)] = kept[step]
        batch_R[units.rows(unit)] = units.batches(unit)
    whole = [pair for _, pair in sorted(found.items()) if (pair[1] >= 0).all()]
    if not whole:
        return np.zeros((0, count, job.width), np.float32), np.zeros((0, count), np.int64)
    return np.stack([rows_RW for rows_RW, _ in whole]), np.stack([batch_R for _, batch_R in whole])


def _rows(found: Any, width: int) -> Rows:
    """Raises ValueError for what is no rows of finite numbers."""
    if (
        found.ndim != 2
        or found.shape[1] != width
        or found.dtype != np.float32
        or not np.isfinite(found).all()
    ):
        raise ValueError("no rows of embeddings")
    rows_BW: Rows = found
    return rows_BW
