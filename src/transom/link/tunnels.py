"""Which tunnels there are, by name, and how strong one is for an epsilon of a whole run.

`epsilon` at `delta` is what all releases of a row cost together; the strength is found by pricing. `Budget`
counts releases by row, so that a run ends before a row is released once more than was paid for.
Threat model: as `mechanisms`. Does not protect: `none` and `clipping` have no epsilon, and that of `r3elu` is
the paper's claim, which fails.
Source: own.

Shapes: R rows, which are records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.privacy.guarantee import price

if TYPE_CHECKING:
    from transom.link.mechanisms import Mechanism

Name = Literal["none", "clipping", "gaussian", "laplace", "d_chi", "r3elu", "r3elu-dp"]
_PROVED = ("gaussian", "laplace", "d_chi", "r3elu-dp")
_STRENGTHS = (1e-5, 1e6)  # that are tried: deviation, scale and 1 / eta in clips, 1 / epsilon of a release
_DIGITS = 1e-3  # of a strength, relatively


@dataclass(frozen=True)
class TunnelSettings:
    """The mechanism that a party's rows pass, and what all their releases may cost.

    `clip` is the longest row (L2; of laplace L1), and of the r3elu ones a value's threshold. A row may be
    released `spare` times more than planned, for a step that is given out again. Gaussian noise may have a
    deviation `sigma`, or `mu`, that of the planned releases' mu-GDP, in the place of `epsilon`: then releases
    are counted, and none is refused.
    """

    kind: Name = "none"
    clip: Annotated[float | None, Setting("Longest row, or largest value.", above=0)] = None
    epsilon: Annotated[float | None, Setting("Of all releases of a row.", above=0)] = None
    sigma: Annotated[float | None, Setting("Of gaussian: deviation of each number.", above=0)] = None
    mu: Annotated[float | None, Setting("Of gaussian: of all releases planned.", above=0)] = None
    delta: Annotated[float, Setting("At which epsilon is counted.", least=0, most=0.1)] = 1e-6
    keep: Annotated[int, Setting("Of r3elu-dp: values of a row that may leave.", least=1)] = 1
    response: Annotated[float, Setting("Of r3elu-dp: share of the response.", above=0, most=1)] = 0.5
    signed: Annotated[bool, "Of the r3elu ones: values keep their signs, as gradients always do."] = False
    learns: Annotated[bool, "Of the r3elu ones: budgets follow what mattered so far."] = False
    spare: Annotated[int, Setting("Releases beside those planned.", least=0, most=10**6)] = 1

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        needs_clip, needs_epsilon = self.kind != "none", self.kind not in ("none", "clipping")
        if needs_clip != (self.clip is not None):
            yield f"{self.kind} {'wants' if needs_clip else 'has no'} clip"
        ways = sum(one is not None for one in (self.epsilon, self.sigma, self.mu))
        if self.kind == "gaussian" and ways != 1:
            yield "gaussian wants one of epsilon, sigma and mu"
        if self.kind != "gaussian" and needs_epsilon != (self.epsilon is not None):
            yield f"{self.kind} {'wants' if needs_epsilon else 'has no'} epsilon"
        if self.kind != "gaussian" and (self.sigma is not None or self.mu is not None):
            yield f"sigma and mu are of gaussian, not of {self.kind}"
        if self.kind != "r3elu-dp" and (self.keep, self.response) != (1, 0.5):
            yield f"keep and response are of r3elu-dp, not of {self.kind}"
        if (self.learns or self.signed) and not self.kind.startswith("r3elu"):
            yield f"learns and signed are of r3elu and r3elu-dp, not of {self.kind}"
        if self.signed and self.response == 1:
            yield "response: a signed value needs noise, which tells its sign; lower it"
        if self.kind == "gaussian" and self.delta == 0:
            yield "gaussian has no epsilon at delta 0; give a delta, such as 1e-6"

    def mechanism(self, releases: int, *, signed: bool) -> Mechanism:
        """For so many planned releases of a row; `signed` for gradients. Raises MisconfiguredError where no
        strength has so low a price."""
        return self.made(self.strength(releases, signed=signed), signed=signed)

    @lru_cache(maxsize=64)  # noqa: B019 - it is a value, and finding a strength takes a while
    def strength(self, releases: int, *, signed: bool) -> float:
        """How strong the mechanism is: deviation, scale or 1 / eta in clips, or 1 / epsilon of a release. Who
        keeps it has the same noise whatever prices later versions find. Raises as `mechanism`."""
        if self.kind in ("none", "clipping"):
            return 0.0
        if self.sigma is not None:
            return self.sigma / (self.clip or math.nan)
        if self.mu is not None:
            return 2 * math.sqrt(releases) / self.mu
        epsilon, total = self.epsilon or math.nan, releases + self.spare
        if self.kind == "r3elu":
            return total / epsilon
        return weakest(lambda strength: self.made(strength, signed=signed), total, epsilon, self.delta)

    def made(self, strength: float, *, signed: bool) -> Mechanism:
        """The mechanism of this strength."""
        from transom.link.mechanisms import Clipping, DChi, Gaussian, Laplace, Nothing
        from transom.link.r3elu import R3elu, R3eluDp

        clip, signed = self.clip or math.nan, signed or self.signed
        makes: dict[str, Callable[[], Mechanism]] = {
            "none": Nothing,
            "clipping": lambda: Clipping(clip),
            "gaussian": lambda: Gaussian(clip, self.sigma or clip * strength),
            "laplace": lambda: Laplace(clip, clip * strength),
            "d_chi": lambda: DChi(clip, 1 / (clip * strength)),
            "r3elu": lambda: R3elu(1 / strength, clip, signed=signed, learns=self.learns),
            "r3elu-dp": lambda: R3eluDp(
                1 / strength, clip, self.keep, self.response, signed=signed, learns=self.learns
            ),
        }
        return makes[self.kind]()

    def budget(self, mechanism: Mechanism, rows: int, kept: int = 0) -> Budget:
        """That of `rows` records, but for `kept` releases of each; without end where nothing is promised."""
        if self.kind not in _PROVED or self.epsilon is None:
            return Budget(np.zeros(rows, np.int64), math.inf)
        most = most_releases(mechanism, self.epsilon, self.delta)
        return Budget(np.zeros(rows, np.int64), most - kept)


@dataclass(frozen=True, eq=False)
class Budget:
    """How often each row was released, and how often it may be."""

    spent_R: NDArray[np.int64]
    most: float

    def affords(self, rows: Any) -> bool:
        """Whether one more release of these rows is paid for."""
        spent = self.spent_R[rows]
        return not len(spent) or int(spent.max()) < self.most

    def spend(self, rows: Any) -> None:
        """They are released."""
        self.spent_R[rows] += 1


def budget_report(settings: TunnelSettings, mechanism: Mechanism, releases: int) -> dict[str, Any]:
    """Of a run whose releases were all planned: how many, and what they cost of what was to be paid."""
    told: dict[str, Any] = {"kind": settings.kind, "releases": releases}
    if settings.kind in _PROVED:
        spent = price(mechanism.guarantee(releases), settings.delta)
        told |= {"epsilon": settings.epsilon, "delta": settings.delta, "spent": spent}
    return told


def weakest(make: Callable[[float], Mechanism], releases: int, epsilon: float, delta: float) -> float:
    """The least strength, within a thousandth, of a mechanism of which so many releases cost no more.
    Raises MisconfiguredError where none does."""
    low, high = _STRENGTHS
    if _price(make(high), releases, delta) > epsilon:
        raise MisconfiguredError(
            f"no strength has {releases} releases for epsilon {epsilon:g} at delta {delta:g}; raise epsilon"
        )
    while high / low > 1 + _DIGITS:
        middle = math.sqrt(low * high)
        if _price(make(middle), releases, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def most_releases(mechanism: Mechanism, epsilon: float, delta: float) -> int:
    """How many releases of a row cost no more."""
    low, high = 0, 1
    while high < 10**9 and _price(mechanism, high, delta) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _price(mechanism, middle, delta) <= epsilon else (low, middle)
    return low


def _price(mechanism: Mechanism, releases: int, delta: float) -> float:
    return price(mechanism.guarantee(releases), delta)
