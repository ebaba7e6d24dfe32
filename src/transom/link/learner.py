"""What one party trains: its parameters, AdamW, and a rate that rises and falls linearly, or stays.

The rate is a function of the count of steps, so there is no schedule to save beside the count.
Threat model: gradients that the partner made; one that is not finite is refused before it is applied.
Does not protect: against gradients that are finite and wrong.
Source: Loshchilov and Hutter, arXiv 1711.05101; torch's AdamW, in its `foreach` form (`fused` differs in
the last bits).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: up to `learning_rate` during the warm-up, then down towards 0 at the end, if it
    `decays`."""

    learning_rate: float
    warmup_steps: int
    total_steps: int
    decays: bool = True

    def rate(self, step: int) -> float:
        """Of the step of this number, from 0. It is above 0 until the end, so every step moves something."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if not self.decays:
            return self.learning_rate
        left = self.total_steps - step
        return self.learning_rate * max(0.0, left / (self.total_steps + 1 - self.warmup_steps))


class Learner:
    """Parameters by name, and what updates them. Gradients gather in them until `step`. `buffers` change
    with the forward passes, as a running mean does."""

    def __init__(
        self, parameters: Mapping[str, Parameter], rates: Schedule, weight_decay: float,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        import torch

        self.parameters, self.buffers = dict(sorted(parameters.items())), dict(buffers or {})
        self.rates = rates
        self.steps = 0
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=rates.learning_rate, weight_decay=weight_decay, foreach=True
        )

    def step(self) -> None:
        """Apply the gradients and forget them. Raises LinkRefusedError for one that is not finite."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and not is_finite(parameter.grad):
                raise LinkRefusedError(
                    f"the gradient of {name} is not finite at step {self.steps}, and was not applied; lower "
                    "the learning rate, or look at what the partner sends"
                )
        for group in self.optimiser.param_groups:
            group["lr"] = self.rates.rate(self.steps)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1

    def has_gradient(self, name: str) -> bool:
        """Whether any gradient other than zero has reached this parameter."""
        moments: Any = self.optimiser.state.get(self.parameters[name], {})
        return "exp_avg" in moments and bool((moments["exp_avg"] != 0).any())


def is_over(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought no lower loss than those before. NaN is no gain."""
    if patience is None or len(losses) <= patience:
        return False
    before = [loss for loss in losses[:-patience] if not math.isnan(loss)]
    return not any(loss < min(before, default=math.inf) for loss in losses[-patience:])
