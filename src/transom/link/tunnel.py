"""The place where tensors leave a party: privatised on the way forth, and their gradients on the way back.

A tunnel stands between the parts of a model. Forward it hands each row, flattened, to one mechanism;
backward, by autograd, it hands the gradient that comes back to another. The gradient passes the forward
mechanism unchanged (straight through). Noise is labelled by run, topic, epoch, batch, direction and attempt:
a step that is computed again has the noise of the first time.
Threat model: the partner keeps every release, of every epoch, and knows everything but the secret.
Does not protect: sizes, steps and their times. A promise is for the row itself: weights that were trained
on a record carry it into other rows, which no noise on its own row covers. Values are rounded after float64
noise, and the noise has the bits of floating point.
Source: Dwork and Roth 2014, appendix A (Gaussian noise); Dong, Roth and Su 2022 (its composition).

Legend: B rows, which are the records of a batch, D the values of one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError, MisconfiguredError, extra
from transom.link.message import Step
from transom.privacy.account import gaussian
from transom.privacy.guarantee import Guarantee
from transom.privacy.stream import Direction, Stream, step_label

with extra("link", "torch"):
    import torch
    from torch import Tensor, nn
    from torch.autograd.function import once_differentiable

_LEAST_CLIP = 1e-100
_REMEMBERED = 2**16  # labels of which a tunnel knows what was released


class Mechanism(Protocol):
    """How rows are privatised, and what that promises. A frozen dataclass, so that it says what it is."""

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        """The rows to release, of the same shape; `x_BD` is float64 and finite. The randomness is that of
        `stream` alone."""
        ...

    def guarantee(self, releases: int) -> Guarantee:
        """What so many releases of one row promise together."""
        ...


@dataclass(frozen=True)
class Nothing:
    """Rows as they are."""

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return x_BD

    def guarantee(self, releases: int) -> Guarantee:
        return Guarantee(
            kind="empirical",
            unit=_unit(releases),
            adjacency="any two rows",
            assumptions=("nothing is protected: the partner gets the values themselves",),
        )


@dataclass(frozen=True)
class Gaussian:
    """Each row is shortened to the L2 norm `clip` if it is longer, and gets N(0, sigma^2) on every value.

    Raises MisconfiguredError for a clip that is not positive and finite, or is below 1e-100, where squares
    are lost; and unless sigma is 2e-6 to 2e12 times the clip.
    """

    clip: float
    sigma: float

    def __post_init__(self) -> None:
        self.guarantee(1)
        if self.clip < _LEAST_CLIP:
            raise MisconfiguredError(f"the clip must be at least {_LEAST_CLIP:g}, got {self.clip:g}")

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return clipped(x_BD, self.clip) + torch.from_numpy(stream.normal(x_BD.shape)).to(x_BD) * self.sigma

    def guarantee(self, releases: int) -> Guarantee:
        return Guarantee(
            kind="approximate-dp",
            unit=_unit(releases),
            adjacency="any two rows (replace-one: they are up to twice the clip apart)",
            events=(gaussian(sigma=self.sigma, clip=self.clip, neighbours="replace-one", count=releases),),
            assumptions=(
                "what is released of other rows does not depend on the record, also not by weights that "
                "were trained on it",
                "each label is released once, with its own noise",
                "noise is float64 and its least bits are not those of a real Gaussian",
            ),
            source="Dwork and Roth 2014, appendix A; Dong, Roth and Su 2022, corollary 3.3",
        )


def clipped(x_BD: Tensor, clip: float) -> Tensor:
    """Rows of L2 norm at most `clip`, also after rounding; float64. Shorter ones stay as they are."""
    slack = 1 + (x_BD.shape[1] + 8) * 2.0**-52  # more than what the norm and the scaling can be off
    norm_B1: Tensor = torch.linalg.vector_norm(x_BD, dim=1, keepdim=True) * slack
    return x_BD * (clip / norm_B1).clamp(max=1.0)


class Tunnel(nn.Module):
    """Calls of `tunnel(x, step)` release `x` [B, ...] and, when gradients come back, theirs.

    `secret` is 32 bytes that the partner does not have: `Record.secret`, the same whenever the run goes on.
    One tunnel has it; with two, two values would have one noise. It is not in the module's state. A label
    whose first release had another input is refused, since the noise would cancel out (of the last 65,536
    labels; that what was sent is sent no other way is the record's).
    """

    def __init__(self, forward: Mechanism, backward: Mechanism, secret: bytes, run: str) -> None:
        super().__init__()
        Stream(secret, step_label(run, 0, 0, "forward"))  # refuses a secret or a run that is none
        self.mechanisms: dict[Direction, Mechanism] = {"forward": forward, "backward": backward}
        self._secret, self._run = secret, run
        self._released: dict[str, bytes] = {}

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """The release of `x` for a step that goes forward: of its shape, type and device."""
        if step.direction != "forward":
            raise MisconfiguredError(
                "a tunnel is entered by a step that goes forward; call `release` instead"
            )
        privatised: Tensor = _Crossing.apply(x, self, step)  # type: ignore[no-untyped-call]
        return privatised

    def release(self, x: Tensor, step: Step) -> Tensor:
        """What may leave for a step in its direction; no gradient passes.

        Raises LinkRefusedError for values that are not finite and for a label that had another input,
        MisconfiguredError for a tensor without rows or of integers.
        """
        if not x.ndim or not x.is_floating_point():
            raise MisconfiguredError(f"a tunnel takes rows of floats, got {x.dtype} of {x.ndim} dimensions")
        label = step_label(
            self._run, step.epoch, step.batch, step.direction, topic=step.topic, attempt=step.attempt
        )
        x, mechanism = x.detach(), self.mechanisms[step.direction]
        if not is_finite(x):
            raise LinkRefusedError(
                f"values of step {step} are not finite; nothing left. Try a lower learning rate"
            )
        self._remember(label, x)
        if isinstance(mechanism, Nothing):  # what follows would take a third of a message's time for it
            return x.clone()
        x_BD = x.double().reshape(len(x), math.prod(x.shape[1:]))
        y_BD = mechanism.privatise(x_BD, Stream(self._secret, label))
        return y_BD.reshape(x.shape).to(x.dtype, copy=True)

    def __reduce__(self) -> NoReturn:
        raise MisconfiguredError(
            "a tunnel is neither copied nor pickled: two would give two values one noise, and it holds the "
            "run's secret; copy the parts of the model around it"
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={mechanism}" for name, mechanism in self.mechanisms.items())

    def _remember(self, label: str, x: Tensor) -> None:
        """Raises LinkRefusedError if another input had the label."""
        kind = f"{x.dtype} {tuple(x.shape)} ".encode()
        values = x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest = hashlib.sha256(kind + values).digest()[:16]
        if self._released.setdefault(label, digest) != digest:
            raise LinkRefusedError(
                f"{label} was released already, of another input: the difference would have no noise. Give "
                "the step another attempt, and charge it"
            )
        if len(self._released) > _REMEMBERED:
            del self._released[next(iter(self._released))]


class _Crossing(torch.autograd.Function):
    """Releases the values forward, and their gradients backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tunnel: Tunnel, step: Step) -> Tensor:
        ctx.tunnel, ctx.step = tunnel, step
        return tunnel.release(x, step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.tunnel.release(gradient, replace(ctx.step, direction="backward")), None, None


def _unit(releases: int) -> str:
    return f"one row in each of {releases} releases"
