"""The parts of a vertical model: a bottom for each party's columns, and the top with the loss.

Columns are standardised by mean and deviation of the rows of training, and so is what a regression predicts;
both are buffers of the module, saved and used with it.
Threat model: that of the room. Does not protect: weights tell of the rows that they were trained on.
Source: Liu et al., arXiv 2510.12494, section 5 (bottoms and tops). Shapes: B rows of a batch, N rows, F
columns, W width of an embedding, O outputs (classes, or 1).
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
from contextlib import AbstractContextManager

import numpy as np

from transom.checkpoint.seeded import seeded as seeded_by
from transom.errors import MisconfiguredError, extra
from transom.vertical.job import Net, Task, VerticalJob
from transom.vertical.part import Part

with extra("link", "torch"):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

_CHUNK_CELLS = 2**19  # of a piece that is summed at once


class Bottom(nn.Module):
    """Rows [B, F] as a party has them to embeddings [B, W]."""

    mean_F: Tensor
    deviation_F: Tensor

    def __init__(self, net: nn.Module, features: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean_F", torch.zeros(features))
        self.register_buffer("deviation_F", torch.ones(features))

    def forward(self, x_BF: Tensor) -> Tensor:
        embedding_BW: Tensor = self.net((x_BF - self.mean_F) / self.deviation_F)
        return embedding_BW


class Top(nn.Module):
    """Embeddings of all parties [B, W or 2W] to outputs [B, O]: logits, a standardised target, or the
    logarithm of a count."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, task: Task) -> None:
        super().__init__()
        self.net, self.task = net, task
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def forward(self, embedding_BW: Tensor) -> Tensor:
        outputs_BO: Tensor = self.net(embedding_BW)
        return outputs_BO

    def losses(self, outputs_BO: Tensor, labels_B: Tensor) -> Tensor:
        """Of each row [B]: binary and multiclass cross-entropy, half the squared error of the standardised
        target, Poisson deviance but for what no model changes."""
        if self.task == "multiclass":
            return functional.cross_entropy(outputs_BO, labels_B, reduction="none")
        output_B, target_B = outputs_BO[:, 0], labels_B.to(outputs_BO.dtype)
        if self.task == "binary":
            return functional.binary_cross_entropy_with_logits(output_B, target_B, reduction="none")
        if self.task == "counts":
            return functional.poisson_nll_loss(output_B, target_B, log_input=True, reduction="none")
        return (output_B - (target_B - self.mean) / self.deviation).square() / 2

    def scores(self, outputs_BO: Tensor) -> Tensor:
        """What is told of a row: the probability of the second class [B], of each class [B, O], the target
        in its own unit or the expected count [B]."""
        if self.task == "multiclass":
            return outputs_BO.softmax(1)
        output_B = outputs_BO[:, 0]
        if self.task == "binary":
            return output_B.sigmoid()
        return output_B.exp() if self.task == "counts" else output_B * self.deviation + self.mean


def make_bottom(job: VerticalJob, features: int) -> Bottom:
    """A party's bottom, with weights of the job's seed and the party's role; not yet standardised."""
    with seeded(job.train.seed, job.role, "bottom"):
        return Bottom(make_net(job.bottom, features, job.width, "bottom"), features).to(job.device)


def make_top(job: VerticalJob, *, own_features: bool) -> Top:
    """The label party's top, for its partner's embedding and, with features, its own."""
    outputs = len(job.classes) if job.task == "multiclass" else 1
    with seeded(job.train.seed, job.role, "top"):
        inputs = job.width * (2 if own_features else 1)
        return Top(make_net(job.top, inputs, outputs, "top"), job.task).to(job.device)


def make_net(net: Net, inputs: int, outputs: int, what: str) -> nn.Module:
    """The module of a setting. Raises MisconfiguredError for one that gives other numbers."""
    if not net.module:
        widths = (inputs, *net.hidden)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        last = [nn.Linear(widths[-1], outputs), *([nn.Tanh()] if net.bounded else [])]
        return nn.Sequential(*layers, *last)
    module = _called(net.module, inputs, outputs, what)
    module = nn.Sequential(module, nn.Tanh()) if net.bounded else module
    module.eval()
    with torch.no_grad():
        found = tuple(module(torch.zeros(2, inputs)).shape)
    module.train()
    if found != (2, outputs):
        raise MisconfiguredError(
            f"{what}.module: {net.module} gives {list(found)} for 2 rows of {inputs} numbers, and "
            f"{[2, outputs]} are wanted"
        )
    return module


def _called(place: str, inputs: int, outputs: int, what: str) -> nn.Module:
    package, _, name = place.partition(":")
    try:
        made = getattr(importlib.import_module(package), name)(inputs, outputs)
    except (ImportError, AttributeError, TypeError) as error:
        raise MisconfiguredError(
            f"{what}.module: {place} cannot be called with {inputs} inputs and {outputs} outputs "
            f"({type(error).__name__}: {error})"
        ) from None
    if not isinstance(made, nn.Module):
        raise MisconfiguredError(f"{what}.module: {place} gives {type(made).__name__}, no torch.nn.Module")
    return made


def standardise(bottom: Bottom, part: Part) -> None:
    """Take mean and deviation of the rows of training over, summed as float64 in pieces. A column that is
    constant in them keeps its deviation of 1."""
    count, size = len(part.train), max(1, _CHUNK_CELLS // part.width)
    pieces = [part.train[start : start + size] for start in range(0, count, size)]
    mean_F = sum(part.rows(piece).sum(0, dtype=np.float64) for piece in pieces) / count
    squares_F = sum(((part.rows(piece) - mean_F) ** 2).sum(0) for piece in pieces) / count
    deviation_F = np.sqrt(squares_F)
    with torch.no_grad():
        bottom.mean_F.copy_(torch.from_numpy(np.asarray(mean_F)))
        bottom.deviation_F.copy_(torch.from_numpy(np.where(deviation_F > 0, deviation_F, 1.0)))


def centre(top: Top, part: Part) -> None:
    """Take a regression's mean and deviation of the rows of training over; of other tasks nothing."""
    if top.task != "regression":
        return
    chosen = part.labels(part.train).astype(np.float64)
    with torch.no_grad():
        top.mean.fill_(float(chosen.mean()))
        top.deviation.fill_(float(chosen.std()) or 1.0)


def seeded(*names: object, device: str = "cpu") -> AbstractContextManager[None]:
    """Torch's randomness within the block is that of these names; see `transom.checkpoint.seeded`."""
    seed = int.from_bytes(hashlib.sha256("/".join(map(str, names)).encode()).digest()[:7], "little")
    return seeded_by(seed, device)
