"""R3eLU: randomised response and Laplace noise on activations and gradients; as printed, and proved.

`R3elu` is the paper's: the largest half of a row is kept, each value with a chance that grows with it, and
gets Laplace noise. Which values are the largest, and the maximum that chances are measured in, are not
covered by any noise, so its printed claim fails (`docs/tunnel.md`, and a test); it is `empirical`.
`R3eluDp` is Transom's: which values may leave is fixed or learnt from what was released before, and a fixed
threshold stands in the place of the maximum. Of a value v in [0, C] (signed: [-C, C]) with budget a + l
    kept with probability p = (1 - q) + (2q - 1) |v| / C,  q = e^a / (1 + e^a),  else 0 leaves;
    kept, v + Lap(width / l) leaves, drawn back into the range; width is C (signed: 2C).
Two values' densities differ by a factor of at most e^(a + l): p by e^a, Laplace's by e^l; 1 - p by e^a.
Budgets of the values that may leave add up to `epsilon`, and follow their importance I as I^(1/3), which
makes the sum of I times the noise's variance least. Nothing leaves of the others: 0 does.
With `denoise` what a receiver would expect of v leaves (of v uniform in its range): it needs no budget.

Threat model: as `mechanisms`. Does not protect: what `mechanisms` does not; rows and their order are public,
so nothing is amplified by sampling.
Source: Mao et al., ESORICS 2023, arXiv 2304.09515, sections 4 and 5 (`R3elu`); Warner 1965; Dwork and Roth
2014, theorems 3.6 and 3.16. `R3eluDp` and its proof are own.

Legend: B rows, D values of one, K of them that may leave, G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from transom.errors import MisconfiguredError, extra
from transom.link.mechanisms import ASSUMPTIONS, empirical, laplace, laplace_of, require_clip, unit
from transom.privacy.account import ResponseEvent, merged
from transom.privacy.guarantee import Guarantee
from transom.privacy.noise import Floats
from transom.privacy.stream import Stream

with extra("link", "torch"):
    import torch
    from torch import Tensor

_GRID = 513
_SOURCE = "Mao et al., arXiv 2304.09515"


@dataclass(frozen=True)
class R3elu:
    """As printed. `epsilon` is the paper's, of a release: half of it for responses, half for Laplace noise.

    Of a row the `kept` share of values of the largest amount go on, cut to `clip`. `importance` [D], which
    with `learns` is that of the values so far, replaces their size in the chances, and divides the noise's
    budget. `signed`: gradients, whose signs stay. Raises MisconfiguredError.
    """

    epsilon: float
    clip: float = 10.0
    kept: float = 0.5
    signed: bool = False
    learns: bool = False
    importance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_clip(self.clip)
        _require_epsilon(self.epsilon)
        _require_importance(self.importance)
        if not 0 < self.kept <= 1:
            raise MisconfiguredError(f"the share of values that is kept is above 0 up to 1, got {self.kept}")

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        amount_BD = x_BD.abs() if self.signed else x_BD.clamp(min=0.0)
        count = math.ceil(self.kept * x_BD.shape[1])
        amount_BK, places_BK = amount_BD.topk(count, dim=1)
        value_BK = x_BD.gather(1, places_BK).clamp(-self.clip if self.signed else 0.0, self.clip)
        amount_BK = amount_BK.clamp(max=self.clip)
        half = self.epsilon / 2
        weight_BK, share_BK = amount_BK, torch.full_like(amount_BK, 1 / count)
        if self.importance:
            weight_BK = _of_width(self.importance, x_BD).expand_as(x_BD).gather(1, places_BK)
            share_BK = weight_BK / weight_BK.sum(1, keepdim=True).clamp(min=1e-300)
        most_B1 = weight_BK.max(1, keepdim=True).values.clamp(min=1e-300)
        chance_BK = 0.5 + weight_BK / most_B1 * (_odds(half / count) - 0.5)
        noise_BK = laplace(stream, value_BK) * (2 * self.clip / half) / share_BK.clamp(min=1e-9)
        uniform_BK = torch.from_numpy(stream.uniform(tuple(value_BK.shape))).to(x_BD)
        noisy_BK = value_BK + noise_BK
        noisy_BK = noisy_BK if self.signed else noisy_BK.clamp(min=0.0)
        noisy_BK = torch.where(uniform_BK < chance_BK, noisy_BK, 0.0)
        return torch.zeros_like(x_BD).scatter(1, places_BK, noisy_BK)

    def guarantee(self, releases: int) -> Guarantee:
        return empirical(
            releases,
            f"the paper claims epsilon {self.epsilon:g} a release; which values are the largest, and the "
            "maximum that chances are measured in, show without noise, and two rows are told apart by them",
            _SOURCE,
        )


@dataclass(frozen=True)
class R3eluDp:
    """As proved. Raises MisconfiguredError for what no mechanism has, and when rows are narrower than `keep`.

    `epsilon` is that of one release of a row. Of a row `keep` values may leave: the first ones, or those of
    the largest `importance` [D]. `response` is the share of the budget for whether a value leaves, the rest
    is for the noise; without a rest the threshold leaves in a value's place. With `learns` the importance is
    learnt from what the partner answered to releases, and each release is priced as a whole.
    """

    epsilon: float
    clip: float = 1.0
    keep: int = 1
    response: float = 0.5
    signed: bool = False
    denoise: bool = True
    learns: bool = False
    importance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require_clip(self.clip)
        _require_epsilon(self.epsilon)
        _require_importance(self.importance)
        if not 0 < self.response <= 1:
            raise MisconfiguredError(f"the response's share is above 0 up to 1, got {self.response}")
        if self.response == 1 and self.signed:
            raise MisconfiguredError("a signed value needs noise, which tells its sign; lower the response")
        if self.keep < 1:
            raise MisconfiguredError(f"at least one value of a row must leave, got {self.keep}")
        if self.importance:
            self._require_width(len(self.importance))

    def privatise(self, x_BD: Tensor, stream: Stream) -> Tensor:
        rows_BD, law = x_BD.cpu().numpy(), self.law(x_BD.shape[1])  # for few values numpy is the faster
        value_BK = np.maximum(np.minimum(rows_BD[:, law.places], self.clip), law.low)
        drawn_BK, told_BK = stream.uniform((2, *value_BK.shape))
        kept_BK = drawn_BK < law.least_K + law.slope_K * np.abs(value_BK)
        if self.response < 1:
            told_BK = value_BK + law.scale_K * laplace_of(told_BK)
            told_BK = np.maximum(np.minimum(told_BK, self.clip), law.low)
        else:
            told_BK = np.full_like(value_BK, self.clip)
        dropped_K: Floats | float = 0.0
        if self.denoise:
            told_BK, dropped_K = self._expected(told_BK, law)
        released_BD = np.zeros_like(rows_BD)
        released_BD[:, law.places] = np.where(kept_BK, told_BK, dropped_K)
        return torch.from_numpy(released_BD).to(x_BD.device)

    def guarantee(self, releases: int) -> Guarantee:
        budgets = (self.epsilon,) if self.learns else self._budgets(len(self.importance) or self.keep)[1]
        counts = merged(ResponseEvent(epsilon=_up(budget), count=releases) for budget in budgets)
        return Guarantee(
            kind="approximate-dp",
            unit=unit(releases),
            adjacency="any two rows (replace-one)",
            events=tuple(event.times(count) for event, count in counts.items()),
            assumptions=(
                *ASSUMPTIONS,
                "which values may leave is public, or learnt from what the partner answered to releases",
            ),
            source=f"docs/tunnel.md; after {_SOURCE}",
        )

    def _budgets(self, width: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The places of the values that may leave, in order, and the share of epsilon of each."""
        self._require_width(width)
        return budgets(self.importance or (1.0,) * width, self.keep, self.epsilon)

    def _require_width(self, width: int) -> None:
        if width < self.keep or (self.importance and len(self.importance) != width):
            raise MisconfiguredError(
                f"rows have {width} values; {self.keep} of {len(self.importance) or 'them'} may leave"
            )

    @lru_cache(maxsize=64)  # noqa: B019 - it is a value, and its law costs as much as a release
    def law(self, width: int) -> Law:
        """That of each value of rows of this width. Raises MisconfiguredError for a width below `keep`."""
        from scipy.special import expit

        places, shares = self._budgets(width)
        low, share_K = -self.clip if self.signed else 0.0, np.array(shares)
        least_K = expit(-share_K * self.response)  # 1 - q, also where e^a is beyond floats
        scale_K = (self.clip - low) / (share_K * max(1 - self.response, 1e-300))
        slope_K = (1 - 2 * least_K) / self.clip
        return Law(list(places), shares, low, least_K, slope_K, scale_K)

    def expectation(self, width: int, place: int) -> tuple[Floats, Floats]:
        """What may be told of a value [G], and the value that is expected of it then [G], in clips."""
        share = self.law(width).shares[place]
        share = _coarse(share) if self.learns else share
        return _expectations(share * self.response, share * (1 - self.response), self.signed)[:2]

    def _expected(self, told_BK: Floats, law: Law) -> tuple[Floats, Floats]:
        """What is expected of v where it is uniform in its range: given what was told, and given that
        nothing was [K]."""
        shares = [_coarse(share) for share in law.shares] if self.learns else law.shares
        tables = [
            _expectations(share * self.response, share * (1 - self.response), self.signed) for share in shares
        ]
        dropped_K, told_BK = self.clip * np.array([dropped for _, _, dropped in tables]), told_BK / self.clip
        if len(set(law.shares)) == 1:
            return self.clip * np.interp(told_BK, *tables[0][:2]), dropped_K
        columns = [np.interp(told_B, *table[:2]) for told_B, table in zip(told_BK.T, tables, strict=True)]
        return self.clip * np.stack(columns, axis=1), dropped_K


