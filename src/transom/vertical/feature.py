"""The feature party's side of a vertical training: it leads, unit by unit, and learns from what comes back.

Of the units under way each has an attempt. Where a gradient does not come within the deadline, or is dropped
on either side, or is too old, the unit is given out again under the next attempt, with an embedding of now.
Threat model: a partner that answers other units, shapes or values that are none; refused.
Does not protect: the partner sees embeddings with what noise the job adds, their order and their times.
Source: Liu et al., arXiv 2510.12494, sections 4.1 and 4.2. Shapes: B rows of a unit, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from transom.errors import LinkRefusedError
from transom.link.hijack import Watch
from transom.link.message import Step
from transom.link.session import Received
from transom.link.talk import Talk
from transom.link.told import Listener
from transom.link.tunnel import Tunnel
from transom.vertical import messages
from transom.vertical.half import EMBEDDING, GRADIENT, ROWS, Done, Task
from transom.vertical.job import VerticalJob
from transom.vertical.messages import DROP, DROPPED, END, EVALUATE, OVER, TRAIN, message, rows_of, said
from transom.vertical.part import Part
from transom.vertical.pool import Pool
from transom.vertical.row_noise import RowNoise
from transom.vertical.schedule import EVALUATED_AHEAD, Way
from transom.vertical.side import Progress, Side
from transom.vertical.under_way import Ages, Evaluation, Going


class FeatureSide(Side):
    """The feature party at work; `tunnel` is what its embeddings leave through."""

    def __init__(
        self, job: VerticalJob, part: Part, pool: Pool, way: Way, about: Mapping[str, str], tell: Listener,
        tunnel: Tunnel,
    ) -> None:  # fmt: skip
        super().__init__(job, part, pool, way, about, tell, tunnel)
        self.ages, self._watch = Ages(), Watch(job.task != "multiclass") if job.watch else None
        self._going: dict[int, Going] = {}
        self._gradients: dict[int, Tensor] = {}  # by unit, the oldest first
        self._evaluation: Evaluation | None = None

    def run(self, talk: Talk) -> None:
        """Train and evaluate to the end, from wherever it stands. Raises LinkError."""
        self.pool.wake = talk.wake
        self.pool.start()
        while not self.now.over:
            if self.due:
                self.keep(talk)
            elif not self._proceed(talk):
                self._await(talk)
        self.told("done")

    @property
    def partner_has(self) -> bool:
        out = any(going.sent_s < math.inf for going in self._going.values())
        return out or (self._evaluation is not None and self._evaluation.sent > self._evaluation.answered)

    def _proceed(self, talk: Talk) -> bool:
        """Do one thing that can be done now; whether there was one."""
        if (done := self.pool.take()) is not None:
            self.finished(talk, done)
            return True
        if self.way.lockstep:
            return self._learn() or self._evaluate(talk) or self._begin() or self._end(talk)
        return self._begin() or self._learn() or self._evaluate(talk) or self._end(talk)

    # Forward

    def _begin(self) -> bool:
        """Ask a worker for the next unit's embedding."""
        unit = self._next()
        if unit is None:
            return False
        task = Task("forward", unit, self._rows(unit), self.units.batch_size(unit))
        attempt = self.now.attempts.get(str(unit), 0)
        self._going[unit] = Going(
            attempt, self.now.steps
        )  # before it is given: a worker here does it at once
        taken = self.pool.give(task, self.worker_of(unit))
        if taken is None:
            del self._going[unit]
            return False
        self._going[unit].worker = taken
        return True

    def _next(self) -> int | None:
        """The unit that may begin. None does where gradients wait: this party is the slower one, and more
        under way would only make them older. One is let wait, so that there is always something to do."""
        if self.now.ends or len(self._going) >= self.way.ahead or len(self._gradients) > 1:
            return None
        unit = self.done.watermark
        while unit in self.done or unit in self._going or unit in self._gathered:
            unit += 1
        if unit >= self.units.total:
            return None
        if self.way.lockstep and self.units.whole(unit) != self.units.whole(self.done.watermark):
            return None
        unevaluated = self.units.epoch(unit) - self.now.evaluated
        return unit if unevaluated <= (0 if self.way.waits else 1) else None

    def _send(self, talk: Talk, unit: int, embedding_BW: Tensor) -> None:
        going = self._going.get(unit)
        if (
            going is None or going.answered or going.sent_s < math.inf
        ):  # what it answers went before a restart
            return
        if self.now.ends:  # nothing more leaves
            del self._going[unit]
            return
        step = self.units.step(unit, TRAIN, going.attempt)
        released_BW = self.release(embedding_BW, step)
        if released_BW is None:
            del self._going[unit]
            return
        talk.send(step, message(self.job.width, released_BW))
        going.sent_s = time.monotonic()

    # Backward

    def _await(self, talk: Talk) -> None:
        """One message, or what is due when none comes in time."""
        received = self.wait(talk, self._topics(), self._deadline_s)
        if received is None:
            self._expire(talk)
        elif received.header.step.topic == TRAIN:
            self._arrived(received)
        else:
            self._evaluated(talk, received)

    def _topics(self) -> tuple[str, ...]:
        """What is received now. After a restart all comes at once that came since the checkpoint, also
        answers to what is not asked yet: these stay with the link."""
        asked = not self.way.lockstep or any(not going.answered for going in self._going.values())
        return (*((TRAIN,) if asked else ()), *((EVALUATE,) if self._evaluation is not None else ()))

    def _arrived(self, received: Received) -> None:
        """A gradient, or the word that an embedding was dropped. One that is late changes nothing."""
        step = received.header.step
        unit = self.units.unit(step)
        if unit < 0 or step.direction != "backward":
            raise LinkRefusedError(f"the partner answered {step}, which was not asked")
        if unit in self.done:
            return
        if unit not in self._going and not self.way.lockstep:  # its embedding was sent before a restart
            self._going[unit] = Going(step.attempt, self.now.steps)
        going = self._going.get(unit)
        if going is None or step.attempt < going.attempt:
            return
        going.attempt = step.attempt
        if going.answered:  # a later attempt of before a restart, while the first answer is being learnt from
            return
        if said(received.tensors) == DROPPED:
            self._again(unit, "dropped there")
            return
        if said(received.tensors) == OVER:  # the partner's budget is spent
            del self._going[unit]
            self.now = replace(self.now, ends=True)
            return
        gradient_BW = rows_of(received.tensors, len(self.units.rows(unit)), "a gradient")
        if self._watch is not None:
            self._watch.see(gradient_BW)
        self.tunnel.learn(replace(step, direction="forward"), gradient_BW)
        if self._is_old(going):
            self._again(unit, "too old")
            return
        going.sent_s, going.answered = math.inf, True
        self._gradients[unit] = gradient_BW
        if not self.way.lockstep and len(self._gradients) > self.job.train.gradients:
            oldest = next(iter(self._gradients))
            del self._gradients[oldest]
            self._again(oldest, "dropped here")

    def _learn(self) -> bool:
        """Give a worker the gradient that came first and that one is free for: the one that has made its
        embedding, or else any."""
        for unit, gradient_BW in self._gradients.items():
            tensors = {**self._rows(unit), GRADIENT: gradient_BW}
            task = Task("backward", unit, tensors, self.units.batch_size(unit))
            taken = self.pool.give(task, self._going[unit].worker)
            if taken is None and not self.way.paired:
                taken = self.pool.give(task)
            if taken is not None:
                del self._gradients[unit]
                return True
        return False

    def finished(self, talk: Talk, done: Done) -> None:
        """A worker has an embedding, or has learnt."""
        if done.kind == "forward":
            self._send(talk, done.unit, done.tensors[EMBEDDING])
            return
        going = self._going.pop(done.unit)
        for own in range(self.units.steps_of(done.unit)):
            self.ages.counts[self.now.steps - going.made_at + own] += 1
        if not self.way.gathers:
            self._stepped(talk, (done.unit,))
        elif self.gather(done.unit, done.tensors):
            first = done.unit - done.unit % self.way.shares
            self._stepped(talk, range(first, first + self.way.shares))

    def _stepped(self, talk: Talk, units: range | tuple[int, ...]) -> None:
        attempts = dict(self.now.attempts)
        for unit in units:
            self.done.add(unit)
            attempts.pop(str(unit), None)
        steps = self.units.steps_of(units[0])
        self.now = replace(self.now, steps=self.now.steps + steps, attempts=attempts)
        self.told("step", {"wait_s": self.wait_s, "busy_s": self.pool.busy_s, **self._age()})
        self.due = talk.stepped(steps)

    def _age(self) -> dict[str, float]:
        return {f"staleness_{name}": value for name, value in self.ages.report().items()}

    # What is given out again

    def standing(self) -> Progress:
        """Gradients that are here and not learnt from are lost with the process, and do not come again: after
        a restart their units go out under the next attempt. An evaluation goes on from its last answer."""
        lost = {str(unit): going.attempt + 1 for unit, going in self._going.items() if going.answered}
        now = self._evaluation
        evaluation = self.now.evaluation if now is None else (now.attempt, now.answered)
        watched = () if self._watch is None else self._watch.saved()
        return replace(
            self.now, attempts={**self.now.attempts, **lost}, evaluation=evaluation, watched=watched
        )

    def restore(self, data: bytes) -> None:
        super().restore(data)
        if self._watch is not None:
            self._watch.restore(self.now.watched)

    def _is_old(self, going: Going) -> bool:
        old = self.now.steps - going.made_at + self.way.bundle - 1 > self.job.train.staleness
        return old and self.job.train.schedule == "pubsub"

    def _again(self, unit: int, why: str) -> None:
        """The unit goes out once more, before others, with an embedding of now."""
        going = self._going.pop(unit)
        dropped = dict(self.now.dropped)
        dropped[why] = dropped.get(why, 0) + 1
        attempts = {**self.now.attempts, str(unit): going.attempt + 1}
        self.now = replace(self.now, attempts=attempts, dropped=dropped)

    @property
    def _deadline_s(self) -> float:
        """When the first of what is waited for is overdue. In lock-step nothing is."""
        if self.way.lockstep:
            return math.inf
        sent = [going.sent_s for going in self._going.values()]
        if self._evaluation is not None:
            sent.append(self._evaluation.sent_s)
        return min(sent, default=math.inf) + self.job.train.deadline_s

    def _expire(self, talk: Talk) -> None:
        if self.way.lockstep or self.now.ends:  # then what is out is waited for, and nothing goes out again
            return
        before_s = time.monotonic() - self.job.train.deadline_s
        for unit, going in list(self._going.items()):
            if going.sent_s <= before_s:
                talk.send(self.units.step(unit, DROP, going.attempt), message(self.job.width))
                self._again(unit, "overdue")
        if self._evaluation is not None and self._evaluation.sent_s <= before_s:
            self._evaluation = Evaluation(self._evaluation.attempt + 1)

    # Evaluation and end

    def _evaluate(self, talk: Talk) -> bool:
        """Send the next rows of the evaluation that is due."""
        if self._evaluation is None:
            if self.done.watermark < self.units.per_epoch * (self.now.evaluated + 1) or self.now.ends:
                return False
            next_average = self.average(self.now.evaluated + 1)
            self.now = replace(self.now, next_average=next_average)
            attempt, answered = self.now.evaluation
            self._evaluation = Evaluation(attempt, answered, answered)
        now = self._evaluation
        if now.refused or now.sent == len(self.spans) or now.sent - now.answered >= EVALUATED_AHEAD:
            return False
        step = Step(self.now.evaluated, now.sent, "forward", now.attempt, EVALUATE)
        rows_BF = self.tensor(self.test_rows(now.sent))
        embedding_BW = self.pool.half.embed(_require(rows_BF)).cpu()
        released_BW = self.release(embedding_BW, step)
        if released_BW is None:
            now.refused = True
            return True
        talk.send(step, message(self.job.width, released_BW))
        now.sent, now.sent_s = now.sent + 1, time.monotonic()
        return True

    def _evaluated(self, talk: Talk, received: Received) -> None:
        """An answer; with the last one the epoch is evaluated."""
        now, step = self._evaluation, received.header.step
        if now is None or step.epoch != self.now.evaluated or step.attempt < now.attempt:
            return
        if step.attempt > now.attempt:  # it began again before a restart
            now = self._evaluation = Evaluation(step.attempt, step.batch, step.batch)
        if said(received.tensors) == DROPPED:
            self._evaluation = Evaluation(now.attempt + 1)
            return
        now.answered += 1
        now.sent = max(now.sent, now.answered)
        if now.answered < len(self.spans):
            self.due = self.due or talk.is_full
            return
        self._evaluation, evaluated = None, self.now.evaluated + 1
        ends = said(received.tensors) == OVER or evaluated == self.job.train.epochs or self.now.ends
        self.now = replace(self.now, evaluated=evaluated, evaluation=(0, 0), ends=ends)
        self.due = self.due or talk.is_full  # the verdict is durable there, and is told again if need be
        self.told("evaluated")

    def _end(self, talk: Talk) -> bool:
        """Take leave once nothing is under way."""
        now = self._evaluation
        evaluates = now is not None and (now.sent > now.answered or not now.refused)
        if not self.now.ends or self._going or evaluates:
            return False
        self.average(self.now.evaluated)
        self.now = replace(self.now, over=True)
        self.keep(talk, (Step(0, 0, "forward", topic=END), message(self.job.width)))
        return True

    def answer(self, talk: Talk, noise: RowNoise) -> int:
        """Embeddings of the rows that the label party asks for, each once, until it ends; how many left.

        Raises LinkRefusedError for a row that it has.
        """
        given: set[int] = set()
        while True:
            received = talk.receive(messages.PREDICT, END)
            step = received.header.step
            if step.topic == END:
                talk.commit(None)
                return len(given)
            numbers = received.tensors["counts"].numpy()
            asked = set(numbers.tolist())
            if len(asked) < len(numbers) or not given.isdisjoint(asked):
                raise LinkRefusedError(
                    f"the partner asks for {len(numbers)} rows, some of which it asked for before; each is "
                    "given once"
                )
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.part):
                raise LinkRefusedError(
                    f"the partner asks for rows beyond the {len(self.part)} that both parties have"
                )
            rows_BF, ids_B = self.part.rows(numbers), [self.part.ids[number] for number in numbers]
            embedding_BW = self.pool.half.embed(torch.from_numpy(rows_BF)).cpu()
            noisy_BW = noise(ids_B, rows_BF, embedding_BW)
            talk.commit(None, (replace(step, direction="backward"), message(self.job.width, noisy_BW)))
            given |= asked

    def _rows(self, unit: int) -> dict[str, Tensor]:
        return {ROWS: _require(self.tensor(self.unit_rows(unit)))}


def _require(rows_BF: Tensor | None) -> Tensor:
    if rows_BF is None:
        raise LinkRefusedError("the feature party has no columns")
    return rows_BF
