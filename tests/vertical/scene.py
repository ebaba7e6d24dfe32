"""Small joined tables, jobs on them, and the joint model that a synchronous run must equal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from transom.link.told import Told
from transom.vertical.half import make_half
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.metrics import metrics
from transom.vertical.model import centre, standardise
from transom.vertical.part import Part
from transom.vertical.schedule import Units

Jobs = tuple[VerticalJob, VerticalJob]
Parts = tuple[Part, Part]
TASKS = ("binary", "multiclass", "regression", "counts")


def make_parts(task: str, rows: int = 90, own: int = 3, partners: int = 4, seed: int = 0) -> Parts:
    """The label party's and the feature party's; the label depends on both parties' columns."""
    draw = np.random.default_rng(seed)
    x_NF = (draw.normal(size=(rows, own + partners)) * 3 + 5).astype(np.float32)
    z_N = ((x_NF - 5) @ draw.normal(size=own + partners)) / 4 + draw.normal(size=rows) / 4
    labels: dict[str, Any] = {
        "binary": (z_N > 0).astype(np.int64),
        "multiclass": np.digitize(z_N, [-1, 1]).astype(np.int64),
        "regression": (100 + 20 * z_N).astype(np.float32),
        "counts": draw.poisson(np.exp(z_N / 2)).astype(np.float32),
    }
    ids = tuple(f"person {number}" for number in range(rows))
    cut = rows * 7 // 10
    order = draw.permutation(rows)
    train, test = np.sort(order[:cut]), np.sort(order[cut:])

    def part(features_NF: Any, labels_N: Any) -> Part:
        names = tuple(f"column {number}" for number in range(features_NF.shape[1]))
        shuffled = np.random.default_rng(7).permutation(rows)  # the file's order
        table_NF = np.ascontiguousarray(features_NF[np.argsort(shuffled)])
        return Part(ids, table_NF, shuffled, labels_N, train, test, names, "hash", "digest")

    return part(x_NF[:, :own], labels[task]), part(x_NF[:, own:], None)


def make_jobs(
    task: str, out: Path, *, top: Net | None = None, bottom: Net | None = None, **train: Any
) -> Jobs:
    """Two epochs of batches of 16 rows, the last one smaller."""
    settings = {
        "schedule": "vfl", "epochs": 2, "batch_rows": 16, "learning_rate": 1e-2, "seed": 3,
        "checkpoint_every_steps": 3,
    }  # fmt: skip
    of = Train(**{**settings, **train})
    classes = {"binary": ("no", "yes"), "multiclass": ("low", "middle", "high")}.get(task, ())
    feature = VerticalJob(
        "test", task, Data(Path("feature.csv")), width=5, bottom=bottom or Net((6,)), train=of, out=out,  # type: ignore[arg-type]
    )  # fmt: skip
    data = Data(Path("label.csv"), label_column="y")
    return replace(feature, data=data, classes=classes, top=top or Net((6,))), feature


@dataclass
class Heard:
    """What a run told."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, told: Told) -> None:
        if told.kind == "step" and "loss" in told.found:
            self.losses.append(told.found["loss"])
        elif told.kind == "evaluated" and told.found:
            self.evaluations.append(dict(told.found))


class Joint:
    """The same modules on the joined table, in one piece, with one optimiser."""

    def __init__(self, jobs: Jobs, parts: Parts) -> None:
        self.jobs, self.parts = jobs, parts
        self.label, self.feature = (
            make_half(job, part.width, local=True) for job, part in zip(jobs, parts, strict=True)
        )
        for half, part in ((self.label, parts[0]), (self.feature, parts[1])):
            if half.bottom is not None:
                standardise(half.bottom, part)
        assert self.label.top is not None
        centre(self.label.top, parts[0])
        self.named = {
            f"{job.role}/{name}": one
            for job, half in zip(jobs, (self.label, self.feature), strict=True)
            for name, one in half.learner.parameters.items()
        }
        train = jobs[0].train
        self.optimiser = torch.optim.AdamW(
            self.named.values(), lr=train.learning_rate, weight_decay=train.weight_decay, foreach=True
        )

    def outputs(self, numbers: Any) -> Tensor:
        own, other = (torch.from_numpy(part.rows(numbers)) for part in self.parts)
        assert self.label.top is not None
        assert self.feature.bottom is not None
        joined = [self.feature.bottom(other)]
        if self.label.bottom is not None:
            joined = [self.label.bottom(own), *joined]
        outputs: Tensor = self.label.top(torch.cat(joined, 1))
        return outputs

    def labels(self, numbers: Any) -> Tensor:
        return torch.from_numpy(self.parts[0].labels(numbers))

    def scores(self, numbers: Any) -> Any:
        assert self.label.top is not None
        with torch.no_grad():
            return self.label.top.scores(self.outputs(numbers)).double().numpy()

    def scores_after(self, weights: dict[str, Tensor]) -> Any:
        """Of all rows, with what a run has left."""
        with torch.no_grad():
            for name, one in self.named.items():
                one.copy_(weights[name])
        return self.scores(np.arange(len(self.parts[0])))

    def run(self) -> Heard:
        """The batches of the job's units, whole."""
        heard, job, part = Heard(), self.jobs[0], self.parts[0]
        units = replace(Units.of(job, len(part.train)), shares=1)
        assert self.label.top is not None
        for unit in range(units.total):
            numbers = part.train[units.rows(unit)]
            loss = self.label.top.losses(
                self.outputs(numbers), torch.from_numpy(self.parts[0].labels(numbers))
            ).mean()
            self.optimiser.zero_grad()
            torch.autograd.backward(loss)
            self.optimiser.step()
            heard.losses.append(float(loss.detach()))
            if (unit + 1) % units.per_epoch == 0:
                heard.evaluations.append(metrics(job.task, self.scores(part.test), part.labels(part.test)))
        return heard

    def weights(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in self.named.items()}


def weights_of(jobs: Jobs) -> dict[str, Tensor]:
    """What both parties left, by role and name."""
    return {
        f"{job.role}/{name.removeprefix('weight/')}": one
        for job in jobs
        for name, one in load_file(job.folder / "state.safetensors").items()
        if name.startswith("weight/")
    }


def states_of(jobs: Jobs) -> dict[str, bytes]:
    """The very bytes that both parties left."""
    return {job.role: (job.folder / "state.safetensors").read_bytes() for job in jobs}


def at(jobs: Jobs, out: Path) -> Jobs:
    """The same jobs elsewhere."""
    return replace(jobs[0], out=out), replace(jobs[1], out=out)


class Dropping(torch.nn.Sequential):
    """A net with all that a module may have beside weights: chance, and buffers that change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            torch.nn.Linear(inputs, 7),
            torch.nn.BatchNorm1d(7),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(7, outputs),
        )


class Tied(torch.nn.Module):
    """A net that uses one weight under two names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(inputs, 7)
        self.second, self.again = torch.nn.Linear(7, 7), torch.nn.Linear(7, 7)
        self.again.weight = self.second.weight
        self.last = torch.nn.Linear(7, outputs)

    def forward(self, x_BF: Tensor) -> Tensor:
        last: Tensor = self.last(self.again(self.second(self.first(x_BF)).tanh()).tanh())
        return last
