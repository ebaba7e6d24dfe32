"""Mechanisms on one group of words, calibrated so that the exact epsilon of their integers meets the budget.

Every function takes scores [K, K] in [0, 1] (row = input) and an epsilon, and returns an integer table:

- `rnm`: report noisy max with one-sided exponential noise, which is permute-and-flip;
- `rnm-laplace`: report noisy max with Laplace noise;
- `em`: the exponential mechanism (report noisy max with Gumbel noise);
- `krr`: K-ary randomised response, the best keep-rate at its epsilon;
- `optimal`: the linear programme's best expected score (it collapses onto few outputs: read `outputs_used`);
- `random-in-group`: uniform, epsilon 0, the row against which the others are credited.

The worst-case noise scale 2/epsilon is hardly ever attained by real scores, so `rnm`, `rnm-laplace` and `em`
search for the temperature at which the exact epsilon of the table is the budget (within 1e-6 below it).

Threat model, and what is not protected: as in `transom.privacy.channel` and `transom.privacy.partition`.
Source: the laws of `transom.privacy.laws`; Kairouz et al. 2016 (randomised response, the linear programme's
extremal tables); temperatures set by the exact epsilon and not by the worst case are Transom's own.

Legend: K words of a group, X inputs, Y outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from transom.errors import MisconfiguredError
from transom.privacy.channel import (
    Channel,
    Floats,
    Ints,
    Weights,
    checked_prior,
    exact_epsilon,
    log_ratios,
    round_rows,
)
from transom.privacy.laws import exponential, laplace_argmax, permute_and_flip
from transom.privacy.partition import (
    LARGEST_GROUP,
    Partition,
    PartitionedMechanism,
    WordMechanism,
    in_group_promise,
    one_by_one,
)
from transom.privacy.relaxed import custext_plus, santext_plus, tem

Law = Callable[[Floats, Floats], Floats]  # scores [G, K, K] and a temperature each to probabilities

_TOLERANCE = 1e-6  # how far below the budget a calibrated epsilon may stay
_HOTTEST = 2.0**10  # temperature beyond which a table cannot use up its budget (constant scores, for one)
_STEPS = 60
_LEAST_EPSILON, _MOST_EPSILON = 1e-4, 40.0  # 64-bit entries of 1 or more end at 64 ln 2, or 44.4
_UNUSED = 1e-7  # a solver's output probability below which nobody uses the output


def rnm(scores_KK: Floats, epsilon: float) -> Channel:
    """Permute-and-flip, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(_checked(scores_KK, epsilon)[None], epsilon, law=permute_and_flip)[0]


def rnm_laplace(scores_KK: Floats, epsilon: float) -> Channel:
    """Report noisy max with Laplace noise, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(_checked(scores_KK, epsilon)[None], epsilon, law=laplace_argmax)[0]


def em(scores_KK: Floats, epsilon: float) -> Channel:
    """The exponential mechanism, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(_checked(scores_KK, epsilon)[None], epsilon, law=exponential)[0]


def krr(scores_KK: Floats, epsilon: float) -> Channel:
    """K-ary randomised response: the input with weight e^epsilon, any other word with weight 1."""
    size = len(_checked(scores_KK, epsilon))
    if epsilon == 0:
        return random_in_group(scores_KK)
    other = math.ceil(2**64 / (math.exp(epsilon - _margin(epsilon)) + size - 1))
    weights_KK = np.full((size, size), other, dtype=np.uint64)
    np.fill_diagonal(weights_KK, 2**64 - (size - 1) * other)
    return Channel(weights_KK)


def random_in_group(scores_KK: Floats, epsilon: float = 0.0) -> Channel:
    """Uniform over the group whatever the input; epsilon 0 exactly, so the budget is not used."""
    return Channel.from_probabilities(np.ones_like(_checked(scores_KK, epsilon)))


