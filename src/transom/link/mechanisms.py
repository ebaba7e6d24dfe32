"""What a tunnel does to rows: the laws that others use, each with what it promises.

A mechanism is a value. `R3elu` and `R3eluDp` are in `r3elu`.
Threat model: the partner keeps every release and knows the mechanism; the randomness is not its.
Does not protect: `Nothing` and `Clipping` add no noise. The rounding of floats is not counted.
Source: Dwork and Roth 2014, theorem 3.6 (Laplace) and appendix A (Gaussian); Dong, Roth and Su 2022 (its
composition); Chatzikokolakis et al. 2013 (d_chi).

Legend: B rows, which are the records of a batch, D the values of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from transom.errors import MisconfiguredError, extra
from transom.privacy.account import ResponseEvent, gaussian
from transom.privacy.guarantee import Guarantee
from transom.privacy.noise import Floats, d_chi
from transom.privacy.stream import Stream

with extra("link", "torch"):
    import torch
    from torch import Tensor

_LEAST_CLIP = 1e-100
ASSUMPTIONS = (
    "what is released of other rows does not depend on the record, also not by weights that were trained on "
    "it",
    "each label is released once, with its own noise",
    "noise is float64 and its least bits are not those of the real law",
)


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
        return empirical(releases, "nothing is protected: the partner gets the values themselves")


@dataclass(frozen=True)
class Clipping:
    """Each row is shortened to the L2 norm `clip` if it is longer. Raises MisconfiguredError for a clip below
    1e-100, where squares are lost, or an infinite one."""

    clip: float

    def __post_init__(self) -> None:
        require_clip(self.clip)

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return clipped(x_BD, self.clip)

    def guarantee(self, releases: int) -> Guarantee:
        return empirical(releases, "nothing is protected but the length of a row")


@dataclass(frozen=True)
class Gaussian:
    """Each row is shortened to the L2 norm `clip` if it is longer, and gets N(0, sigma^2) on every value.

    Raises MisconfiguredError for a clip as `Clipping`, and unless sigma is 2e-6 to 2e12 times the clip.
    """

    clip: float
    sigma: float

    def __post_init__(self) -> None:
        self.guarantee(1)
        require_clip(self.clip)

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return clipped(x_BD, self.clip) + torch.from_numpy(stream.normal(x_BD.shape)).to(x_BD) * self.sigma

    def guarantee(self, releases: int) -> Guarantee:
        return Guarantee(
            kind="approximate-dp",
            unit=unit(releases),
            adjacency="any two rows (replace-one: they are up to twice the clip apart)",
            events=(gaussian(sigma=self.sigma, clip=self.clip, neighbours="replace-one", count=releases),),
            assumptions=ASSUMPTIONS,
            source="Dwork and Roth 2014, appendix A; Dong, Roth and Su 2022, corollary 3.3",
        )


@dataclass(frozen=True)
class Laplace:
    """Each row is shortened to the L1 norm `clip` if it is longer, and gets Laplace noise of `scale` on every
    value: epsilon is 2 clip / scale a release. Raises MisconfiguredError for a clip as `Clipping`, and for
    a scale that is not positive and finite."""

    clip: float
    scale: float

    def __post_init__(self) -> None:
        require_clip(self.clip)
        self.guarantee(1)

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return clipped(x_BD, self.clip, 1) + laplace(stream, x_BD) * self.scale

    def guarantee(self, releases: int) -> Guarantee:
        if not self.scale > 0:
            raise MisconfiguredError(f"the scale of Laplace noise must be positive, got {self.scale:g}")
        return Guarantee(
            kind="approximate-dp",
            unit=unit(releases),
            adjacency="any two rows (replace-one: they are up to twice the clip apart, in L1)",
            events=(ResponseEvent(epsilon=2 * self.clip / self.scale, count=releases),),
            assumptions=ASSUMPTIONS,
            source="Dwork and Roth 2014, theorem 3.6",
        )


@dataclass(frozen=True)
class DChi:
    """Each row is shortened to the L2 norm `clip` if it is longer, and gets noise of density exp(-eta |n|).

    Raises MisconfiguredError for a clip as `Clipping`, an eta that is not positive and finite, and rows of
    one value.
    """

    clip: float
    eta: float

    def __post_init__(self) -> None:
        require_clip(self.clip)
        if not 0 < self.eta < float("inf"):
            raise MisconfiguredError(f"eta must be positive and finite, got {self.eta:g}")

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        return clipped(x_BD, self.clip) + torch.from_numpy(
            d_chi(stream, len(x_BD), x_BD.shape[1], self.eta)
        ).to(x_BD)

    def guarantee(self, releases: int) -> Guarantee:
        return Guarantee(
            kind="metric-dp",
            unit=unit(releases),
            adjacency="two rows, for each unit of the L2 distance between them as they are clipped",
            epsilon=releases * self.eta,
            diameter=2 * self.clip,
            assumptions=ASSUMPTIONS,
            source="Chatzikokolakis et al. 2013, definition 1",
        )


def clipped(x_BD: Tensor, clip: float, p: int = 2) -> Tensor:
    """Rows of Lp norm at most `clip`, also after rounding; float64. Shorter ones stay as they are."""
    slack = 1 + (x_BD.shape[1] + 8) * 2.0**-52  # more than what the norm and the scaling can be off
    norm_B1: Tensor = torch.linalg.vector_norm(x_BD, p, dim=1, keepdim=True) * slack
    return x_BD * (clip / norm_B1).clamp(max=1.0)


def laplace(stream: Stream, like: Tensor) -> Tensor:
    """Laplace noise of scale 1, of the shape, the type and the device of `like`."""
    return torch.from_numpy(laplace_of(stream.uniform(tuple(like.shape)))).to(like)


def laplace_of(uniform: Floats) -> Floats:
    """Laplace noise of scale 1 made of numbers that are uniform in (0, 1), which it may overwrite."""
    uniform -= 0.5
    noise: Floats = np.copysign(np.log1p(-2 * np.abs(uniform)), uniform)
    return noise


def require_clip(clip: float) -> None:
    """Raises MisconfiguredError for one that is no positive, finite length whose square is one, too."""
    if not _LEAST_CLIP <= clip < float("inf"):
        raise MisconfiguredError(f"the clip must be at least {_LEAST_CLIP:g} and finite, got {clip:g}")


def empirical(releases: int, why: str, source: str = "") -> Guarantee:
    """No promise, and why."""
    return Guarantee(
        kind="empirical", unit=unit(releases), adjacency="any two rows", assumptions=(why,), source=source
    )


def unit(releases: int) -> str:
    """What a promise of so many releases is about."""
    return f"one row in each of {releases} releases"
