"""Whole runs of a split tuning on tiny models and few rows, and the centralised run that they must equal."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from transom.checkpoint.load import load
from transom.link.told import Told
from transom.split.job import Adapter, Data, SplitJob, Train
from transom.split.learner import schedule
from transom.split.metrics import Tally
from transom.split.rows import batches, pad_id_of, padded, read_rows

from .splits import Batch, Central, Split, make_job

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")
LABELS = ("bad", "so", "good")


def write_rows(path: Path, count: int, seed: int) -> Path:
    pick = random.Random(seed)
    lines = [
        f"{' '.join(pick.choices(WORDS, k=pick.randint(2, 9)))},{pick.choice(LABELS)}" for _ in range(count)
    ]
    path.write_text("\n".join(["text,label", *lines]) + "\n", "utf-8")
    return path


def run_job(
    model: Path, task: str, folder: Path, *, train: dict[str, Any] | None = None, **changes: Any
) -> SplitJob:
    """Two epochs of five steps, the last one of a smaller batch."""
    data = Data(write_rows(folder / "train.csv", 22, 1), write_rows(folder / "dev.csv", 13, 2), max_tokens=64)
    settings = {"epochs": 2, "batch_rows": 5, "learning_rate": 1e-2, "seed": 5, "checkpoint_every_steps": 3}
    job = make_job(
        model, task, adapter=Adapter(r=4, alpha=8), data=data, train=Train(**(settings | (train or {}))),
        out=folder / "out",
    )  # fmt: skip
    return replace(job, **changes)


@dataclass
class Heard:
    """What a run told."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, told: Told) -> None:
        if told.kind == "step":
            self.losses.append(told.found["loss"])
        elif told.kind == "evaluated":
            self.evaluations.append(dict(told.found))


def weights_of(job: SplitJob) -> dict[str, Tensor]:
    """What both parties left, by name."""
    found = {}
    for path in sorted(job.out.glob("*/state.safetensors")):
        tensors = load_file(path)
        found |= {
            name.removeprefix("weight/"): one for name, one in tensors.items() if name.startswith("weight/")
        }
    return found


def states_of(job: SplitJob) -> dict[str, bytes]:
    """The very bytes that both parties left."""
    return {path.parent.name: path.read_bytes() for path in sorted(job.out.glob("*/state.safetensors"))}


def central_run(job: SplitJob) -> tuple[Heard, Central]:
    """The same rows in the same order, without any split."""
    assert job.data is not None
    tokenizer = load(job.model).tokenizer
    assert tokenizer is not None
    rows, dev = (
        read_rows(job.data, which, job.labels, job.task, tokenizer) for which in ("train", "evaluate")
    )

    def batch(of: Any, numbers: tuple[int, ...]) -> Batch:
        return Batch(*padded(of, numbers, pad_id_of(tokenizer)))

    central, heard = Central(job, Split(job).weights, schedule(job.train, len(rows))), Heard()
    for epoch in range(job.train.epochs):
        for numbers in batches(rows, job.train, epoch):
            heard.losses.append(central.backward(batch(rows, numbers)))
            central.step()
        tally = Tally()
        for numbers in batches(dev, job.train):
            tally += central.evaluate(batch(dev, numbers))
        heard.evaluations.append(tally.metrics(job.task))
    return heard, central
