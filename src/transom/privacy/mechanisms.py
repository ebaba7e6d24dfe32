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
Source: McKenna and Sheldon 2020 (permute-and-flip, algorithm 1); Ding et al. 2021, arXiv 2105.07260 (its
equality with exponential noise); McSherry and Talwar 2007; Kairouz et al. 2016 (randomised response, and
extremal tables).

Legend: K words of a group, X inputs, Y outputs, Q quadrature nodes, S segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from transom.errors import MisconfiguredError
from transom.privacy.channel import Channel, Floats, checked_prior, exact_epsilon
from transom.privacy.guarantee import Guarantee
from transom.privacy.partition import Partition, PartitionedMechanism

_TOLERANCE = 1e-6  # how far below the budget a calibrated epsilon may stay
_HOTTEST = 2.0**10  # temperature beyond which a table cannot use up its budget (constant scores, for one)
_STEPS = 60
_LEAST_EPSILON, _MOST_EPSILON = 1e-4, 30.0
_UNUSED = 1e-7  # a solver's output probability below which nobody uses the output
_SMALLEST = 1e-300  # keeps an underflow from reading as "excluded from the support"


def rnm(scores_KK: Floats, epsilon: float) -> Channel:
    """Permute-and-flip, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(permute_and_flip, scores_KK, epsilon)


def rnm_laplace(scores_KK: Floats, epsilon: float) -> Channel:
    """Report noisy max with Laplace noise, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(laplace_argmax, scores_KK, epsilon)


def em(scores_KK: Floats, epsilon: float) -> Channel:
    """The exponential mechanism, at the temperature where its exact epsilon is `epsilon`."""
    return _calibrated(exponential, scores_KK, epsilon)


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


def exponential(scores_XY: Floats, temperature: float) -> Floats:
    """P(y|x) proportional to exp(temperature * score / 2)."""
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True)))
    return _positive(p_XY / p_XY.sum(axis=1, keepdims=True))


