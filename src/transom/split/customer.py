"""The customer's side of a split tuning: it leads, batch by batch, and evaluates; the vendor answers.

With a frozen front the states of a batch do not depend on what was learnt, so those of the next step are on
their way before this one ends; the results are the same.
Threat model: a vendor that answers with other shapes or values that are none; refused.
Does not protect: the vendor sees order and number of rows, and what the noise leaves in their states.
Source: see the room. Shapes: B batch, T tokens, N real tokens of a batch, D model width, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from transom.checkpoint.tokenizer import TokenizerFiles
from transom.config import from_plain, to_plain
from transom.errors import CheckpointError, MisconfiguredError
from transom.link import state
from transom.link.learner import Schedule, is_over
from transom.link.message import Step
from transom.link.talk import Talk, pack, unpack
from transom.link.told import Kind, Listener, Told
from transom.split import checks, messages
from transom.split.denoised import Denoiser
from transom.split.gradients import Gradients
from transom.split.job import SplitJob
from transom.split.messages import packed, request, require_shape, tallies, unpacked
from transom.split.metrics import Tally, count_targets
from transom.split.parts import Customer, Head
from transom.split.privatise import Privatiser, Topic
from transom.split.room import AHEAD, require_room
from transom.split.rows import Rows, batches, encode, pad_id_of, padded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Point:
    """An evaluation: after how many steps, the loss of the training since the last one, and its metrics."""

    step: int
    train_loss: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Progress:
    """Where the run stands: steps done, and of the evaluation under way its batches and tally."""

    steps: int = 0
    training: Tally = field(default_factory=Tally)
    evaluated: int = 0
    evaluation: Tally = field(default_factory=Tally)
    history: tuple[Point, ...] = ()
    over: bool = False


@dataclass(frozen=True)
class Micro:
    """A micro-batch at the customer: ids and mask [B, T], the mask of what is sent, labels; which noise its
    rows have."""

    ids_BT: Tensor
    mask_BT: Tensor
    sent_BT: Tensor
    labels: Tensor
    numbers: tuple[int, ...]
    noise: Topic


@dataclass
class CustomerSide:
    """The customer at work on its rows; `about` is what its state is of, `begun` what its run is of."""

    part: Customer
    job: SplitJob
    about: Mapping[str, str]
    begun: Mapping[str, str]
    rows: Rows
    evaluation: Rows | None
    tokenizer: TokenizerFiles
    max_tokens: int
    rates: Schedule
    privatise: Privatiser
    gradients: Gradients
    tell: Listener
    now: Progress = field(default_factory=Progress)
    _sent: dict[int, list[tuple[Micro, Tensor]]] = field(default_factory=dict)  # ahead, by step
    _order: tuple[int, list[tuple[int, ...]]] = (-1, [])  # an epoch's batches

    def saved(self) -> bytes:
        """All that a restart needs."""
        learner = self.part.learner
        learnt = state.save(learner, self.about) if learner else b""
        plain = {"progress": to_plain(self.now), "noise": to_plain(self.privatise.settled)}
        return pack(self.begun, plain, learnt)

    def restore(self, data: bytes) -> None:
        """Stand where `saved` was called. Raises CheckpointError."""
        plain, learnt = unpack(data, self.begun)
        self.now = from_plain(
            Progress, plain["progress"], "this checkpoint is of another version", error=CheckpointError
        )
        if self.part.learner:
            state.restore(self.part.learner, learnt, self.about)

    @property
    def steps(self) -> int:
        """How many are done."""
        return self.now.steps

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.now.over

    def asked(self, texts: Sequence[str] | None) -> Rows:
        """Texts as rows without labels; without texts the rows that were evaluated. Raises
        MisconfiguredError for texts that are too short."""
        if texts is None:
            if self.evaluation is None:
                raise MisconfiguredError("the job names no rows to evaluate; give some with --data")
            return self.evaluation
        rows, least = encode(texts, self.tokenizer, self.max_tokens), 2 if self.job.task == "causal" else 1
        if short := [number for number, ids in enumerate(rows.ids, 1) if len(ids) < least]:
            raise MisconfiguredError(
                f"texts {', '.join(map(str, short[:8]))} have fewer than {least} tokens; leave them out"
            )
        return rows

    def run(self, talk: Talk) -> None:
        """Train and evaluate to the end, from wherever it stands. Raises LinkError, and MisconfiguredError
        where the rows do not fit the link."""
        require_room(self.job, self._width, talk.agreement, self.rows, self.job.train.micro_batches)
        if self.evaluation is not None:
            require_room(self.job, self._width, talk.agreement, self.evaluation)
        start = checks.copies(self.part.learner.parameters) if self.part.learner else {}
        begin = Step(0, 0, "forward", topic=messages.BEGIN)
        talk.commit(self.saved(), (begin, self._request(counts=(len(self.rows), 0))))  # noise is kept first
        while not self.now.over:
            if self._is_evaluation_due:
                self._evaluate(talk)
            elif self.now.steps < self.rates.total_steps and not self._has_no_more_to_gain:
                self._step(talk)
                dropped = self.part.has_adapter and self.job.gradient_tunnel.kind != "none"  # it may be
                if self.part.learner and self.now.steps <= 2 and not dropped:
                    checks.require_moved(self.part.learner, start, first=self.now.steps == 1)
            else:
                self.now = replace(self.now, over=True)
                end = Step(0, 0, "forward", topic=messages.END)
                talk.commit(self.saved(), (end, self._request()))
        self._told("done")

    def predict(self, talk: Talk, rows: Rows) -> tuple[list[Tally], Tensor | None]:
        """The rows' scores [rows, C] of a classifier; of a language model the tally of each row.

        Rows that were evaluated leave with the noise that they had then. Raises as `run`.
        """
        import torch

        require_room(self.job, self._width, talk.agreement, rows)
        each: list[Tally] = []
        scores = []
        for steps in _chunks(self._plan(rows, messages.PREDICT)):
            sent = [self._ask(talk, at, micro) for at, micro in steps]
            for (at, micro), mask_BT in zip(steps, sent, strict=True):
                found = talk.answer(at)
                if self.job.task == "classification":
                    scores.append(self._scores(found, mask_BT))
                else:
                    each += self._tallies(found, micro, each_row=True)
            talk.commit(None)
        talk.commit(None, (Step(0, 0, "forward", topic=messages.END), self._request()))
        return each, torch.cat(scores) if scores else None

    def _told(self, kind: Kind, found: Mapping[str, float] | None = None) -> None:
        self.tell(Told(kind, self.now.steps, self.rates.total_steps, found or {}))

    # Training

    @property
    def _has_no_more_to_gain(self) -> bool:
        return is_over([one.metrics["loss"] for one in self.now.history], self.job.train.patience)

    @property
    def _is_evaluation_due(self) -> bool:
        return self._evaluates_after(self.now.steps) and not (
            self.now.history and self.now.history[-1].step == self.now.steps
        )

    def _evaluates_after(self, steps: int) -> bool:
        every = self.job.train.evaluate_every_steps or self._steps_of_epoch
        return steps > 0 and (steps % every == 0 or steps == self.rates.total_steps)

    @cached_property
    def _steps_of_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.job.train.batch_rows)

    def _step(self, talk: Talk) -> None:
        """One batch, in its micro-batches, forward and backward."""
        number = self.now.steps
        sent = self._sent.pop(number, None) or self._forward(talk, number)
        if self._goes_ahead_after(number):
            self._sent[number + 1] = self._forward(talk, number + 1)
        head = self.part.head
        tally = self._await(talk, number, sent) if head is None else self._grade(head, talk, number, sent)
        if self.part.learner:
            self.part.learner.step()
        self.now = replace(self.now, steps=number + 1, training=self.now.training + tally)
        self._told("step", {"loss": tally.metrics(self.job.task)["loss"]})
        if talk.stepped() or self._is_evaluation_due:
            talk.commit(self.saved())

    def _goes_ahead_after(self, number: int) -> bool:
        """Whether the next step's states may go before this step ends: they would be the same after it, and
        nothing comes between."""
        following = number + 1
        return not (
            self.part.has_adapter or following >= self.rates.total_steps or self._evaluates_after(following)
        )

    def _forward(self, talk: Talk, number: int) -> list[tuple[Micro, Tensor]]:
        """A step's states go; they themselves, without noise, for the gradient that may come back."""
        parts = self._micros(number)
        targets = sum(count_targets(self.job.task, micro.labels) for micro in parts)
        sent = []
        for part, micro in enumerate(parts):
            at = self._at(number, part)
            hidden_BTD = self.part.bottom(micro.ids_BT, micro.mask_BT)
            talk.send(at, self._states(hidden_BTD, micro, at, (targets, len(parts)), labels=True))
            sent.append((micro, hidden_BTD))
        return sent

    def _await(self, talk: Talk, number: int, sent: Sequence[tuple[Micro, Tensor]]) -> Tally:
        """Layout vendor: each micro-batch's tally, and its gradient if one comes back."""
        tally = Tally()
        for part, (micro, hidden_BTD) in enumerate(sent):
            found = talk.answer(self._at(number, part))
            tally += tallies(found, 1)[0]
            self._take_back(found, micro, hidden_BTD)
        return tally

    def _grade(self, head: Head, talk: Talk, number: int, sent: Sequence[tuple[Micro, Tensor]]) -> Tally:
        """The U-shape: loss and gradient of the top states that come, and what comes back of the gradient."""
        tally = Tally()
        targets = sum(count_targets(self.job.task, micro.labels) for micro, _ in sent)
        for part, (micro, _) in enumerate(sent):
            at = self._at(number, part)
            top_BTD = self._top(talk.answer(at), micro.sent_BT)
            graded = head.grade(top_BTD, micro.sent_BT, micro.labels, targets)
            back = replace(at, direction="backward", topic=messages.GRADIENT)
            gradient_ND = self.gradients(graded.gradient_BTD, micro.sent_BT, targets, back)
            talk.send(back, request(gradient_ND))
            tally += graded.tally
        if self.part.has_adapter:
            for part, (micro, hidden_BTD) in enumerate(sent):
                found = talk.answer(replace(self._at(number, part), topic=messages.GRADIENT))
                self._take_back(found, micro, hidden_BTD)
        return tally

    def _take_back(self, found: messages.Tensors, micro: Micro, hidden_BTD: Tensor) -> None:
        if self.part.has_adapter:
            gradient_ND = require_shape(found["rows"], self._packed_shape(micro), "gradients at the cut")
            self.part.take_back(hidden_BTD, unpacked(gradient_ND, micro.sent_BT))

    # Evaluation

    def _evaluate(self, talk: Talk) -> None:
        """The evaluation that is due, from its batch that is next; without rows for it, of the training."""
        if self.evaluation is not None:
            plan = self._plan(self.evaluation, messages.EVALUATE, len(self.now.history))
            for steps in _chunks(itertools.islice(plan, self.now.evaluated, None)):
                for at, micro in steps:
                    self._ask(talk, at, micro)
                tally = self.now.evaluation
                for at, micro in steps:
                    tally += sum(self._tallies(talk.answer(at), micro), Tally())
                self.now = replace(self.now, evaluated=self.now.evaluated + len(steps), evaluation=tally)
                talk.commit(self.saved())
        point = self._point()
        self.now = replace(
            self.now, training=Tally(), evaluated=0, evaluation=Tally(), history=(*self.now.history, point)
        )
        talk.commit(self.saved())
        self._told("evaluated", point.metrics)

    def _point(self) -> Point:
        task, now = self.job.task, self.now
        measured = now.training if self.evaluation is None else now.evaluation
        loss = now.training.metrics(task)["loss"] if now.training.count else None
        return Point(now.steps, loss, measured.metrics(task))

    def _ask(self, talk: Talk, at: Step, micro: Micro) -> Tensor:
        """Send rows that nothing is learnt from; the mask of what was sent."""
        labels = at.topic == messages.EVALUATE or self.job.task == "causal"
        targets = count_targets(self.job.task, micro.labels) if labels else 0
        hidden_BTD = self.part.bottom(micro.ids_BT, micro.mask_BT, train=False)
        talk.send(at, self._states(hidden_BTD, micro, at, (targets, 1), labels=labels))
        return micro.sent_BT

    def _tallies(self, found: messages.Tensors, micro: Micro, *, each_row: bool = False) -> list[Tally]:
        head = self.part.head
        if head is None:
            return tallies(found, len(micro.numbers) if each_row else 1)
        top_BTD = self._top(found, micro.sent_BT)
        if each_row:
            return head.evaluate_each(top_BTD, micro.sent_BT, micro.labels)
        return [head.evaluate(top_BTD, micro.sent_BT, micro.labels)]

    def _scores(self, found: messages.Tensors, mask_BT: Tensor) -> Tensor:
        if self.part.head is None:
            return require_shape(found["scores"], (len(mask_BT), len(self.job.labels)), "scores")
        return self.part.head.scores(self._top(found, mask_BT), mask_BT).cpu()

    # Batches and messages

    def _plan(self, rows: Rows, topic: Topic, epoch: int = 0) -> Iterator[tuple[Step, Micro]]:
        for number, chosen in enumerate(batches(rows, self.job.train)):
            yield Step(epoch, number, "forward", topic=topic), self._micro(rows, chosen, topic)

    def _micros(self, number: int) -> list[Micro]:
        """The micro-batches of a step: the batch's rows in order, in parts that differ by one row at most."""
        epoch, within = divmod(number, self._steps_of_epoch)
        chosen = self._epoch(epoch)[within]
        parts = min(self.job.train.micro_batches, len(chosen))
        cuts = [len(chosen) * part // parts for part in range(parts + 1)]
        return [self._micro(self.rows, chosen[a:b], messages.TRAIN) for a, b in itertools.pairwise(cuts)]

    def _epoch(self, epoch: int) -> list[tuple[int, ...]]:
        if self._order[0] != epoch:
            self._order = epoch, batches(self.rows, self.job.train, epoch)
        return self._order[1]

    def _micro(self, rows: Rows, numbers: tuple[int, ...], topic: Topic) -> Micro:
        ids_BT, mask_BT, labels = (
            one.to(self.job.device) for one in padded(rows, numbers, pad_id_of(self.tokenizer))
        )
        if topic == messages.PREDICT and rows is self.evaluation:
            topic = messages.EVALUATE
        elif topic == messages.PREDICT:
            numbers = (0,) * len(numbers)  # the same text has the same noise whenever it is asked
        return Micro(ids_BT, mask_BT, self.privatise.leaving(mask_BT), labels, numbers, topic)

    def _at(self, number: int, part: int) -> Step:
        epoch, within = divmod(number, self._steps_of_epoch)
        return Step(epoch, within * self.job.train.micro_batches + part, "forward")

    def _number(self, at: Step) -> int:
        """Of the step that a message of training is of, from 0."""
        return at.epoch * self._steps_of_epoch + at.batch // self.job.train.micro_batches

    def _states(
        self, hidden_BTD: Tensor, micro: Micro, at: Step, counts: tuple[int, int], *, labels: bool
    ) -> messages.Tensors:
        """What leaves: states with noise, and labels only where the vendor has the head."""
        step = self._number(at) if at.topic == messages.TRAIN else self.now.steps
        noisy_BTD = self.privatise(
            hidden_BTD.detach(), micro.ids_BT, micro.mask_BT, micro.numbers, step, micro.noise
        )
        if self._denoise is not None:
            noisy_BTD = self._denoise(noisy_BTD, micro.ids_BT, micro.mask_BT)
        rows_ND, lengths_B = packed(noisy_BTD, micro.sent_BT), micro.sent_BT.sum(1)
        if not labels or self.part.head is not None:
            return request(rows_ND, lengths_B, counts=counts)
        ids_N = packed(micro.ids_BT, micro.mask_BT)
        return request(rows_ND, lengths_B, ids_N if self.job.task == "causal" else micro.labels, counts)

    def _request(self, counts: tuple[int, int] = (0, 0)) -> messages.Tensors:
        import torch

        return request(torch.zeros(0, self._width), counts=counts)

    def _top(self, found: messages.Tensors, mask_BT: Tensor) -> Tensor:
        shape = int(mask_BT.sum()), self._width
        return unpacked(require_shape(found["rows"], shape, "top states"), mask_BT)

    def _packed_shape(self, micro: Micro) -> tuple[int, int]:
        return int(micro.sent_BT.sum()), self._width

    @cached_property
    def _denoise(self) -> Denoiser | None:
        settled = self.privatise.settled
        return Denoiser.of(settled, self.part.front) if settled.noise.denoise else None

    @property
    def _width(self) -> int:
        return self.part.front.parts.width


def _chunks(plan: Iterable[tuple[Step, Micro]]) -> Iterator[list[tuple[Step, Micro]]]:
    steps = iter(plan)
    while found := list(itertools.islice(steps, AHEAD)):
        yield found
