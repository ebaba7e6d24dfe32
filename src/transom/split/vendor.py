"""The vendor's side of a split tuning: it answers whatever the customer asks next, and learns from it.

Threat model: a customer that sends batches which are none, or in another order than it began; refused.
Does not protect: the vendor sees states, order and number of rows, in layout `vendor` the labels, too.
Source: see the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transom.errors import LinkRefusedError
from transom.link import state
from transom.link.message import Step
from transom.link.talk import Message, Talk, pack, unpack
from transom.link.told import Listener, Told
from transom.split import checks, lora, messages
from transom.split.job import SplitJob
from transom.split.learner import schedule
from transom.split.messages import Asked, Bounds, packed, reply, require_shape, unpacked
from transom.split.parts import Head, Vendor

if TYPE_CHECKING:
    from torch import Tensor


_STEPS_WITHOUT = 20  # a gradient, before it is a mistake


@dataclass
class VendorSide:
    """The vendor at work. `about` is what its state is of, `takes` what may be asked; `rows` is how many
    there are to train on, once the customer said so."""

    part: Vendor
    job: SplitJob
    about: Mapping[str, str]
    bounds: Bounds
    tell: Listener
    takes: tuple[str, ...] = (messages.BEGIN, messages.TRAIN, messages.EVALUATE, messages.END)
    rows: int = 0
    over: bool = False

    @property
    def _width(self) -> int:
        return self.part.middle.parts.width

    def saved(self) -> bytes:
        """All that a restart needs."""
        return pack(
            self.about, {"rows": self.rows, "over": self.over}, state.save(self.part.learner, self.about)
        )

    def restore(self, data: bytes) -> None:
        """Stand where `saved` was called. Raises CheckpointError."""
        plain, learnt = unpack(data, self.about)
        state.restore(self.part.learner, learnt, self.about)
        self._begin(int(plain["rows"]))
        self.over = bool(plain["over"])

    @property
    def steps(self) -> int:
        """How many are done."""
        return self.part.learner.steps

    def run(self, talk: Talk) -> None:
        """Answer until the customer ends it. Raises LinkError."""
        watched = _Watched(self.part)
        while not self.over:
            received = talk.receive(*self.takes)
            step, tensors = received.header.step, received.tensors
            if step.topic == messages.END:
                self.over = True
                talk.commit(self.saved())
            elif step.topic == messages.BEGIN:
                self._begin(int(tensors["counts"][0]))
                talk.commit(self.saved())
            elif step.topic == messages.TRAIN:
                first = self._asked(tensors)
                watched.before(first)
                last = self._train(talk, step, first)
                watched.after()
                if talk.stepped():
                    talk.commit(self.saved(), last)
                elif last is not None:
                    talk.send(*last)
            else:
                answer = replace(step, direction="backward"), self._answer(step, self._asked(tensors))
                talk.commit(self.saved() if talk.is_ahead else None, answer)

    def _begin(self, rows: int) -> None:
        if rows < 1:
            raise LinkRefusedError(f"the customer begins with {rows} rows; at least one is wanted")
        self.rows = rows
        self.part.learner.rates = schedule(self.job.train, rows)

    def _asked(self, tensors: messages.Tensors) -> Asked:
        return messages.asked(tensors, self.bounds, self.job.task, self.job.device)

    def _train(self, talk: Talk, step: Step, first: Asked) -> Message | None:
        """One step of all its micro-batches; the last reply, if there is one, is for the caller to send."""
        if not self.rows:
            raise LinkRefusedError("the customer trains before it began; it is of another version")
        head = self.part.head
        learnt = self._raise(talk, step, first) if head is None else self._grade(head, talk, step, first)
        last, found = learnt
        self.part.learner.step()
        self.tell(Told("step", self.steps, self.part.learner.rates.total_steps, found))
        return last

    def _grade(
        self, head: Head, talk: Talk, step: Step, first: Asked
    ) -> tuple[Message | None, dict[str, float]]:
        """Layout vendor: a reply to each micro-batch, with what its labels gave."""
        loss, last = 0.0, None
        for now, at in self._parts(talk, step, first):
            if last is not None:
                talk.send(*last)
            risen = self.part.rise(now.hidden_BTD, now.mask_BT)
            graded = head.grade(risen.top_BTD, now.mask_BT, now.labels, now.targets)
            back_BTD = self.part.sink(risen, graded.gradient_BTD)
            back_ND = None if back_BTD is None else packed(back_BTD, now.mask_BT)
            last = replace(at, direction="backward"), reply(self._width, back_ND, (graded.tally,))
            loss += graded.loss
        return last, {"loss": loss}

    def _raise(self, talk: Talk, step: Step, first: Asked) -> tuple[Message | None, dict[str, float]]:
        """The U-shape: top states of all, then the gradients that come for them, and back, if they are to."""
        up, last = [], None
        for now, at in self._parts(talk, step, first):
            risen = self.part.rise(now.hidden_BTD, now.mask_BT)
            up.append((at, risen, now.mask_BT))
            talk.send(at, reply(self._width, packed(risen.top_BTD.detach(), now.mask_BT)))
        for at, risen, mask_BT in up:
            if last is not None:
                talk.send(*last)
            at = replace(at, direction="backward", topic=messages.GRADIENT)
            gradient_ND = talk.answer(at)["rows"]
            require_shape(gradient_ND, (int(mask_BT.sum()), self._width), "gradients at the top")
            back_BTD = self.part.sink(risen, unpacked(gradient_ND, mask_BT))
            last = None if back_BTD is None else (at, reply(self._width, packed(back_BTD, mask_BT)))
        return last, {}

    def _parts(self, talk: Talk, step: Step, first: Asked) -> Iterator[tuple[Asked, Step]]:
        """The micro-batches of a step as they come."""
        for number in range(first.parts):
            at = replace(step, batch=step.batch + number)
            now = first if number == 0 else self._asked(talk.answer(at))
            if (now.targets, now.parts) != (first.targets, first.parts):
                raise LinkRefusedError(f"micro-batches of one batch say {first.parts} and {now.parts} parts")
            yield now, at

    def _answer(self, step: Step, now: Asked) -> messages.Tensors:
        """The reply to rows that nothing is learnt from."""
        top_BTD, head = self.part.top(now.hidden_BTD, now.mask_BT), self.part.head
        if head is None:
            return reply(self._width, packed(top_BTD, now.mask_BT))
        if step.topic == messages.EVALUATE:
            return reply(self._width, tallies=(head.evaluate(top_BTD, now.mask_BT, now.labels),))
        if self.job.task == "classification":
            return reply(self._width, scores_BC=head.scores(top_BTD, now.mask_BT))
        return reply(self._width, tallies=head.evaluate_each(top_BTD, now.mask_BT, now.labels))


class _Watched:
    """Whether the first two steps of a run really change weights and outputs. Steps whose whole gradient is
    zero do not count, of the first ones: a customer's tunnel may have dropped it."""

    def __init__(self, part: Vendor) -> None:
        self._part, self._start = part, checks.copies(part.learner.parameters)
        self._first: tuple[Asked, Tensor] | None = None
        self._checked = 0

    def before(self, now: Asked) -> None:
        if self._part.learner.steps == 0:
            self._first = now, self._part.top(now.hidden_BTD, now.mask_BT)

    def after(self) -> None:
        learner = self._part.learner
        if self._first is None or self._checked == 2:
            return
        if learner.steps < _STEPS_WITHOUT and not any(map(learner.has_gradient, learner.parameters)):
            return
        self._checked += 1
        now, before_BTD = self._first
        is_one_row = now.mask_BT.shape[1] == 1
        idle = lora.weighing(self._part.middle.parts.model, self._start) if is_one_row else ()
        checks.require_moved(learner, self._start, idle, first=self._checked == 1)
        checks.require_changed(before_BTD, self._part.top(now.hidden_BTD, now.mask_BT))
