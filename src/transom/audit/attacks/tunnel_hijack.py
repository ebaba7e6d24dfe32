"""Feature-space hijacking: a partner that trains the party's model to speak, and learns to read it.

Some of the rows of training are known to the attacker. For these it sends the gradient of a decoder's error:
bottom and decoder become an autoencoder over the link, with the very noise of the tunnel, and the decoder
reads the other rows, too. For those `hijack` sends zeros; `hijack/space` the gradient of a discriminator that
wants them to look like known ones, as feature-space hijacking does, whose encoder the victim itself plays on
known rows: networks of which it knows nothing would have to be imitated, and with dense layers were not (a
separate encoder read less than the mean image shows, see LOG.md).

Threat model: see `tunnel_view`; an active attacker. `link.hijack.Watch` looks for both; where it is on, what
was read until it ended the training counts. Does not protect anything; larger networks and longer trainings
may read more.
Source: Pasquini, Ateniese and Bernaschi, CCS 2021, arXiv 2012.02670, section 3; own on known rows.

Shapes: N rows, K known ones, B rows of a batch, F values of a row, W width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from transom.audit.attacks.tunnel_view import Aux, Hidden, Tunnelled, Victim, batches, likeness
from transom.checkpoint.seeded import seeded
from transom.checkpoint.threads import one_thread
from transom.errors import LinkRefusedError
from transom.report.finding import Bound, Finding, not_run
from transom.report.statistics import Bools, Floats, Ints

HIJACK, SPACE = "hijack", "hijack/space"
STEPS = 3000
FEWEST = 200  # known rows
_RATE = 1e-3
_PULL = 0.3  # of the discriminator, by the length of the decoder's gradient
_KEPT = 20  # last batches that are read


def attacks(metric: str) -> tuple[Bound, ...]:
    """Without and with the discriminator."""
    return (
        Bound(HIJACK, metric, partial(attack, name=HIJACK)),
        Bound(SPACE, metric, partial(attack, name=SPACE)),
    )


def attack(target: Tunnelled, knowledge: Aux, data: Hidden, budget_s: float, name: str = HIJACK) -> Finding:
    """Train the victim, then read its releases."""
    short = ""
    if target.make is None:
        short = "the party cannot be trained here; give the feature party's job"
    elif data.values_NF is None:
        short = "the rows are the feature party's; give its job"
    elif len(knowledge.rows_K) < FEWEST:
        short = f"{len(knowledge.rows_K)} rows are known, and {FEWEST} are wanted; raise --known"
    if short or data.values_NF is None:
        return not_run(name, data.metric, short)
    ends = time.monotonic() + 0.9 * budget_s
    known_N = np.zeros(len(data.values_NF), dtype=bool)
    known_N[knowledge.rows_K] = True
    order = batches(len(known_N), target.batch_rows, np.random.default_rng(knowledge.seed))
    with one_thread(), seeded(knowledge.seed):  # of small networks, which several only slow
        values_NF = torch.from_numpy(data.values_NF.astype(np.float32))
        attacker = Attacker(values_NF, known_N, target.width, pulls=name == SPACE)
        victim = Victim(target)
        last, stopped, steps = _train(attacker, victim, order, min(STEPS, target.steps), ends)
        read_O, guess_OF = _read(attacker, last, known_N)
    note = f"{len(knowledge.rows_K)} rows are known, {steps} steps{stopped}"
    if not len(read_O):
        return not_run(name, data.metric, f"{note}: no row was released that is not known")
    known_KF = data.values_NF[knowledge.rows_K]
    return likeness(name, data, read_O, guess_OF, known_KF.mean(0), note)


Released = deque[tuple[Ints, Tensor]]  # rows, and what left of them


def _train(
    attacker: Attacker, victim: Victim, order: Iterator[Ints], most: int, ends: float
) -> tuple[Released, str, int]:
    """The last releases, why there were no more, and how many there were."""
    last: Released = deque(maxlen=_KEPT)
    for step in range(most):
        numbers_B = next(order)
        released_BW = victim.release(numbers_B)
        last.append((numbers_B, released_BW))
        try:
            victim.learn(numbers_B, attacker.answer(numbers_B, released_BW))
        except LinkRefusedError:
            return last, ", until the watch ended the training", step + 1
        if time.monotonic() > ends:
            return last, ", until the time was over", step + 1
    return last, "", most


def _read(attacker: Attacker, last: Released, known_N: Bools) -> tuple[Ints, Floats]:
    """Rows that are not known, each once, and what is read of their last release."""
    seen: dict[int, Floats] = {}
    for numbers_B, released_BW in last:
        pairs = zip(numbers_B.tolist(), attacker.read(released_BW), strict=True)
        seen |= {number: guess_F for number, guess_F in pairs if not known_N[number]}
    return np.array(list(seen), np.int64), np.array(list(seen.values()))


class Attacker:
    """A decoder, a discriminator, and what they answer. Of rows that are not known it looks at none."""

    def __init__(self, values_NF: Tensor, known_N: Bools, width: int, *, pulls: bool) -> None:
        self._known_N = torch.from_numpy(known_N)
        self._values, known_KF = values_NF, values_NF[self._known_N]
        self._mean, self._deviation = known_KF.mean(0), float(known_KF.std(0).square().mean().sqrt()) + 1e-6
        self._low, self._high = known_KF.min(0).values, known_KF.max(0).values
        self._decoder, self._judge = _net(width, values_NF.shape[1]), _net(width, 1)
        self._decodes = torch.optim.Adam(self._decoder.parameters(), lr=_RATE)
        self._judges = torch.optim.Adam(self._judge.parameters(), lr=_RATE)
        self._pulls = pulls

    def answer(self, numbers_B: Ints, released_BW: Tensor) -> Tensor:
        """Learn from a release, and the gradient [B, W] to send back for it."""
        known_B = self._known_N[numbers_B]
        if not known_B.any():
            return torch.zeros_like(released_BW)
        given_BW = released_BW.detach().requires_grad_()
        wanted_KF = (self._values[numbers_B][known_B] - self._mean) / self._deviation
        error = functional.mse_loss(self._decoder(given_BW[known_B]), wanted_KF)
        self._decodes.zero_grad(set_to_none=True)
        torch.autograd.backward(error)
        self._decodes.step()
        gradient_BW = torch.zeros_like(released_BW) if given_BW.grad is None else given_BW.grad
        if self._pulls and not known_B.all():
            pull_BW = self._pull(released_BW.detach(), known_B)
            gradient_BW = gradient_BW + pull_BW * (_PULL * gradient_BW.norm() / (pull_BW.norm() + 1e-12))
        return gradient_BW

    def read(self, released_BW: Tensor) -> Floats:
        """Rows [B, F] as the decoder makes them, within what is known of each column."""
        with torch.no_grad():
            guess_BF = self._decoder(released_BW) * self._deviation + self._mean
        found: Floats = guess_BF.clamp(self._low, self._high).double().numpy()
        return found

    def _pull(self, released_BW: Tensor, known_B: Tensor) -> Tensor:
        ours_B1, theirs_B1 = self._judge(released_BW[known_B]), self._judge(released_BW[~known_B])
        self._judges.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.softplus(-ours_B1).mean() + functional.softplus(theirs_B1).mean())
        self._judges.step()
        given_BW = released_BW.requires_grad_()
        fooled = functional.softplus(-self._judge(given_BW[~known_B])).mean()
        (pull_BW,) = torch.autograd.grad(fooled, given_BW)
        return pull_BW


def _net(inputs: int, outputs: int) -> nn.Module:
    hidden = 256
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )  # fmt: skip
