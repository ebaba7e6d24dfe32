"""The label party's side of a vertical training: it grades embeddings as they come, and sends gradients back.

Embeddings that came wait for a worker, at most so many; then the oldest is dropped, and its sender told.
Threat model: a partner that sends units that are none, or of other shapes; refused.
Does not protect: gradients tell of the labels, unless the job's noise is added to them.
Source: Liu et al., arXiv 2510.12494, sections 4.1 and 4.2. Shapes: B rows of a unit, W width, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transom.errors import LinkRefusedError, MisconfiguredError
from transom.link.learner import is_over
from transom.link.message import Step
from transom.link.session import Received
from transom.link.talk import Talk
from transom.link.told import Listener
from transom.link.tunnel import Tunnel
from transom.vertical.half import EMBEDDING, GRADIENT, LABELS, ROWS, Done, Task
from transom.vertical.job import VerticalJob
from transom.vertical.messages import (
    DROP,
    DROPPED,
    END,
    EVALUATE,
    GO,
    OVER,
    PREDICT,
    TRAIN,
    message,
    rows_of,
)  # fmt: skip
from transom.vertical.metrics import metrics, score_interval
from transom.vertical.part import Part
from transom.vertical.pool import Pool
from transom.vertical.schedule import Way
from transom.vertical.side import Point, Progress, Side


class LabelSide(Side):
    """The label party at work."""

    def __init__(
        self, job: VerticalJob, part: Part, pool: Pool, way: Way, about: Mapping[str, str], tell: Listener,
        tunnel: Tunnel,
    ) -> None:  # fmt: skip
        super().__init__(job, part, pool, way, about, tell, tunnel)
        self._waiting: dict[int, tuple[int, Tensor]] = {}  # by unit: attempt and embedding, the oldest first
        self._at_work: dict[int, int] = {}
        self._rowless: list[str] = []  # replies of this process
        self._graded: dict[int, Tensor] = {}  # embeddings at work, where a tunnel learns from them
        self._outputs: list[Tensor] = []
        self._losses: list[float] = []  # of a batch's shares so far
        self._next_average = 1
        self._most_here = way.ahead

    @property
    def partner_has(self) -> bool:
        """Unless all that may be under way is here; in `avfl` the partner alone knows how much that is."""
        here = len(self._waiting.keys() | self._at_work.keys())
        self._most_here = max(self._most_here, here)
        return here < self._most_here

    def run(self, talk: Talk) -> None:
        """Answer until the feature party ends it. Raises LinkError."""
        self.pool.wake = talk.wake
        self.pool.start()
        self._excuse(talk)
        while not self.now.over:
            if self.due:
                self.keep(talk)
            elif (done := self.pool.take()) is not None:
                self.finished(talk, done)
            elif not self._grade():
                received = self.wait(talk, () if self._is_full else (TRAIN, DROP, EVALUATE, END))
                if received is not None:
                    self._arrived(talk, received)
        self.told("done")

    @property
    def _is_full(self) -> bool:
        """In lock-step: the whole batch is here. After a restart the next ones may be at the door, for all
        comes at once that came since the checkpoint."""
        here = len(self._waiting) + len(self._at_work) + len(self._gathered)
        return self.way.lockstep and here >= self.way.shares

    def _arrived(self, talk: Talk, received: Received) -> None:
        step = received.header.step
        if step.direction != "forward":
            raise LinkRefusedError(f"the partner sent {step}, which goes the other way")
        if step.topic == END:
            self.now = replace(self.now, over=True)
            self.keep(talk)
        elif step.topic == EVALUATE:
            self._evaluate(talk, step, received)
        else:
            unit = self.units.unit(step)
            if unit < 0:
                raise LinkRefusedError(f"the partner sent {step}, and there is no such unit")
            if step.topic == DROP:
                if self._waiting.get(unit, (-1,))[0] <= step.attempt:
                    self._waiting.pop(unit, None)
            else:
                self._keep(talk, unit, step, received)

    def _keep(self, talk: Talk, unit: int, step: Step, received: Received) -> None:
        """An embedding waits; where too many do, the oldest does no longer."""
        embedding_BW = rows_of(received.tensors, len(self.unit_rows(unit)), "an embedding")
        if self.way.lockstep and self.units.whole(unit) != self.units.whole(self.done.watermark):
            raise LinkRefusedError(f"the partner sent {step} out of its turn; it is of another version")
        self._waiting.pop(unit, None)
        self._waiting[unit] = step.attempt, embedding_BW
        if not self.way.lockstep and len(self._waiting) > self.job.train.embeddings:
            oldest = next(iter(self._waiting))
            attempt, _ = self._waiting.pop(oldest)
            self._reply(talk, self.units.step(oldest, TRAIN, attempt), None, DROPPED)
            dropped = {**self.now.dropped, "dropped": self.now.dropped.get("dropped", 0) + 1}
            self.now = replace(self.now, dropped=dropped)

    def _grade(self) -> bool:
        """Give a worker the embedding that came first and that one is free for."""
        for unit, (attempt, embedding_BW) in self._waiting.items():
            if unit in self._at_work:
                continue
            numbers = self.unit_rows(unit)
            tensors = {EMBEDDING: embedding_BW, LABELS: torch.from_numpy(self.part.labels(numbers))}
            rows_BF = self.tensor(numbers)
            tensors |= {} if rows_BF is None else {ROWS: rows_BF}
            self._at_work[unit] = attempt
            if self.job.noise.learns:
                self._graded[unit] = embedding_BW
            task = Task("train", unit, tensors, self.units.batch_size(unit))
            if self.pool.give(task, self.worker_of(unit)) is not None:
                del self._waiting[unit]
                return True
            del self._at_work[unit]
        return False

    def finished(self, talk: Talk, done: Done) -> None:
        """A worker has learnt: the gradient of its embedding goes back."""
        step = self.units.step(done.unit, TRAIN, self._at_work.pop(done.unit))
        gradient_BW: Tensor | None = done.tensors[GRADIENT]
        if self.job.noise.kind == "none":  # as they are: a tunnel would only cost
            self.budget.spend(self.unit_rows(done.unit))
        else:
            gradient_BW = self._released(done, replace(step, direction="backward"))
        self._reply(talk, step, gradient_BW, OVER if gradient_BW is None else GO)
        size = self.units.whole_rows(done.unit)
        self.now = replace(
            self.now, loss_sum=self.now.loss_sum + done.loss * size,
            loss_count=self.now.loss_count + len(done.tensors[GRADIENT]),
        )  # fmt: skip
        if not self.way.gathers:
            self._stepped(talk, (done.unit,), done.loss)
            return
        self._losses.append(done.loss)
        if self.gather(done.unit, done.tensors):
            first = done.unit - done.unit % self.way.shares
            loss, self._losses = math.fsum(self._losses), []
            self._stepped(talk, range(first, first + self.way.shares), loss)

    def _stepped(self, talk: Talk, units: range | tuple[int, ...], loss: float) -> None:
        for unit in units:
            self.done.add(unit)
        steps = self.units.steps_of(units[0])
        self.now = replace(self.now, steps=self.now.steps + steps)
        self.told("step", {"loss": loss, "wait_s": self.wait_s, "busy_s": self.pool.busy_s})
        self.due = talk.stepped(steps)

    def _released(self, done: Done, step: Step) -> Tensor | None:
        """The gradient as it may leave; None once the budget is spent."""
        found_BW = self.release(done.tensors[GRADIENT], step)
        if found_BW is not None and self.job.noise.learns:
            self.tunnel.learn(step, self._graded.pop(done.unit))
        return found_BW

    def standing(self) -> Progress:
        """Embeddings that are here and not answered are lost with the process, and do not come again."""
        attempts = self._at_work | {unit: attempt for unit, (attempt, _) in self._waiting.items()}
        unanswered = {str(unit): attempt for unit, attempt in attempts.items()}
        return replace(self.now, unanswered=unanswered, rowless=(*self.now.rowless, *self._rowless))

    def _excuse(self, talk: Talk) -> None:
        """After a restart: tell which embeddings were lost. Of those that were answered since the checkpoint
        the answer is a step that was sent, and stays."""
        for unit, attempt in self.now.unanswered.items():
            self._reply(talk, self.units.step(int(unit), TRAIN, attempt), None, DROPPED)

    def _reply(self, talk: Talk, step: Step, rows_BW: Tensor | None, said: int) -> None:
        step = replace(step, direction="backward")
        if rows_BW is None and step.topic == TRAIN:
            self._rowless.append(str(step))
        talk.send(step, message(self.job.width, rows_BW, [said]))

    # Evaluation

    def _evaluate(self, talk: Talk, step: Step, received: Received) -> None:
        """Rows of an evaluation; with the last ones the epoch is evaluated."""
        if step.epoch > self.now.evaluated or step.batch >= len(self.spans):
            raise LinkRefusedError(f"the partner evaluates {step}, and {self.now.evaluated} epochs are")
        if step.epoch < self.now.evaluated:  # its answer went to a process that is no more
            self._reply(talk, step, None, self._verdict)
            return
        if step.batch == 0:
            self._outputs = []
            self._next_average = self.average(step.epoch + 1)
        if step.batch != len(self._outputs):
            self._reply(talk, step, None, DROPPED)  # the rows before it went to a process that is no more
            return
        numbers = self.test_rows(step.batch)
        embedding_BW = rows_of(received.tensors, len(numbers), "an evaluation")
        self._outputs.append(self.pool.half.outputs(self.tensor(numbers), embedding_BW).cpu())
        if len(self._outputs) < len(self.spans):
            self._reply(talk, step, None, GO)
            self.due = self.due or talk.is_full
            return
        self._point(step.epoch)
        answer = message(self.job.width, None, [self._verdict])
        self.keep(talk, (replace(step, direction="backward"), answer))
        self.told("evaluated", self.now.history[-1].metrics)

    @property
    def _verdict(self) -> int:
        """Of the last evaluation."""
        losses = [one.metrics["loss"] for one in self.now.history]
        return OVER if is_over(losses, self.job.train.patience) else GO

    def _point(self, epoch: int) -> None:
        now = self.now
        train_loss = now.loss_sum / now.loss_count if now.loss_count else None
        scores, within = self.scores(torch.cat(self._outputs)), None
        found = self.metrics(scores, self.part.test)
        if len(self.part.test):
            within = score_interval(self.job.task, scores, self.part.labels(self.part.test))
        else:
            found = {"loss": math.nan if train_loss is None else train_loss}
        point = Point(epoch, now.steps, train_loss, found, within)
        self._outputs = []
        self.now = replace(
            now, evaluated=epoch + 1, next_average=self._next_average, loss_sum=0.0, loss_count=0,
            history=(*now.history, point),
        )  # fmt: skip

    # Use

    def scores(self, outputs_RO: Tensor) -> NDArray[np.float64]:
        """What the task tells of rows; see `model.Top.scores`."""
        top = self.pool.half.top
        if top is None:
            raise MisconfiguredError("the label party has no top model")
        found: NDArray[np.float64] = top.scores(outputs_RO.to(self.job.device)).double().cpu().numpy()
        return found

    def metrics(self, scores: NDArray[np.float64], numbers: NDArray[np.int64]) -> dict[str, float]:
        """How well these scores tell the labels of rows; nothing of none."""
        return metrics(self.job.task, scores, self.part.labels(numbers)) if len(numbers) else {}

    def predict(self, talk: Talk, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        """The scores of rows by their number in the joined table, with the partner's help, who gives each row
        once, however often it is named here."""
        wanted, places = np.unique(np.asarray(numbers, dtype=np.int64), return_inverse=True)
        outputs = []
        for count, (start, end) in enumerate(self._pieces(len(wanted))):
            step = Step(0, count, "forward", topic=PREDICT)
            piece = wanted[start:end]
            talk.send(step, message(self.job.width, None, piece.tolist()))
            embedding_BW = rows_of(talk.answer(step), len(piece), "a prediction")
            outputs.append(self.pool.half.outputs(self.tensor(piece), embedding_BW).cpu())
            talk.commit(None)
        return self.scores(torch.cat(outputs))[places]

    def end(self, talk: Talk) -> None:
        """No more is asked."""
        talk.commit(None, (Step(0, 0, "forward", topic=END), message(self.job.width)))

    def _pieces(self, count: int) -> list[tuple[int, int]]:
        size = max(self.job.train.batch_rows, 1024)
        return [(start, min(start + size, count)) for start in range(0, count, size)] or [(0, 0)]
