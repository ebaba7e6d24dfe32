"""The epsilon distinguisher: is a mechanism that claims (epsilon, delta) caught breaking its claim?

Half of the samples teach an event, the outputs that look likelier on input `a` than on `b`; the other half
counts how often the event happens on each. Clopper-Pearson bounds turn the counts into a certificate: when
the lower bound on one input exceeds e^epsilon times the upper bound on the other, plus delta, the claim is
rejected. Both directions are tried.

Threat model: the attacker chooses both inputs and sees as many outputs as it asks for, nothing else.
Does not prove privacy: a claim that survives was not caught on these two inputs with these samples. A
mechanism that holds its claim is rejected with probability `alpha` at most (four one-sided bounds, each at
alpha / 4), as long as its outputs are independent draws: where draws share state, give each call fresh state
of its own.
Source: Ding et al. 2018, "Detecting violations of differential privacy"; Jagielski et al. 2020, arXiv
2006.07709; Clopper and Pearson 1934.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError

Output = Hashable
Event = frozenset[Output]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EpsilonFinding:
    """`epsilon_lower` holds with confidence 1 - `alpha`; `hits` counts its event in `trials` draws each.

    `direction` names the input on which the event is likelier; `event_size` is its number of distinct
    outputs.
    """

    epsilon_claimed: float
    delta: float
    epsilon_lower: float
    rejected: bool
    direction: str
    event_size: int
    hits: tuple[int, int]
    trials: int
    alpha: float


def distinguish(
    mechanism: Callable[[object], Output],
    a: object,
    b: object,
    *,
    epsilon: float,
    delta: float = 0.0,
    samples: int = 20_000,
    alpha: float = 0.01,
) -> EpsilonFinding:
    """Draw `samples` outputs on `a` and as many on `b`, and test the claim at false-alarm rate `alpha`.

    `hits` of the finding are (on the likelier input, on the other). Raises MisconfiguredError for settings
    with which no claim could ever be rejected.
    """
    if samples < 4 or not 0 < alpha < 1 or not epsilon >= 0 or not 0 <= delta < 1:
        raise MisconfiguredError(
            "need samples >= 4, 0 < alpha < 1, epsilon >= 0, 0 <= delta < 1, "
            f"got {samples}, {alpha}, {epsilon}, {delta}"
        )
    half = samples // 2
    learn_a, learn_b = _draw(mechanism, a, half), _draw(mechanism, b, half)
    test_a, test_b = _draw(mechanism, a, samples - half), _draw(mechanism, b, samples - half)
    found = []
    for direction, learn, test in (
        ("a", (learn_a, learn_b), (test_a, test_b)),
        ("b", (learn_b, learn_a), (test_b, test_a)),
    ):
        event = learned_event(*learn, delta=delta, alpha=alpha / 4)
        hits = (_count(test[0], event), _count(test[1], event))
        counts = np.array([hits])
        bound = epsilon_lower(counts[:, 0], counts[:, 1], samples - half, delta=delta, alpha=alpha / 4)
        found.append((float(bound[0]), direction, len(event), hits))
    lower, direction, size, hits = max(found)
    return EpsilonFinding(
        epsilon_claimed=epsilon,
        delta=delta,
        epsilon_lower=lower,
        rejected=lower > epsilon,
        direction=direction,
        event_size=size,
        hits=hits,
        trials=samples - half,
        alpha=alpha,
    )


def learned_event(likelier: Counter[Output], other: Counter[Output], *, delta: float, alpha: float) -> Event:
    """The set of outputs with the best certificate on these counts, among prefixes in order of their ratio.

    By the lemma of Neyman and Pearson the best event of any size is such a prefix; smoothing by one half
    keeps an output that was seen once from leading the order.
    """
    order = sorted(likelier, key=lambda out: (likelier[out] + 0.5) / (other[out] + 0.5), reverse=True)
    hits = np.cumsum([(likelier[out], other[out]) for out in order], axis=0)
    lower = epsilon_lower(hits[:, 0], hits[:, 1], likelier.total(), delta=delta, alpha=alpha)
    return frozenset(order[: int(lower.argmax()) + 1])


def epsilon_lower(hits_N: Ints, other_N: Ints, trials: int, *, delta: float, alpha: float) -> Floats:
    """Lower bounds [N] on epsilon from counts of N events: ln((lower - delta) / upper), 0 where negative."""
    from scipy.stats import beta

    lower = np.where(hits_N > 0, beta.ppf(alpha, np.maximum(hits_N, 1), trials - hits_N + 1), 0.0)
    upper = np.where(other_N < trials, beta.ppf(1 - alpha, other_N + 1, np.maximum(trials - other_N, 1)), 1.0)
    return np.asarray(np.log(np.maximum(1.0, np.maximum(lower - delta, 0.0) / upper)), dtype=np.float64)


def _draw(mechanism: Callable[[object], Output], value: object, count: int) -> Counter[Output]:
    return Counter(mechanism(value) for _ in range(count))


def _count(outputs: Counter[Output], event: Event) -> int:
    return sum(outputs[out] for out in event)
