"""The epsilon distinguisher: is a mechanism that claims (epsilon, delta) caught breaking its claim?

Half of the samples teach an event, the outputs that look likelier on input `a` than on `b` (a set of outputs,
or for vectors a learned score above a threshold); the other half counts how often it happens on each.
Clopper-Pearson bounds turn the counts into a certificate: when the lower bound on one input exceeds e^epsilon
times the upper bound on the other, plus delta, the claim is rejected. Both directions are tried.

Threat model: the attacker chooses both inputs and sees as many outputs as it asks for, nothing else.
Does not prove privacy: a claim that survives was not caught on these two inputs with these samples. A
mechanism that holds its claim is rejected with probability `alpha` at most (four one-sided bounds, each at
alpha / 4), as long as its outputs are independent draws: where draws share state, give each call fresh state
of its own.
Source: Ding et al. 2018, "Detecting violations of differential privacy"; Jagielski et al. 2020, arXiv
2006.07709; Clopper and Pearson 1934.

Shapes: N outputs, K thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from transom.audit.attacks.projections import scores, thresholds
from transom.audit.draws import Draws, Encoder, Samples, draw
from transom.errors import MisconfiguredError
from transom.report.finding import Finding
from transom.report.metrics import EPSILON_METRIC
from transom.report.statistics import Bools, Floats, Ints, bounds

NAME, METRIC = "epsilon distinguisher", EPSILON_METRIC
_DRAWING = 0.9  # of the budget; the rest is for learning
_RARE = 0.1  # a smaller share of outputs that were seen before shows next to nothing


@dataclass(frozen=True)
class Claim:
    """The target: a mechanism at `place` (module:callable) and what it claims."""

    place: str
    epsilon: float
    delta: float = 0.0


@dataclass(frozen=True)
class Inputs:
    """Two JSON values that the claim calls neighbours, and how often to draw on each."""

    a: object
    b: object
    samples: int = 20_000
    alpha: float = 0.01


@dataclass(frozen=True)
class Event:
    """A set of outputs, in words and as a test of outputs."""

    name: str
    contains: Callable[[Any], Bools]


@dataclass(frozen=True, kw_only=True)
class EpsilonFinding:
    """`epsilon_lower` holds with confidence 1 - `alpha`; `hits` counts its event in `trials` draws each.

    `direction` names the input on which the event is likelier.
    """

    epsilon_claimed: float
    delta: float
    epsilon_lower: float
    rejected: bool
    direction: str
    event: str
    hits: tuple[int, int]
    trials: int
    alpha: float


def attack(target: Claim, knowledge: object, data: Inputs, budget_s: float) -> Finding:
    """What the distinguisher certifies; `above_chance` says that the claim is rejected.

    Raises MisconfiguredError for a mechanism that cannot be drawn from, and where nothing could be refuted:
    too few draws, or outputs that never repeat.
    """
    drawn = draw(target.place, data.a, data.b, data.samples, _DRAWING * budget_s)
    short = ""
    if (count := len(drawn.a)) < data.samples:
        most = most_certified(count, target.delta, data.alpha)
        short = f"the budget allowed {count} of {data.samples} draws, which certify {most:.3g} at most"
        if most <= target.epsilon:
            raise MisconfiguredError(f"{short}; raise --budget")
    found = judge(drawn, epsilon=target.epsilon, delta=target.delta, alpha=data.alpha)
    likelier, other = ("a", "b") if found.direction == "a" else ("b", "a")
    hits = f"{found.hits[0]} times on {likelier} and {found.hits[1]} on {other}"
    counted = f"event: {found.event}, {hits}; false alarms at most {found.alpha:g}"
    if not found.rejected and (blind := _blind(drawn)):
        raise MisconfiguredError(blind)
    return Finding(
        name=NAME,
        metric=METRIC,
        value=found.epsilon_lower,
        low=found.epsilon_lower,
        baseline=target.epsilon,
        n=found.trials,
        note="; ".join(filter(None, (counted, short))),
    )


def _blind(drawn: Draws) -> str:
    """Why sets of outputs show nothing, if so: those counted are hardly ever among those learned."""
    if drawn.a.dtype.kind != "i":
        return ""
    half = len(drawn.a) // 2
    learned, counted = (
        np.concatenate([drawn.a[part], drawn.b[part]]) for part in (slice(half), slice(half, None))
    )
    seen = int(np.isin(counted, learned).sum())
    if seen > _RARE * len(counted):
        return ""
    return (
        f"outputs almost never repeat ({seen} of {len(counted)} had been seen before), so sets of them show "
        "nothing: let the mechanism return a coarser value, or floats"
    )


def distinguish(
    mechanism: Callable[[Any], object],
    a: object,
    b: object,
    *,
    epsilon: float,
    delta: float = 0.0,
    samples: int = 20_000,
    alpha: float = 0.01,
) -> EpsilonFinding:
    """Draw `samples` outputs on `a` and as many on `b` in this process, and judge the claim."""
    encode = Encoder()
    pairs = np.array([(encode(mechanism(a)), encode(mechanism(b))) for _ in range(samples)])
    return judge(Draws(pairs[:, 0], pairs[:, 1]), epsilon=epsilon, delta=delta, alpha=alpha)


def judge(drawn: Draws, *, epsilon: float, delta: float = 0.0, alpha: float = 0.01) -> EpsilonFinding:
    """Test the claim at false-alarm rate `alpha`.

    `hits` of the finding are (on the likelier input, on the other). Raises MisconfiguredError for settings
    with which no claim could ever be rejected.
    """
    check(len(drawn.a), epsilon, delta, alpha)
    half = len(drawn.a) // 2
    trials = len(drawn.a) - half
    found = []
    for direction, x, y in (("a", drawn.a, drawn.b), ("b", drawn.b, drawn.a)):
        event = learned_event(x[:half], y[:half], delta=delta, alpha=alpha / 4)
        hits = (int(event.contains(x[half:]).sum()), int(event.contains(y[half:]).sum()))
        bound = epsilon_lower(np.array(hits[:1]), np.array(hits[1:]), trials, delta=delta, alpha=alpha / 4)
        found.append((float(bound[0]), direction, event.name, hits))
    lower, direction, name, hits = max(found)
    return EpsilonFinding(
        epsilon_claimed=epsilon,
        delta=delta,
        epsilon_lower=lower,
        rejected=lower > epsilon,
        direction=direction,
        event=name,
        hits=hits,
        trials=trials,
        alpha=alpha,
    )


def check(samples: int, epsilon: float, delta: float, alpha: float) -> None:
    """Refuse settings with which no claim could ever be refuted. Raises MisconfiguredError."""
    for name, value, good, needed in (
        ("epsilon", epsilon, 0 <= epsilon < math.inf, "0 or more, and finite"),
        ("delta", delta, 0 <= delta < 1, "0 or more, and below 1"),
        ("alpha", alpha, 0 < alpha < 1, "above 0 and below 1"),
        ("samples", samples, samples >= 4, "4 or more"),
    ):
        if not good:
            raise MisconfiguredError(f"{name} must be {needed}, got {value:g}")
    if (most := most_certified(samples, delta, alpha)) <= epsilon:
        raise MisconfiguredError(
            f"{samples} samples cannot refute epsilon {epsilon:g} at delta {delta:g} and alpha {alpha:g}: "
            f"were the outputs never the same, they would certify {most:.3g}; draw more"
        )


def most_certified(samples: int, delta: float, alpha: float) -> float:
    """The epsilon that `samples` draws on each input certify when no output occurs on both."""
    trials = samples - samples // 2
    best = epsilon_lower(np.array([trials]), np.array([0]), trials, delta=delta, alpha=alpha / 4)
    return float(best[0])


def learned_event(likelier: Samples, other: Samples, *, delta: float, alpha: float) -> Event:
    """The event with the best certificate on these samples: a set of identities, or a score's upper end."""
    if likelier.dtype.kind == "i":
        return _learned_set(likelier.astype(np.int64), other.astype(np.int64), delta=delta, alpha=alpha)
    fit = len(likelier) // 2
    pick_x, pick_y = likelier[fit:].astype(np.float64), other[fit:].astype(np.float64)
    best = (-1.0, "not finite", 1.0)
    fitted = scores(likelier[:fit].astype(np.float64), other[:fit].astype(np.float64))
    for name, score in fitted.items():
        x_N, y_N = np.sort(score(pick_x)), np.sort(score(pick_y))
        at_K = thresholds(x_N)
        hits, others = (len(s_N) - np.searchsorted(s_N, at_K) for s_N in (x_N, y_N))
        lower_K = epsilon_lower(hits, others, len(x_N), delta=delta, alpha=alpha)
        if len(at_K) and lower_K.max() > best[0]:
            best = (float(lower_K.max()), name, float(at_K[lower_K.argmax()]))
    _, name, at = best
    return Event(name, lambda outputs: fitted[name](outputs) >= at)


