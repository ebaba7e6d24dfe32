"""What one worker of a party holds and does: its replica of the bottom, and of the top where the labels are.

A task comes with the rows that it needs, so a worker keeps no data. A gradient that comes back meets the
weights that its embedding was made with, whatever was learnt in between; a worker that has not made the
embedding makes it again, with the weights of now.
Threat model: that of the room: gradients of the partner that are not finite are refused.
Does not protect: against gradients that are finite and wrong.
Source: own. Shapes: B rows of a batch, F columns, W width of an embedding, O outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from transom.errors import LinkRefusedError, MisconfiguredError
from transom.link import state
from transom.link.learner import Learner, Schedule
from transom.vertical.job import VerticalJob
from transom.vertical.model import Bottom, Top, make_bottom, make_top, seeded

Kind = Literal["forward", "backward", "train", "get", "put"]
ROWS, EMBEDDING, GRADIENT, LABELS, STATE = "rows", "embedding", "gradient", "labels", "state"
_KEPT = 64  # embeddings of which the way back is kept, more than are ever under way


@dataclass(frozen=True)
class Task:
    """What a worker is to do with a unit of work: which one, its tensors, and the rows of a whole batch. More
    rows are a bundle of such batches, each a step, and fewer a share of one."""

    kind: Kind
    unit: int = -1
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    batch_rows: int = 0


@dataclass(frozen=True)
class Done:
    """What came of a task: tensors, its share of the mean loss of its rows, and processor time."""

    kind: Kind
    unit: int
    tensors: Mapping[str, Tensor]
    loss: float = 0.0
    busy_s: float = 0.0


class Half:
    """A party's modules. `local`: each batch changes the weights at once; else its gradients are told, as
    tensors `of/NAME`, for a parameter server."""

    def __init__(self, job: VerticalJob, bottom: Bottom | None, top: Top | None, *, local: bool) -> None:
        self.job, self.bottom, self.top, self._local = job, bottom, top, local
        parts = nn.ModuleDict({"bottom": bottom} if bottom is not None else {})
        if top is not None:
            parts["top"] = top
        rates = Schedule(job.train.learning_rate, 0, 0, decays=False)
        self.learner = Learner(
            dict(parts.named_parameters()), rates, job.train.weight_decay, dict(parts.named_buffers())
        )
        self._own = dict(bottom.named_parameters()) if bottom is not None else {}
        self._tied = len(self._own) < len(_all_parameters(bottom))
        self._under_way: dict[int, tuple[list[Tensor], dict[str, Tensor]]] = {}
        self.forget()

    def do(self, task: Task) -> Done:
        """Raises LinkRefusedError for a gradient, MisconfiguredError for a loss that is not finite."""
        begun_s = time.thread_time()
        loss, found = getattr(self, f"_{task.kind}")(task)
        return Done(task.kind, task.unit, found, loss, time.thread_time() - begun_s)

    # Tasks

    def _forward(self, task: Task) -> tuple[float, dict[str, Tensor]]:
        """The embedding of rows [B, F]."""
        return 0.0, {EMBEDDING: torch.cat([one.detach() for one in self._embedded(task)])}

    def _backward(self, task: Task) -> tuple[float, dict[str, Tensor]]:
        """Learn from the gradient [B, W] of an embedding that was made of these rows."""
        if task.unit not in self._under_way:
            self._embedded(task)
        embeddings, weights = self._under_way.pop(task.unit)
        gradients = torch.split(task.tensors[GRADIENT], task.batch_rows)
        learnt: dict[str, Tensor] = {}
        for embedding_BW, gradient_BW in zip(embeddings, gradients, strict=True):
            given_BW = gradient_BW.to(embedding_BW)
            found = torch.autograd.grad(embedding_BW, list(weights.values()), given_BW, allow_unused=True)
            for name, gradient in zip(weights, found, strict=True):
                parameter = self.learner.parameters[f"bottom.{name}"]
                parameter.grad = torch.zeros_like(parameter) if gradient is None else gradient
            learnt = self._learnt()
        return 0.0, learnt

    def _train(self, task: Task) -> tuple[float, dict[str, Tensor]]:
        """Learn from a partner's embedding [B, W] and own rows; its gradient [B, W]."""
        embedding_BW, labels_B, rows_BF = (task.tensors.get(name) for name in (EMBEDDING, LABELS, ROWS))
        if embedding_BW is None or labels_B is None:
            raise LinkRefusedError("a task lacks an embedding or labels")
        embeddings, labels = (torch.split(one, task.batch_rows) for one in (embedding_BW, labels_B))
        rows = [None] * len(embeddings) if rows_BF is None else torch.split(rows_BF, task.batch_rows)
        gradients, learnt, total = [], dict[str, Tensor](), 0.0
        with self._seeded(task.unit):
            self._set_mode(train=True)
            for one_BW, one_B, one_BF in zip(embeddings, labels, rows, strict=True):
                of = task.batch_rows if len(embeddings) == 1 else len(one_B)
                loss, gradient_BW = self._graded(one_BW, one_B, one_BF, of)
                gradients.append(gradient_BW)
                learnt, total = self._learnt(), total + loss * of
        of = task.batch_rows if len(embeddings) == 1 else len(labels_B)
        return total / of, {GRADIENT: torch.cat(gradients)} | learnt

    def _graded(
        self, embedding_BW: Tensor, labels_B: Tensor, rows_BF: Tensor | None, of: int
    ) -> tuple[float, Tensor]:
        """The rows' share of the mean loss of so many, and its gradient by the embedding [B, W]; those by
        the weights are left in them."""
        embedding_BW = embedding_BW.to(self.job.device).detach().requires_grad_()
        outputs_BO = self._joined(rows_BF, embedding_BW)
        mean = self._top.losses(outputs_BO, labels_B.to(self.job.device)).sum() / of
        loss = float(mean.detach())
        if not math.isfinite(loss):
            raise MisconfiguredError(
                f"the loss of a batch is {loss} after {self.learner.steps} steps: the model diverges; "
                "lower the learning rate of both parties, or clip embeddings"
            )
        torch.autograd.backward(mean)
        if embedding_BW.grad is None:
            raise MisconfiguredError("the top takes no gradient back to the embedding; nothing can be learnt")
        return loss, embedding_BW.grad

    def _get(self, task: Task) -> tuple[float, dict[str, Tensor]]:
        """All that this replica has learnt."""
        return 0.0, {STATE: torch.frombuffer(bytearray(self.saved()), dtype=torch.uint8)}

    def _put(self, task: Task) -> tuple[float, dict[str, Tensor]]:
        """Become the replica whose state this is."""
        self.restore(task.tensors[STATE].numpy().tobytes())
        return 0.0, {}

    # Use

    def embed(self, rows_BF: Tensor) -> Tensor:
        """Embeddings [B, W] of rows that nothing is learnt from."""
        with torch.no_grad():
            self._set_mode(train=False)
            return self._own_bottom(rows_BF.to(self.job.device))

    def outputs(self, rows_BF: Tensor | None, embedding_BW: Tensor) -> Tensor:
        """Outputs [B, O] for them."""
        with torch.no_grad():
            self._set_mode(train=False)
            return self._joined(rows_BF, embedding_BW.to(self.job.device))

    def saved(self) -> bytes:
        """Weights, buffers and moments."""
        return state.save(self.learner, {})

    def restore(self, data: bytes) -> None:
        """The reverse of `saved`. Raises CheckpointError."""
        state.restore(self.learner, data, {})
        self.forget()

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Learn from gradients by parameter name, as a parameter server does."""
        for name, gradient in gradients.items():
            self.learner.parameters[name].grad = gradient.to(self.learner.parameters[name])
        self.learner.step()
        self.forget()

    def forget(self) -> None:
        """The weights have changed: the next embedding is of a new copy."""
        self._weights: dict[str, Tensor] | None = None

    # Within

    def _embedded(self, task: Task) -> list[Tensor]:
        """The embedding of each batch with its way back, through a copy of the weights that later steps do
        not change."""
        if self._weights is None:
            self._weights = {name: one.detach().clone().requires_grad_() for name, one in self._own.items()}
        weights, bottom = self._weights, self._require_bottom()
        with self._seeded(task.unit):
            self._set_mode(train=True)
            embeddings: list[Tensor] = [
                functional_call(bottom, weights, (one_BF.to(self.job.device),), tie_weights=self._tied)
                for one_BF in torch.split(task.tensors[ROWS], task.batch_rows)
            ]
        self._under_way[task.unit] = embeddings, weights
        if len(self._under_way) > _KEPT:
            del self._under_way[next(iter(self._under_way))]
        return embeddings

    def _learnt(self) -> dict[str, Tensor]:
        """Apply the gradients, or give them away. What had no part in the loss has a gradient of zero."""
        for one in self.learner.parameters.values():
            one.grad = torch.zeros_like(one) if one.grad is None else one.grad
        if self._local:
            self.learner.step()
            self.forget()
            return {}
        named = self.learner.parameters.items()
        given = {f"of/{name}": one.grad for name, one in named if one.grad is not None}  # all have one
        self.learner.optimiser.zero_grad(set_to_none=True)
        return given

    def _joined(self, rows_BF: Tensor | None, embedding_BW: Tensor) -> Tensor:
        if rows_BF is not None:
            embedding_BW = torch.cat([self._own_bottom(rows_BF.to(self.job.device)), embedding_BW], 1)
        outputs_BO: Tensor = self._top(embedding_BW)
        return outputs_BO

    def _own_bottom(self, rows_BF: Tensor) -> Tensor:
        embedding_BW: Tensor = self._require_bottom()(rows_BF)
        return embedding_BW

    def _require_bottom(self) -> Bottom:
        if self.bottom is None:
            raise LinkRefusedError("this party has no columns of its own, and cannot embed any")
        return self.bottom

    @property
    def _top(self) -> Top:
        if self.top is None:
            raise LinkRefusedError("this party has no labels, and cannot grade an embedding")
        return self.top

    def _set_mode(self, *, train: bool) -> None:
        for part in (self.bottom, self.top):
            if part is not None and part.training != train:
                part.train(train)

    def _seeded(self, unit: int) -> AbstractContextManager[None]:
        """Dropout and the like are those of the unit, also when it is computed again."""
        return seeded(self.job.train.seed, self.job.role, unit, device=self.job.device)


def _all_parameters(bottom: Bottom | None) -> list[str]:
    """Names of weights, of each of those that are one under several names, too."""
    return [] if bottom is None else [name for name, _ in bottom.named_parameters(remove_duplicate=False)]


def make_half(job: VerticalJob, features: int, *, local: bool) -> Half:
    """The replica that a job begins with; `features` are the party's columns, 0 for a label-only party."""
    bottom = make_bottom(job, features) if features else None
    top = make_top(job, own_features=bool(features)) if job.role == "label" else None
    return Half(job, bottom, top, local=local)