def _calibrated(scores_GKK: Floats, epsilon: float, *, law: Law) -> list[Channel]:
    """For each group the hottest table found whose exact epsilon lies within the budget, at most 1e-6 below.

    Regula falsi (Illinois) on the temperatures, from half the worst-case constant upwards. Every step
    measures the integers themselves, so the result keeps the budget even where epsilon is not monotone in
    the temperature. A group's table does not depend on the groups that are calibrated beside it.
    """
    if epsilon == 0:
        return [random_in_group(scores_KK) for scores_KK in scores_GKK]
    tolerance = _TOLERANCE * min(1.0, epsilon)

    def tables(groups: Ints, temperature_G: Floats) -> tuple[Weights, Floats]:
        """Integers at these temperatures, and by how much each table's epsilon misses the target."""
        weights_GKK = round_rows(law(scores_GKK[groups], temperature_G[:, None, None]))
        exact_G = log_ratios(weights_GKK.min(axis=1), weights_GKK.max(axis=1))
        return weights_GKK, exact_G - epsilon + tolerance / 2

    low = np.full(len(scores_GKK), epsilon / 2)
    best_GKK, low_gap = tables(np.arange(len(low)), low)
    high, high_gap = low.copy(), low_gap.copy()
    while len(at := np.flatnonzero((high_gap < 0) & (high < _HOTTEST))):
        low[at], low_gap[at], high[at] = high[at], high_gap[at], 2 * high[at]
        weights_GKK, high_gap[at] = tables(at, high[at])
        kept = high_gap[at] < 0
        best_GKK[at[kept]] = weights_GKK[kept]
    at, last = np.flatnonzero(high_gap > 0), np.zeros(len(low))
    for _ in range(_STEPS):
        if not len(at):
            break
        middle = (low[at] * high_gap[at] - high[at] * low_gap[at]) / (high_gap[at] - low_gap[at])
        weights_GKK, gap = tables(at, middle)
        kept, under, over = gap < tolerance / 2, gap < 0, gap >= 0
        best_GKK[at[kept]] = weights_GKK[kept]
        high_gap[at[under & (last[at] < 0)]] /= 2  # the same end twice running: draw the other one nearer
        low_gap[at[over & (last[at] > 0)]] /= 2
        low[at[under]], low_gap[at[under]] = middle[under], gap[under]
        high[at[over]], high_gap[at[over]] = middle[over], gap[over]
        last[at] = np.sign(gap)
        at = at[np.abs(gap) >= tolerance / 2]
    return [_verified(Channel(weights_KK), epsilon) for weights_KK in best_GKK]


def optimal(
    scores_KK: Floats, epsilon: float, *, prior_K: Floats | None = None, min_keep_rate: float = 0.0
) -> Channel:
    """The table with the best expected score under a public prior (default uniform), by linear programming.

    `min_keep_rate` bounds the probability of keeping a word from below, against collapse onto a few hubs;
    above what `krr` reaches at this epsilon it has no solution, which raises MisconfiguredError.
    """
    scores = _checked(scores_KK, epsilon)
    size = len(scores)
    if epsilon == 0:
        return random_in_group(scores)
    prior = checked_prior(np.ones(size) if prior_K is None else prior_K, size)
    p_KK = _solve(prior[:, None] * scores, prior, epsilon - _margin(epsilon), min_keep_rate)
    return _rounded_inside(p_KK, epsilon)


