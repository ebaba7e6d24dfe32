"""A finite mechanism is an integer table; its epsilon and its Bayes attacker are computed from the integers.

`Channel.weights_XY[x, y] / 2**64` is the probability of output y on input x. The integers are the mechanism:
one 64-bit word of the operating system's generator and a search draw from them without any rounding, so what
is computed here holds for what is sampled, not for an idealised real-valued mechanism (compare Mironov 2012,
"On significance of the least significant bits for differential privacy").

Threat model: the attacker knows the table, the public prior and the output; each draw is independent.
Does not protect against: timing or memory attacks on the sampler; repeated draws (their epsilons add up).
Source: exact epsilon is Dwork and Roth 2014, definition 2.4, over a finite table; the attacker is Bayes'
rule.

Legend: X inputs, Y outputs, N draws.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weights = NDArray[np.uint64]

_TOTAL = 2.0**64
_LARGEST = 2.0**64 - 2048  # the largest float64 below 2**64
_NEVER = np.uint64(2**64 - 1)
_SLACK = 2.0**-50  # covers the roundings of two conversions, a division and a logarithm, with room to spare
_DRAWS_PER_CHUNK = 8192  # keeps the gathered thresholds in cache


@dataclass(frozen=True, eq=False)
class Channel:
    """`weights_XY` uint64 [X, Y], rows sum to exactly 2**64; a zero excludes an output from a support."""

    weights_XY: Weights

    def __post_init__(self) -> None:
        weights = self.weights_XY
        if weights.dtype != np.uint64 or weights.ndim != 2 or 0 in weights.shape:
            raise MisconfiguredError(f"a channel needs uint64 [X, Y], got {weights.dtype} {weights.shape}")
        wraps = weights.sum(axis=1, dtype=np.uint64) != 0
        if np.any(wraps | (np.abs(weights.sum(axis=1, dtype=np.float64) / _TOTAL - 1) > 0.5)):
            raise MisconfiguredError("every row of a channel must sum to exactly 2**64")
        weights.flags.writeable = False

    @classmethod
    def from_probabilities(cls, p_XY: Floats) -> Channel:
        """Round a non-negative float64 [X, Y] table (rows need only be proportional to probabilities)."""
        return cls(round_rows(p_XY))

    @property
    def p_XY(self) -> Floats:
        """The table as float64 probabilities [X, Y], each within one rounding of the integers."""
        return np.asarray(self.weights_XY / _TOTAL, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class BayesAttack:
    """What the best guess recovers: `success` with the output, `chance` without, `guess_Y` per output."""

    success: float
    chance: float
    guess_Y: Ints


def round_rows(p_XY: Floats) -> Weights:
    """Integers [..., Y], rows sum to exactly 2**64; zeros stay zero, a positive entry becomes at least 1.

    What rounding leaves over goes to the row's largest entry, whose relative change is below Y * 2**-50.
    """
    if p_XY.ndim > 2:
        return round_rows(p_XY.reshape(-1, p_XY.shape[-1])).reshape(p_XY.shape)
    totals = p_XY.sum(axis=1, keepdims=True)
    if p_XY.shape[1] < 2 or not np.all(np.isfinite(p_XY)) or np.any(p_XY < 0) or np.any(totals <= 0):
        raise MisconfiguredError(
            "probabilities must be finite, non-negative, two or more a row, not all zero"
        )
    scaled = np.minimum(p_XY * (_TOTAL / totals), _LARGEST)
    weights: Weights = np.maximum(scaled, p_XY > 0).astype(np.uint64)
    if np.any(np.count_nonzero(weights, axis=1) < 2):
        raise MisconfiguredError("a row needs two or more possible outputs")
    left_over = np.uint64(0) - weights.sum(
        axis=1, dtype=np.uint64
    )  # modulo 2**64, so it may stand for a negative
    weights[np.arange(len(weights)), p_XY.argmax(axis=1)] += left_over
    return weights


def exact_epsilon(channel: Channel) -> float:
    """The largest log ratio of two inputs over all outputs, rounded up; infinite if supports differ."""
    return log_ratio(channel.weights_XY.min(axis=0), channel.weights_XY.max(axis=0))


def log_ratio(low_Y: Weights, high_Y: Weights) -> float:
    """Upper bound, tight to 1e-15 relative, of max over y of ln(high / low); 0 only when all are equal."""
    return float(log_ratios(low_Y[None], high_Y[None])[0])


def log_ratios(low_GY: Weights, high_GY: Weights) -> Floats:
    """`log_ratio` of each row, float64 [G]."""
    equal_G = (low_GY == high_GY).all(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is an output that nobody uses
        ratio_GY = np.where(high_GY > 0, high_GY / low_GY, 1.0)
    bound_G = np.array([math.log(largest) for largest in ratio_GY.max(axis=1).tolist()])
    return np.where(equal_G, 0.0, bound_G + (bound_G + 1) * _SLACK)


def bayes(channel: Channel, prior_X: Floats) -> BayesAttack:
    """The attacker who knows the table and `prior_X` (non-negative, any positive sum) and guesses at best."""
    prior = checked_prior(prior_X, len(channel.weights_XY))
    joint_XY = prior[:, None] * channel.p_XY
    return BayesAttack(float(joint_XY.max(axis=0).sum()), float(prior.max()), joint_XY.argmax(axis=0))


def checked_prior(prior_X: Floats, inputs: int) -> Floats:
    """The prior over `inputs` inputs, normalised to sum to one."""
    prior = np.asarray(prior_X, dtype=np.float64)
    if prior.shape != (inputs,) or not np.all(np.isfinite(prior)) or np.any(prior < 0) or prior.sum() <= 0:
        raise MisconfiguredError(f"a prior needs {inputs} finite non-negative numbers with a positive sum")
    return np.asarray(prior / prior.sum(), dtype=np.float64)


def outputs_used(channel: Channel, prior_X: Floats) -> float:
    """Effective number of outputs: the exponential of the output distribution's Shannon entropy."""
    q_Y = checked_prior(prior_X, len(channel.weights_XY)) @ channel.p_XY
    q_Y = q_Y[q_Y > 0]
    return float(np.exp(-(q_Y * np.log(q_Y)).sum()))