def _learned_set(likelier_N: Ints, other_N: Ints, *, delta: float, alpha: float) -> Event:
    """Identities in order of their ratio, as many as give the best certificate.

    By the lemma of Neyman and Pearson the best event of any size is such a prefix; smoothing by one half
    keeps an output that was seen once from leading the order.
    """
    size = int(max(likelier_N.max(), other_N.max())) + 1
    counts, others = (np.bincount(drawn_N, minlength=size) for drawn_N in (likelier_N, other_N))
    order = np.argsort(-(counts + 0.5) / (others + 0.5), kind="stable")
    order = order[counts[order] > 0]
    hits, misses = np.cumsum(counts[order]), np.cumsum(others[order])
    lower = epsilon_lower(hits, misses, len(likelier_N), delta=delta, alpha=alpha)
    chosen = order[: int(lower.argmax()) + 1]
    return Event(f"{len(chosen)} of {size} outputs", lambda outputs: np.isin(outputs, chosen))


def epsilon_lower(hits_N: Ints, other_N: Ints, trials: int, *, delta: float, alpha: float) -> Floats:
    """Lower bounds [N] on epsilon from counts of N events: ln((lower - delta) / upper), 0 where negative."""
    lower, upper = bounds(hits_N, trials, alpha)[0], bounds(other_N, trials, alpha)[1]
    return np.asarray(np.log(np.maximum(1.0, np.maximum(lower - delta, 0.0) / upper)), dtype=np.float64)