def _solve(gain_XY: Floats, prior_X: Floats, epsilon: float, min_keep_rate: float) -> Floats:
    """Maximise sum(gain * P) subject to m_y <= P(y|x) <= e^epsilon m_y, rows summing to 1, and the keep-rate.

    The auxiliary m_y make it 2 K^2 inequalities instead of the K^3 of all pairs of inputs.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, eye_array, hstack, kron, vstack

    size = len(gain_XY)
    identity, ones = eye_array(size), np.ones((size, 1))
    table, least = eye_array(size**2), kron(coo_array(ones), identity)
    keep = coo_array(np.concatenate([-np.diag(prior_X).ravel(), np.zeros(size)])[None, :])
    solution = linprog(
        np.concatenate([-gain_XY.ravel(), np.zeros(size)]),
        A_ub=vstack([hstack([-table, least]), hstack([table, -math.exp(epsilon) * least]), keep]).tocsr(),
        b_ub=np.concatenate([np.zeros(2 * size**2), [-min_keep_rate]]),
        A_eq=hstack([kron(identity, coo_array(ones.T)), coo_array((size, size))]).tocsr(),
        b_eq=np.ones(size),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if solution.x is None:
        raise MisconfiguredError(
            f"no table of {size} words has epsilon {epsilon:.4g} and a keep-rate of {min_keep_rate}; "
            f"the largest keep-rate is {1 / (1 + (size - 1) * math.exp(-epsilon)):.4g}"
        )
    return np.asarray(solution.x[: size**2].reshape(size, size), dtype=np.float64)


def _rounded_inside(p_KK: Floats, epsilon: float) -> Channel:
    """Round a solver's table, feasible up to its tolerance, to integers that keep the budget.

    Unused outputs get one constant. If the integers still pass the budget, the table is mixed with its own
    mean row, which draws every log ratio towards 0, with the smallest share (by doubling) that suffices.
    """
    p = np.where(p_KK.max(axis=0) < _UNUSED, _UNUSED**2, np.maximum(p_KK, 0.0))
    p /= p.sum(axis=1, keepdims=True)
    share = 0.0
    while share < 1e-2:
        channel = Channel.from_probabilities((1 - share) * p + share * p.mean(axis=0))
        if exact_epsilon(channel) <= epsilon:
            return channel
        share = max(1e-10, 2 * share)
    raise MisconfiguredError(f"the linear programme found no table within epsilon {epsilon}")


def _verified(channel: Channel, epsilon: float) -> Channel:
    """The channel itself, once its integers are seen to keep the budget."""
    if exact_epsilon(channel) > epsilon:
        raise MisconfiguredError(f"no table within epsilon {epsilon} was found")
    return channel


def _margin(epsilon: float) -> float:
    """What a target epsilon is lowered by, so that rounding to integers and upward bounds stay inside it."""
    return 1e-9 * min(1.0, epsilon)


def _checked(scores_KK: Floats, epsilon: float) -> Floats:
    scores = np.asarray(scores_KK, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise MisconfiguredError(f"scores must be square with two words or more, got shape {scores.shape}")
    if len(scores) > LARGEST_GROUP:
        raise MisconfiguredError(f"a group holds at most {LARGEST_GROUP} words, got {len(scores)}")
    if not np.all((scores >= 0) & (scores <= 1)):
        raise MisconfiguredError("scores must lie in [0, 1]; the sensitivity of 1 rests on it")
    if epsilon != 0 and not _LEAST_EPSILON <= epsilon <= _MOST_EPSILON:
        raise MisconfiguredError(
            f"epsilon must be 0 or lie in [{_LEAST_EPSILON}, {_MOST_EPSILON}] (64-bit tables), got {epsilon}"
        )
    return scores


_LAWS: dict[str, Law] = {"rnm": permute_and_flip, "rnm-laplace": laplace_argmax, "em": exponential}

IN_GROUP: dict[str, Callable[..., Channel]] = {
    "rnm": rnm,
    "rnm-laplace": rnm_laplace,
    "em": em,
    "optimal": optimal,
    "krr": krr,
    "random-in-group": random_in_group,
}


def partitioned(name: str, partition: Partition, epsilon: float, **options: Any) -> PartitionedMechanism:
    """The in-group mechanism `name` on every group of a partition; tables are made when first needed.

    `options` go to the in-group function (`min_keep_rate` of `optimal`).
    """
    if name not in IN_GROUP:
        raise MisconfiguredError(f"unknown in-group mechanism {name!r}; choose from {', '.join(IN_GROUP)}")
    epsilon = 0.0 if name == "random-in-group" else epsilon
    _checked(np.zeros((2, 2)), epsilon)
    source = "integer table, epsilon computed from the integers; Dwork and Roth 2014, definition 2.4"
    promise = in_group_promise(epsilon, source)
    make: Callable[[Floats], list[Channel]]
    if name in _LAWS:
        make = partial(_calibrated, epsilon=epsilon, law=_LAWS[name], **options)
    else:
        make = one_by_one(partial(IN_GROUP[name], epsilon=epsilon, **options))
    return PartitionedMechanism(name, partition, promise, make)


QUICK = ("rnm", "em", "krr", "random-in-group")  # whose tables for a whole vocabulary take a second or less
MECHANISMS: dict[str, Callable[..., WordMechanism]] = {
    **{name: partial(partitioned, name) for name in IN_GROUP},
    "custext+": custext_plus,
    "santext+": santext_plus,
    "tem": tem,
}


def build(name: str, space: Partition | Floats, epsilon: float, **options: Any) -> WordMechanism:
    """A mechanism by name; `space` is vectors [V, E] for santext+ and tem, a Partition for every other.

    Options: `min_keep_rate` (optimal); `frequency_V`, `keep`, `sensitive_share` (santext+); `gamma` (tem).
    """
    if name not in MECHANISMS:
        raise MisconfiguredError(f"unknown mechanism {name!r}; choose from {', '.join(MECHANISMS)}")
    if isinstance(space, Partition) == (name in ("santext+", "tem")):
        raise MisconfiguredError(
            f"{name} takes {'vectors' if isinstance(space, Partition) else 'a Partition'}"
        )
    return MECHANISMS[name](space, epsilon=epsilon, **options)
