"""What releases cost together: events, one convention of neighbours, and the epsilon of many at a delta.

An event is one release, described for two neighbouring inputs; `count` of them compose. Noise is measured in
sensitivities: the largest distance between what two neighbours contribute. `sensitivity` alone knows how
neighbours differ, so the sums below hold for either kind: two outputs at distance 1 are what dp-accounting
calls add-or-remove, and its replace-one (which doubles the sensitivity once more, or in its Renyi accountant
does not) is never asked for. Poisson sampling is the exception: it is defined for add-or-remove alone.
Pure epsilons add up, Gaussians are one Gaussian (closed form), all else goes through dp-accounting's privacy
loss distributions. Every rounding is upwards, and events that are added never lower the price.
Threat model: that of the mechanisms. Does not protect: an event is a claim about a mechanism. The error of
dp-accounting's Fourier transforms is measured by tests and not bounded by proof.
Source: Balle and Wang 2018, theorem 8 (Gaussian); Dong, Roth and Su 2022, corollary 3.3 (composition of
Gaussians); Dwork and Roth 2014, theorem 3.16; Doroshenko et al. 2022 (privacy loss distributions); Kairouz,
Oh and Viswanath 2015 (what is pure is a randomised response, seen through a channel).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self, TypeGuard

from transom.errors import MisconfiguredError, NotYetError, extra

Neighbours = Literal["replace-one", "add-or-remove"]
LEAST_DELTA = 1e-10  # below it the rounding errors of a Fourier transform would count
_MOST_COUNT = 10**9
_GRID_POINTS = 2**16
_MOST_LOSS = 1e6  # beyond it only bounds
_MOST_EPSILON = 700.0  # e^-700 is about the least float64 with all its digits
_TAILS = 9.0  # standard deviations that the grid should hold


@dataclass(frozen=True, kw_only=True)
class Event:
    """`count` releases of one kind. Raises MisconfiguredError for parameters that no mechanism has."""

    name: ClassVar[str]
    count: int = 1

    def __post_init__(self) -> None:
        for field, value in self.parameters().items():
            low, high, bounds = _RANGES[field]
            if not isinstance(value, float | int) or not low < value <= high:
                raise MisconfiguredError(f"{field} of a {self.name} event must be {bounds}, got {value}")
            object.__setattr__(self, field, float(value))  # one spelling of each event
        if type(self.count) is not int or not 1 <= self.count <= _MOST_COUNT:
            raise MisconfiguredError(
                f"a {self.name} event happens 1 to {_MOST_COUNT} times, got {self.count!r:.20}"
            )

    def parameters(self) -> dict[str, float]:
        """All that describes one release."""
        return {field: value for field, value in asdict(self).items() if field != "count"}

    def times(self, count: int) -> Self:
        """As many times as often."""
        return replace(self, count=self.count * count)

    def to_dict(self) -> dict[str, Any]:
        return {"event": self.name, **self.parameters(), "count": self.count}


@dataclass(frozen=True, kw_only=True)
class PureEvent(Event):
    """A release under pure differential privacy."""

    name: ClassVar[str] = "pure"
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class ResponseEvent(Event):
    """A pure release that composes at a delta as the worst of its kind: a randomised response."""

    name: ClassVar[str] = "response"
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class ApproximateEvent(Event):
    """A release of which nothing but (epsilon, delta) is known."""

    name: ClassVar[str] = "approximate"
    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class LaplaceEvent(Event):
    """Laplace noise of scale `noise`, in sensitivities (L1)."""

    name: ClassVar[str] = "laplace"
    noise: float


@dataclass(frozen=True, kw_only=True)
class GaussianEvent(Event):
    """Gaussian noise of standard deviation `noise`, in sensitivities (L2).

    With `sampling` below 1 each record takes part with that probability, independently and in secret;
    neighbours then are add-or-remove: `gaussian` refuses the other kind.
    """

    name: ClassVar[str] = "gaussian"
    noise: float
    sampling: float = 1.0


_RANGES = {
    "epsilon": (-math.ulp(0.0), math.inf, "at least 0"),
    "delta": (0.0, math.nextafter(1.0, 0.0), "above 0 and below 1"),
    "noise": (1e-6, 1e12, "above 1e-6 and at most 1e12"),
    "sampling": (0.0, 1.0, "above 0 and at most 1"),
}
_KINDS: dict[str, type[Event]] = {
    kind.name: kind for kind in (PureEvent, ResponseEvent, ApproximateEvent, LaplaceEvent, GaussianEvent)
}


_PURE = PureEvent | ResponseEvent | LaplaceEvent  # with an epsilon at delta 0


def event_from(record: Any) -> Event:
    """The event that `to_dict` described. Raises NotYetError for a kind that this version does not know."""
    name = str(record.get("event")) if isinstance(record, dict) else "none"
    if name not in _KINDS:
        raise NotYetError(
            f"the event {name[:40]!r} is not known; known: {', '.join(_KINDS)}. Use a newer Transom"
        )
    try:
        return _KINDS[name](**{field: value for field, value in record.items() if field != "event"})
    except TypeError:
        raise MisconfiguredError(f"a {name} event has other fields than those given") from None


def sensitivity(clip: float, neighbours: Neighbours) -> float:
    """How far apart the contributions of two neighbours are, when each has at most the norm `clip`."""
    if neighbours not in ("replace-one", "add-or-remove"):
        raise MisconfiguredError(f"neighbours are replace-one or add-or-remove, got {neighbours!r:.20}")
    return 2 * clip if neighbours == "replace-one" else clip


def gaussian(
    *, sigma: float, clip: float, neighbours: Neighbours, sampling: float = 1.0, count: int = 1
) -> GaussianEvent:
    """The event of adding N(0, sigma^2) to each coordinate of contributions of L2 norm at most `clip`.

    Raises NotYetError for sampling with replace-one neighbours, MisconfiguredError.
    """
    if sampling < 1 and neighbours == "replace-one":
        raise NotYetError(
            "sampled Gaussian events are priced for add-or-remove neighbours alone; "
            "account without sampling, or with the other neighbours"
        )
    if not 0 < clip < math.inf:
        raise MisconfiguredError(f"contributions are clipped to a positive norm, got {clip}")
    return GaussianEvent(noise=sigma / sensitivity(clip, neighbours), sampling=sampling, count=count)


def compose(events: Iterable[Event], delta: float) -> float:
    """The epsilon that all events together have at `delta`: an upper bound, infinite where none is known.

    Raises MisconfiguredError for a delta that is neither 0 nor within LEAST_DELTA and 1, or is 0 with events
    that have no epsilon there; MissingExtraError where dp-accounting is needed and absent.
    """
    if delta != 0 and not LEAST_DELTA <= delta < 1:
        raise MisconfiguredError(f"delta must be 0, or at least {LEAST_DELTA:g} and below 1, got {delta}")
    counts = merged(events)
    unbounded = {event.name for event in counts if not isinstance(event, _PURE)}
    if delta == 0 and unbounded:
        raise MisconfiguredError(
            f"{' and '.join(sorted(unbounded))} events have no epsilon at delta 0; give a delta, such as 1e-6"
        )
    simple = _sum(counts, delta)
    pure = {event: count for event, count in counts.items() if _adds_up(event)}
    if delta == 0 or len(pure) == len(counts):
        return simple
    rest = tuple(sorted(counts.items() - pure.items(), key=repr))
    return min(simple, math.nextafter(_sum(pure, delta) + _composed(rest, delta), math.inf))


def _adds_up(event: Event) -> bool:
    """Whether it is counted by simple composition alone: all that is known of pure events, and enough of
    responses that hide next to nothing."""
    if isinstance(event, ResponseEvent):
        return event.epsilon > _MOST_EPSILON
    return isinstance(event, PureEvent)


def merged(events: Iterable[Event]) -> Counter[Event]:
    """How often each single release happens."""
    counts: Counter[Event] = Counter()
    for event in events:
        counts[replace(event, count=1)] += event.count
    return counts


def _sum(counts: Mapping[Event, int], delta: float) -> float:
    """Epsilons and deltas added up; infinite where there are none."""
    epsilon = spent_delta = Fraction(0)
    for event, count in counts.items():
        if isinstance(event, LaplaceEvent):
            epsilon += count / _exact(event.noise)
        elif isinstance(event, PureEvent | ResponseEvent | ApproximateEvent) and event.epsilon < math.inf:
            epsilon += count * _exact(event.epsilon)
            spent_delta += count * _exact(getattr(event, "delta", 0.0))
        else:
            return math.inf
    nearest = float(epsilon) if spent_delta <= _exact(delta) else math.inf
    return nearest if nearest == math.inf or nearest >= epsilon else math.nextafter(nearest, math.inf)


def _exact(value: float) -> Fraction:
    """The shortest decimal that reads back as `value`: 0.1 is a tenth."""
    return Fraction(repr(value))


@lru_cache(maxsize=1024)
def _composed(counts: tuple[tuple[Event, int], ...], delta: float) -> float:
    """The epsilon of events that are not pure."""
    others = [(event, count) for event, count in counts if not _is_plain(event)]
    variance = math.fsum(count / event.noise**2 for event, count in counts if _is_plain(event))
    mu = math.sqrt(variance) * (1 + 1e-14)
    return _pld_epsilon(others, mu, delta) if others else gaussian_epsilon(mu, delta)


def _is_plain(event: Event) -> TypeGuard[GaussianEvent]:
    return isinstance(event, GaussianEvent) and event.sampling == 1


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at `delta` > 0 of a Gaussian mechanism with sensitivity over deviation `mu`, rounded up."""
    from scipy.optimize import brentq

    if mu == 0:
        return 0.0
    target = math.log(delta) + math.log1p(-_slack(delta))
    most = mu * mu / 2 + mu * math.sqrt(-2 * target)  # by the normal distribution's tail bound
    if most > _MOST_LOSS or not math.isfinite(most):
        return most
    if _gaussian_log_delta(mu, 0.0) <= target:
        return 0.0
    found = brentq(lambda epsilon: _gaussian_log_delta(mu, epsilon) - target, 0.0, most, xtol=1e-15 * mu)
    return float(found)


