"""Published mechanisms with guarantees of other kinds, kept for comparison: SANTEXT+, CUSTEXT+ and TEM.

They keep their own parameter. What the three have in common is measured from the same integers as everywhere:
exact epsilon among the words they sanitise, and the Bayes attacker's success. Tables over a whole vocabulary
are made row by row, in chunks, and never stored.

Threat model: everybody knows the vectors, frequencies and parameters. SANTEXT+ and TEM promise metric DP,
that is, less for words that lie further apart; SANTEXT+ promises nothing for the words that it mostly keeps.
Does not protect: which word was kept (SANTEXT+); the group (CUSTEXT+). Unlike the published code, draws come
from the operating system's generator and not from a seed.
Source: Yue et al. 2021, arXiv 2106.01221, equation 2 and algorithm 2; Chen et al. 2023, arXiv 2207.01193,
section 3; Carvalho et al. 2021, arXiv 2107.07928, algorithm 1.

Legend: V vocabulary, E vector entries, B rows of a chunk, K words of a group, N draws.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError
from transom.privacy.channel import (
    BayesAttack,
    Channel,
    Floats,
    Ints,
    Weights,
    checked_prior,
    log_ratio,
    round_rows,
    thresholds,
)
from transom.privacy.guarantee import Guarantee
from transom.privacy.laws import exponential
from transom.privacy.partition import (
    Partition,
    PartitionedMechanism,
    in_group_promise,
    one_by_one,
    with_passed,
)

_CHUNK_ENTRIES = 2**20  # table entries made at a time: 8 MB of weights


@dataclass(frozen=True, eq=False)
class DistanceMechanism:
    """P(y|x) proportional to exp(-epsilon / 2 * min(distance, gamma)) over the sensitive words y.

    `vectors_VE` float64; `sensitive_V` the words that are always sanitised. Any other word is kept with
    probability `keep`. With an infinite gamma this is SANTEXT(+). With a finite one and all words sensitive
    it is TEM: its extra element, of score -gamma + 2 / epsilon * ln(rest), drawn uniformly from the rest,
    gives each of the rest the weight exp(-epsilon / 2 * gamma).
    """

    name: str
    vectors_VE: Floats
    epsilon: float
    sensitive_V: NDArray[np.bool_]
    keep: float = 0.0
    gamma: float = math.inf

    def sample(self, word_ids_N: Ints) -> Ints:
        """An independent draw per word, int64 [N]; rows are made once per distinct word."""
        words = np.asarray(word_ids_N, dtype=np.int64)
        out = np.empty_like(words)
        distinct, place_N, counts = np.unique(words, return_inverse=True, return_counts=True)
        places = np.split(np.argsort(place_N, kind="stable"), np.cumsum(counts)[:-1])
        for first, weights_BV in self.rows(distinct):
            cumulative_BV, last_B = thresholds(weights_BV)
            for cumulative, last, where in zip(cumulative_BV, last_B, places[first:], strict=False):
                random = np.frombuffer(os.urandom(8 * len(where)), dtype=np.uint64)
                out[where] = np.minimum(np.searchsorted(cumulative, random, side="right"), last)
        return out

    def row(self, word_id: int) -> tuple[Ints, Weights]:
        """The possible outputs of a word and their integer weights, which sum to 2**64."""
        weights = round_rows(self._probabilities(np.array([word_id])))[0]
        support = np.flatnonzero(weights)
        return support, weights[support]

    def guarantee(self) -> Guarantee:
        """Metric DP of the law; delta is how far rounding to integers may move a set of outputs."""
        return Guarantee(
            kind="metric-dp",
            unit="one draw of one word, times the Euclidean distance of the two words' vectors",
            adjacency="any two sensitive words",
            epsilon=self.epsilon,
            delta=len(self.vectors_VE) * 2.0**-64,
            assumptions=(
                "the vectors and frequencies are public and independent of the text",
                "os.urandom is secure",
                "epsilon is that of the law before rounding, delta its distance to the integers",
            ),
            discloses=("that an output which is not a sensitive word was kept",) if self.keep else (),
            source="Yue et al. 2021, theorem 1; Carvalho et al. 2021, theorem 1",
        )

    def exact_epsilon(self) -> float:
        """Epsilon from the integers over all pairs of sensitive words (no finite one covers kept words)."""
        low_V = np.full(len(self.vectors_VE), np.uint64(2**64 - 1))
        high_V = np.zeros(len(self.vectors_VE), dtype=np.uint64)
        for _, weights_BV in self.rows(np.flatnonzero(self.sensitive_V)):
            low_V = np.minimum(low_V, weights_BV.min(axis=0))
            high_V = np.maximum(high_V, weights_BV.max(axis=0))
        return log_ratio(low_V, high_V)

    def bayes(self, prior_V: Floats, pass_share: float = 0.0) -> BayesAttack:
        """The best attacker; only words of positive prior cost time. Guesses are word ids [V].

        `pass_share` is as for every mechanism: further tokens that are sent unchanged and count as recovered.
        """
        prior = checked_prior(prior_V, len(self.vectors_VE))
        inputs = np.flatnonzero(prior)
        best_V = np.zeros(len(prior))
        guess_V = np.full(len(prior), int(prior.argmax()))
        for first, weights_BV in self.rows(inputs):
            rows = inputs[first : first + len(weights_BV)]
            joint_BV = weights_BV * (prior[rows] / 2.0**64)[:, None]
            winner_V = joint_BV.argmax(axis=0)
            value_V = joint_BV[winner_V, np.arange(len(prior))]
            guess_V = np.where(value_V > best_V, rows[winner_V], guess_V)
            best_V = np.maximum(best_V, value_V)
        success, chance = float(best_V.sum()), float(prior.max())
        return BayesAttack(with_passed(success, pass_share), with_passed(chance, pass_share), guess_V)

    def rows(self, word_ids: Ints) -> Iterator[tuple[int, Weights]]:
        """Integer rows [B, V], chunk by chunk, each with the position of its first word in `word_ids`."""
        step = max(1, _CHUNK_ENTRIES // len(self.vectors_VE))
        for first in range(0, len(word_ids), step):
            yield first, round_rows(self._probabilities(word_ids[first : first + step]))

    def _probabilities(self, word_ids_B: Ints) -> Floats:
        x_BE, places = self.vectors_VE[word_ids_B], np.arange(len(word_ids_B))
        squares_V = np.einsum("ve,ve->v", self.vectors_VE, self.vectors_VE)
        distance_BV = squares_V + squares_V[word_ids_B, None] - 2 * (x_BE @ self.vectors_VE.T)
        np.sqrt(np.maximum(distance_BV, 0.0, out=distance_BV), out=distance_BV)
        distance_BV[places, word_ids_B] = 0.0  # exactly, where cancellation leaves a little
        np.minimum(distance_BV, self.gamma, out=distance_BV)
        if self.keep:
            distance_BV[:, ~self.sensitive_V] = math.inf
        distance_BV -= distance_BV.min(axis=1, keepdims=True)
        p_BV: Floats = np.exp(distance_BV * (-self.epsilon / 2))
        p_BV[:, self.sensitive_V] = np.maximum(p_BV[:, self.sensitive_V], 1e-300)
        p_BV /= p_BV.sum(axis=1, keepdims=True)
        kept = ~self.sensitive_V[word_ids_B]
        p_BV[kept] *= 1 - self.keep
        p_BV[places[kept], word_ids_B[kept]] += self.keep
        return p_BV


def santext_plus(
    vectors_VE: Floats,
    epsilon: float,
    *,
    frequency_V: Floats,
    keep: float = 0.8,
    sensitive_share: float = 0.5,
) -> DistanceMechanism:
    """SANTEXT+: the least frequent `sensitive_share` of the word types is sensitive, the rest mostly kept.

    Outputs are sensitive words, as in the authors' code. `keep` is 1 - p of the paper. With a share of 1
    every word is sensitive, which is plain SANTEXT.
    """
    vectors = _checked_vectors(vectors_VE, epsilon)
    if not 0 <= keep < 1 or not 0 < sensitive_share <= 1:
        raise MisconfiguredError(
            f"keep must lie in [0, 1) and sensitive_share in (0, 1], got {keep}, {sensitive_share}"
        )
    checked_prior(frequency_V, len(vectors))
    count = max(2, round(sensitive_share * len(vectors)))
    sensitive_V = np.zeros(len(vectors), dtype=np.bool_)
    sensitive_V[np.argsort(frequency_V, kind="stable")[:count]] = True
    return DistanceMechanism("santext+", vectors, epsilon, sensitive_V, 0.0 if sensitive_V.all() else keep)


def tem(vectors_VE: Floats, epsilon: float, *, gamma: float) -> DistanceMechanism:
    """The truncated exponential mechanism: words further than `gamma` (a distance) share one weight."""
    vectors = _checked_vectors(vectors_VE, epsilon)
    if not gamma > 0:
        raise MisconfiguredError(f"gamma must be a positive distance, got {gamma}")
    return DistanceMechanism("tem", vectors, epsilon, np.ones(len(vectors), dtype=np.bool_), gamma=gamma)


def custext_plus(partition: Partition, epsilon: float) -> PartitionedMechanism:
    """CUSTEXT+: in each group, every row's scores stretched to [0, 1], then the exponential mechanism."""
    if not 0 < epsilon <= 40:
        raise MisconfiguredError(f"epsilon must lie in (0, 40], got {epsilon}")
    source = "Chen et al. 2023, section 3.3; the noise constant is the worst case, not calibrated"
    promise = in_group_promise(epsilon, source)

    def table(scores_KK: Floats) -> Channel:
        low, high = scores_KK.min(axis=1, keepdims=True), scores_KK.max(axis=1, keepdims=True)
        stretched = (scores_KK - low) / np.where(high > low, high - low, 1.0)
        return Channel.from_probabilities(exponential(stretched, epsilon))

    return PartitionedMechanism("custext+", partition, promise, one_by_one(table))


def _checked_vectors(vectors_VE: Floats, epsilon: float) -> Floats:
    vectors = np.ascontiguousarray(vectors_VE, dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) < 2 or not np.all(np.isfinite(vectors)):
        raise MisconfiguredError(f"vectors must be finite [V, E], V at least 2, got shape {vectors.shape}")
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise MisconfiguredError(f"epsilon must be positive and finite, got {epsilon}")
    return vectors
