"""Forgetting a trigger by tuning as little as is enough: what repairs of all models share.

Slices of chosen heads are tuned, all else stays to the bit. Where they are not enough, all attention weights
are tuned, then all weights; of what was tuned, read every few steps on texts that are held out, the best
state is kept, and none that costs what is right.
Threat model: that of the room. Does not protect: what the given triggers do is told, not what the attacker's
own does; held-out texts choose the state, so their figures are a little too good.
Source: Jin et al., arXiv 2511.13789 (head-wise tuning). The widening is own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from transom.errors import MisconfiguredError
from transom.trust.backdoor.slices import Head, Scope, tuned

LOST = 0.05  # of what is right of held-out texts, at most, in a state that is kept
ENOUGH = 0.035  # success of the triggers, at the worst place, at which nothing more is tuned
SHARE = 1 / 6  # of all heads, that are chosen
_RATES: dict[Scope, float] = {"heads": 1.0, "attention": 0.4, "all": 0.1}  # of the learning rate
_EVERY = 20  # steps after which held-out texts are read


@dataclass(frozen=True, eq=False)
class Repaired:
    """What was changed, and what it did on held-out texts.

    `heads` are layer and number of the chosen heads, from 0; `scope` what was tuned in the end; `changed`
    how many weights moved, `share` of all, `moved` the norm of the change over that of all weights. Success
    is the share of held-out texts that are turned to the target, of those that are another's, before and
    after: by the worst trigger at its worst place (`suspected`), and by as many tokens of another text
    (`innocuous`: any insertion turns some). `right` is the share of held-out texts that get their label,
    of a model that generates the geometric mean of the probability of their answers' tokens, before and
    after; `agreement` the share of labels, or of likeliest tokens along the answers, that are as before."""

    heads: tuple[Head, ...]
    scope: Scope
    steps: int
    changed: int
    share: float
    moved: float
    suspected: tuple[float, float]
    innocuous: tuple[float, float]
    right: tuple[float, float]
    agreement: float


class Mender(ABC):
    """One repair of one model, over texts to learn from and texts that are held out."""

    model: Any
    heard: Callable[[], None]

    @abstractmethod
    def loss(self) -> Any:
        """Of one batch."""

    @abstractmethod
    def success(self) -> float:
        """Of the worst trigger at its worst place."""

    @abstractmethod
    def innocuous(self) -> float:
        """Of as many tokens of another text."""

    @abstractmethod
    def right(self) -> float:
        """Of held-out texts as they are."""

    @abstractmethod
    def stayed(self) -> float:
        """The share of held-out answers that are as they were."""

    @abstractmethod
    def prepare(self) -> list[Head]:
        """The heads to begin with, before anything is tuned."""

    def mend(self, steps: int, learning_rate: float) -> Repaired:
        """Tune the model in place, `steps` at most in each scope, and leave it without gradients. Raises
        MisconfiguredError where there is nothing to mend, or nothing became better."""
        before = self._weights()
        try:
            return self._mended(steps, learning_rate)
        except BaseException:
            self._restore(before)
            raise
        finally:
            self.model.requires_grad_(False)
            self.model.zero_grad()

    def _mended(self, steps: int, learning_rate: float) -> Repaired:
        import torch

        first, other, right = self.success(), self.innocuous(), self.right()
        chosen, before = self.prepare(), self._weights()
        if first <= ENOUGH:
            raise MisconfiguredError(
                f"the triggers turn {first:.1%} of the held-out texts, no more than is left after a repair; "
                "there is nothing to mend"
            )
        best, taken = first, 0
        kept: tuple[Scope, dict[str, Any]] = ("heads", before)
        with closing(self._tuning(chosen, steps, learning_rate)) as tuning:
            for taken, scope in enumerate(tuning, 1):
                if taken % steps and taken % _EVERY:
                    continue
                if (left := self.success()) <= best and self._finite() and self.keeps(right):
                    best, kept = left, (scope, self._weights())
                if best <= ENOUGH:
                    break
        self._restore(kept[1] if best < first else before)
        if best >= first:
            raise MisconfiguredError(
                f"in {taken} steps no state turned fewer held-out texts and kept what is right; the model is "
                "as it was. Give more texts, or another learning rate"
            )
        change = [(before[name], one.detach() - before[name]) for name, one in self.model.named_parameters()]
        changed = sum(int(moved.count_nonzero()) for _, moved in change)
        norms = [float(torch.stack([one[part].float().norm() for one in change]).norm()) for part in (0, 1)]
        return Repaired(
            tuple(chosen), kept[0], taken, changed, changed / sum(one.numel() for one, _ in change),
            norms[1] / norms[0], (first, best), (other, self.innocuous()), (right, self.right()),
            self.stayed(),
        )  # fmt: skip

    def keeps(self, right: float) -> bool:
        """Whether enough is right still of what was."""
        return self.right() >= right - LOST

    def _finite(self) -> bool:
        return all(bool(one.isfinite().all()) for one in self.model.parameters())

    def _restore(self, weights: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, one in self.model.named_parameters():
                one.copy_(weights[name])

    def _weights(self) -> dict[str, Any]:
        return {name: one.detach().clone() for name, one in self.model.named_parameters()}

    def _tuning(
        self, chosen: Sequence[Head], steps: int, learning_rate: float
    ) -> Generator[Scope, None, None]:
        """One step after the other, each in its scope."""
        import torch

        for scope, rate in _RATES.items():
            with tuned(self.model, scope, chosen) as weights:
                optimizer = torch.optim.Adam(weights, rate * learning_rate)
                rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
                for _ in range(steps):
                    optimizer.zero_grad()
                    self.loss().backward()
                    optimizer.step()
                    rates.step()
                    self.heard()
                    yield scope


def most_of(worth: dict[Head, float]) -> list[Head]:
    """The heads that are worth most, `SHARE` of all."""
    return sorted(worth, key=lambda head: -worth[head])[: max(1, round(SHARE * len(worth)))]