def permute_and_flip(scores_XY: Floats, temperature: float) -> Floats:
    """P(i) = p_i * integral over t in [0, 1] of prod over j != i of (1 - t p_j).

    Here p_j = exp(temperature (s_j - s_max) / 2). The integrand is a polynomial of degree Y - 1 with
    non-negative values, for which Gauss-Legendre quadrature with ceil(Y / 2) nodes is exact; every term is
    non-negative, so nothing cancels.
    """
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True)))
    nodes_Q, weights_Q = _legendre((scores_XY.shape[1] + 1) // 2)
    factors_QXY = 1.0 - nodes_Q[:, None, None] * p_XY
    products_QX = factors_QXY.prod(axis=2) * weights_Q[:, None]
    return _positive(p_XY * (products_QX[:, :, None] / factors_QXY).sum(axis=0))


def laplace_argmax(scores_XY: Floats, temperature: float) -> Floats:
    """P(i) that score i plus Laplace noise of scale 2 / temperature is the largest.

    In units of the scale: P(i) = integral of f(z - s_i) prod over j != i of F(z - s_j). Between two
    neighbouring scores the integrand is smooth, so 16 Gauss-Legendre nodes a segment suffice at any
    temperature in use; below all scores it is Y exp(Y z) up to a constant, and above them a polynomial in
    exp(-z) of degree Y - 1: both are integrated in closed form or exactly. The rounded integers are the
    mechanism, so that what quadrature leaves (below 1e-6 for temperatures up to 20, see the tests) costs fit
    to the Laplace law, never privacy.
    """
    size = scores_XY.shape[1]
    s_XY = temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True))
    edges_XS = np.sort(s_XY, axis=1)
    below_X = np.exp(size * edges_XS[:, 0] - s_XY.sum(axis=1) - size * math.log(2.0)) / size
    inner_Q, inner_weights_Q = _legendre(16)
    widths_XS = np.diff(edges_XS, axis=1)
    z_XN = (edges_XS[:, :-1, None] + widths_XS[:, :, None] * inner_Q).reshape(len(s_XY), -1)
    dz_XN = (widths_XS[:, :, None] * inner_weights_Q).reshape(len(s_XY), -1)
    # Above the largest score (0 after the shift), with v = exp(-z): dz = dv / v, v in [0, 1].
    outer_Q, outer_weights_Q = _legendre((size + 1) // 2)
    z_XN = np.concatenate([z_XN, np.broadcast_to(-np.log(outer_Q), (len(s_XY), len(outer_Q)))], axis=1)
    dz_XN = np.concatenate(
        [dz_XN, np.broadcast_to(outer_weights_Q / outer_Q, (len(s_XY), len(outer_Q)))], axis=1
    )
    gap_XNY = z_XN[:, :, None] - s_XY[:, None, :]
    density_XNY = 0.5 * np.exp(-np.abs(gap_XNY))
    below_XNY = np.where(gap_XNY < 0, density_XNY, 1.0 - density_XNY)
    all_XN = below_XNY.prod(axis=2) * dz_XN
    p_XY = below_X[:, None] + np.einsum("xn,xny->xy", all_XN, density_XNY / below_XNY)
    return _positive(p_XY)


def _positive(p_XY: Floats) -> Floats:
    return np.asarray(np.maximum(p_XY, _SMALLEST), dtype=np.float64)


@lru_cache(maxsize=64)
def _legendre(nodes: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


def _calibrated(law: Callable[[Floats, float], Floats], scores_KK: Floats, epsilon: float) -> Channel:
    """The hottest table found whose exact epsilon lies within the budget, at most 1e-6 below if it can.

    Regula falsi (Illinois) on the temperature, from half the worst-case constant upwards. Every step measures
    the integers themselves, so the result keeps the budget even where epsilon is not monotone in the
    temperature.
    """
    scores = _checked(scores_KK, epsilon)
    if epsilon == 0:
        return random_in_group(scores)
    tolerance = _TOLERANCE * min(1.0, epsilon)

    def table(temperature: float) -> tuple[Channel, float]:
        channel = Channel.from_probabilities(law(scores, temperature))
        return channel, exact_epsilon(channel) - epsilon + tolerance / 2

    low = epsilon / 2
    best, low_gap = table(low)
    high, high_gap = low, low_gap
    while high_gap < 0 and high < _HOTTEST:
        low, low_gap, high = high, high_gap, 2 * high
        channel, high_gap = table(high)
        best = channel if high_gap < 0 else best
    for _ in range(_STEPS if high_gap > 0 else 0):
        middle = (low * high_gap - high * low_gap) / (high_gap - low_gap)
        channel, gap = table(middle)
        if abs(gap) < tolerance / 2:
            return channel
        if gap < 0:
            best, low, low_gap, high_gap = channel, middle, gap, high_gap / 2
        else:
            high, high_gap, low_gap = middle, gap, low_gap / 2
    return _verified(best, epsilon)


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
    if not np.all((scores >= 0) & (scores <= 1)):
        raise MisconfiguredError("scores must lie in [0, 1]; the sensitivity of 1 rests on it")
    if epsilon != 0 and not _LEAST_EPSILON <= epsilon <= _MOST_EPSILON:
        raise MisconfiguredError(
            f"epsilon must be 0 or lie in [{_LEAST_EPSILON}, {_MOST_EPSILON}] (64-bit tables), got {epsilon}"
        )
    return scores


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
    promise = Guarantee(
        kind="pure-dp",
        unit="one draw of one word",
        adjacency="any two words of the same public group",
        epsilon=epsilon,
        assumptions=("the groups and scores are public and independent of the text", "os.urandom is secure"),
        discloses=("the group of each word", "which words are sanitised"),
        source="integer table, epsilon computed from the integers; Dwork and Roth 2014, definition 2.4",
    )
    return PartitionedMechanism(name, partition, promise, partial(IN_GROUP[name], epsilon=epsilon, **options))