@dataclass(frozen=True, eq=False)
class Law:
    """Of rows of one width: the places of the values that may leave, the share of epsilon and the scale of
    the noise of each; one is kept with probability least + slope |v|, and `low` is the least there is."""

    places: list[int]
    shares: tuple[float, ...]
    low: float
    least_K: Floats
    slope_K: Floats
    scale_K: Floats


def budgets(
    importance: Sequence[float], keep: int, epsilon: float
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The places of the `keep` most important values, in order, and the share of epsilon that each has: as
    the cube root of its importance. A value of no importance has none."""
    chosen = sorted(range(len(importance)), key=lambda place: -importance[place])[:keep]
    places = tuple(sorted(place for place in chosen if importance[place] > 0)) or tuple(sorted(chosen))
    roots = [importance[place] ** (1 / 3) or 1.0 for place in places]
    total = math.fsum(roots)
    return places, tuple(epsilon * root / total for root in roots)


def importance(values_BD: Tensor, gradients_BD: Tensor) -> Tensor:
    """How much each value [D] matters for the loss: the mean over rows of (gradient times value)^2, the
    first Taylor term of what leaving it out would change."""
    found_D: Tensor = (values_BD.double() * gradients_BD.double()).square().mean(0)
    return found_D


@lru_cache(maxsize=256)
def _expectations(response: float, noise: float, signed: bool) -> tuple[Floats, Floats, float]:
    """Of a range whose threshold is 1: points told [G], the v expected for each, and for a value dropped."""
    v_G = np.linspace(-1.0 if signed else 0.0, 1.0, _GRID)
    odds = _odds(response)
    chance_G = (1 - odds) + (2 * odds - 1) * np.abs(v_G)
    dropped = 0.0 if signed else float(((1 - chance_G) * v_G).sum() / (1 - chance_G).sum())
    rate = noise / (v_G[-1] - v_G[0])
    likely_GG = np.exp(-rate * np.abs(v_G[:, None] - v_G)) * chance_G  # told by v
    return v_G, (likely_GG * v_G).sum(1) / likely_GG.sum(1), dropped


def _coarse(epsilon: float) -> float:
    """Within a hundredth: what is learnt changes at each step, and a table serves its neighbours as well."""
    return math.exp(round(math.log(epsilon) / 0.02) * 0.02)


def _odds(epsilon: float) -> float:
    """The chance of a true answer under randomised response."""
    return 1 / (1 + math.exp(-epsilon))  # epsilon is positive, so nothing overflows


def _of_width(importance_D: Sequence[float], x_BD: Tensor) -> Tensor:
    if len(importance_D) != x_BD.shape[1]:
        raise MisconfiguredError(f"rows have {x_BD.shape[1]} values, and importance {len(importance_D)}")
    return torch.tensor(importance_D).to(x_BD)


def _up(epsilon: float) -> float:
    """More than the roundings of a division of the budget."""
    return epsilon * (1 + 1e-14)


def _require_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise MisconfiguredError(f"epsilon must be positive and finite, got {epsilon:g}")


def _require_importance(importance_D: Sequence[float]) -> None:
    if not all(0 <= one < math.inf for one in importance_D):
        raise MisconfiguredError("importance is of finite numbers that are not negative")