def keep_rate(channel: Channel, prior_X: Floats) -> float:
    """Probability that the output is the input (inputs and outputs are the same words in the same order)."""
    return float(checked_prior(prior_X, len(channel.weights_XY)) @ np.diagonal(channel.p_XY))


def expected_utility(channel: Channel, scores_XY: Floats, prior_X: Floats) -> float:
    """Mean score of the output under the prior."""
    return float(checked_prior(prior_X, len(channel.weights_XY)) @ (channel.p_XY * scores_XY).sum(axis=1))


def sample(channel: Channel, inputs_N: Ints) -> Ints:
    """One independent output index per input index, int64 [N], from the operating system's generator."""
    inputs = np.asarray(inputs_N, dtype=np.int64)
    if inputs.size and (inputs.min() < 0 or inputs.max() >= len(channel.weights_XY)):
        raise MisconfiguredError(f"inputs must lie in [0, {len(channel.weights_XY)})")
    thresholds_XY, last_X = thresholds(channel.weights_XY)
    return search(thresholds_XY, last_X, inputs)


def thresholds(weights_XY: Weights) -> tuple[Weights, Ints]:
    """Cumulative sums [X, Y - 1] and each row's last possible output [X], the two arguments of `search`."""
    last_X = weights_XY.shape[1] - 1 - (weights_XY[:, ::-1] > 0).argmax(axis=1)
    cumulative = np.cumsum(weights_XY[:, :-1], axis=1, dtype=np.uint64)
    # From the last possible output on, the sum is 2**64 and has wrapped to 0; `search` clips what gets there.
    cumulative[np.arange(cumulative.shape[1]) >= last_X[:, None]] = _NEVER
    return cumulative, last_X


def search(thresholds_XY: Weights, last_X: Ints, inputs_N: Ints) -> Ints:
    """Draw an output index per row index: how many thresholds of its row a 64-bit word has passed."""
    out = np.empty(len(inputs_N), dtype=np.int64)
    for start in range(0, len(inputs_N), _DRAWS_PER_CHUNK):
        rows = inputs_N[start : start + _DRAWS_PER_CHUNK]
        words = np.frombuffer(os.urandom(8 * len(rows)), dtype=np.uint64)
        passed = np.count_nonzero(words[:, None] >= thresholds_XY[rows], axis=1)
        out[start : start + len(rows)] = np.minimum(passed, last_X[rows])
    return out
