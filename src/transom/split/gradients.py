"""What the customer's gradients pass where it has the head: they tell its labels.

A row is the gradient at one target's top state, of that target's own loss: it is released once a step, so
once an epoch. A classifier's head reads one token of a text, and the rows of the others are zero whatever the
text is, so they go as zeros. Noise is of the run, the step and the micro-batch: a step that is computed again
after a kill sends what it sent.
Threat model: the vendor keeps all gradients, knows the head's shape and the states, and no secret.
Does not protect: the loss that is trained on falls, and the head learns from the labels without noise; rows
of other texts depend on it.
Source: own; the mechanisms: `transom.link.mechanisms`, `transom.link.r3elu`.

Shapes: B batch, T tokens, N real tokens of a batch, K rows that a head reads, D width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError, NotYetError
from transom.link.mechanisms import Nothing
from transom.link.message import Step
from transom.link.tunnel import Tunnel
from transom.link.tunnels import budget_report
from transom.privacy.stream import SECRET_BYTES, Stream
from transom.split.job import SplitJob
from transom.split.messages import packed

if TYPE_CHECKING:
    from torch import Tensor


class Gradients:
    """Of a run; a classifier's head reads the last token of a text where the model is `causal`, else the
    first. `strength` is `Settled.gradient_strength`."""

    def __init__(self, job: SplitJob, strength: float, secret: bytes, run: str, *, causal: bool) -> None:
        self._settings, self._reads_all, self._causal = job.gradient_tunnel, job.task == "causal", causal
        self._releases = job.train.epochs
        self.mechanism = self._settings.made(strength, signed=True)
        self._tunnel = Tunnel(Nothing(), self.mechanism, secret, run)

    def require_width(self, width: int) -> None:
        """Raises MisconfiguredError for rows that the mechanism does not take."""
        import torch

        self.mechanism.privatise(
            torch.zeros(1, width, dtype=torch.float64), Stream(bytes(SECRET_BYTES), "tried")
        )

    def __call__(self, gradient_BTD: Tensor, mask_BT: Tensor, targets: int, step: Step) -> Tensor:
        """The rows [N, D] to send of the gradient of the mean loss of so many targets.

        Raises LinkRefusedError for values that are not finite, NotYetError for a classifier whose head reads
        another token.
        """
        import torch

        if self._settings.kind == "none":
            return packed(gradient_BTD, mask_BT)
        read_BT = self._read(mask_BT)
        if not is_finite(gradient_BTD):
            raise LinkRefusedError(
                f"gradients of step {step} are not finite; nothing left. Lower the learning rate"
            )
        if bool((gradient_BTD[~read_BT] != 0).any()):
            raise NotYetError(
                "this model's head reads other tokens of a text than its first or last one, whose gradients "
                "no tunnel takes; leave gradient_tunnel out, or pool"
            )
        released_BTD = torch.zeros_like(gradient_BTD)
        released_BTD[read_BT] = self._tunnel.release(gradient_BTD[read_BT] * targets, step) / targets
        return packed(released_BTD, mask_BT)

    def _read(self, mask_BT: Tensor) -> Tensor:
        """Which tokens the head reads; rows are padded on the right."""
        real_BT = mask_BT != 0
        if self._reads_all:
            return real_BT
        places_BT = mask_BT.cumsum(1)
        return real_BT & (places_BT == (places_BT[:, -1:] if self._causal else 1))

    def report(self) -> dict[str, Any] | None:
        """What they pass, what that costs and what it promises; ready for JSON. None without a tunnel."""
        if self._settings.kind == "none":
            return None
        unit = "one token's label" if self._reads_all else "one text's label"
        guarantee = replace(self.mechanism.guarantee(self._releases), unit=f"{unit}, in all epochs")
        told = budget_report(self._settings, self.mechanism, self._releases)
        return {**told, "guarantee": guarantee.to_dict()}