def _gaussian_log_delta(mu: float, epsilon: float) -> float:
    from scipy.special import log_ndtr

    reached = float(log_ndtr(mu / 2 - epsilon / mu))
    allowed = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return reached + math.log(-math.expm1(allowed - reached)) if allowed < reached else -math.inf


def _slack(delta: float) -> float:
    """By how much less of `delta` is used, relatively, than is given: more than the rounding errors below."""
    return 1e-9 + 1e-14 / delta


def _pld_epsilon(events: Sequence[tuple[Event, int]], mu: float, delta: float) -> float:
    """The epsilon of these events and a Gaussian of `mu`, by privacy loss distributions."""
    with extra("accounting", "dp-accounting"):
        import numpy as np
        from dp_accounting.pld import common, privacy_loss_distribution
    reach = sum(_reach(event, count) for event, count in events) + mu * mu / 2 + _TAILS * mu
    largest = max((event.epsilon for event, _ in events if isinstance(event, ApproximateEvent)), default=0.0)
    if reach > _MOST_LOSS or largest > _MOST_EPSILON:
        return math.inf
    grid = {"value_discretization_interval": 2.0 ** math.ceil(math.log2(max(reach, 1e-6) / _GRID_POINTS))}
    make = privacy_loss_distribution
    total = make.from_gaussian_mechanism(1 / mu, **grid) if mu else make.identity(**grid)
    for event, count in events:
        if isinstance(event, GaussianEvent):
            one = make.from_gaussian_mechanism(event.noise, sampling_prob=event.sampling, **grid)
        elif isinstance(event, LaplaceEvent):
            one = make.from_laplace_mechanism(event.noise, **grid)
        elif isinstance(event, ApproximateEvent | ResponseEvent):
            spent_delta = getattr(event, "delta", 0.0)
            known = common.DifferentialPrivacyParameters(event.epsilon, spent_delta)
            one = make.from_privacy_parameters(known, **grid)
        else:
            raise NotYetError(f"{event.name} events cannot be composed; use a newer Transom")
        total = total.compose(one.self_compose(count))
    with np.errstate(over="ignore"):  # of epsilons that are infinite by the next line
        found = float(total.get_epsilon_for_delta(delta * (1 - _slack(delta))))
    return found if found <= _MOST_EPSILON else math.inf


def _reach(event: Event, count: int) -> float:
    """About the largest loss that matters. Grids are powers of two and grow with it: a coarser one is never
    below a finer one, so that more events are never cheaper."""
    if isinstance(event, GaussianEvent):
        mu = 1 / event.noise
        drawn = event.sampling * math.sqrt(count * math.expm1(min(mu * mu, 700.0)))
        plain = math.sqrt(count) * mu
        return min(plain**2 / 2 + _TAILS * plain, drawn**2 / 2 + _TAILS * drawn + mu**2 / 2 + _TAILS * mu)
    loss = 1 / event.noise if isinstance(event, LaplaceEvent) else event.parameters()["epsilon"]
    return min(count * loss, loss * (count * math.tanh(loss / 2) + _TAILS * math.sqrt(count)))
