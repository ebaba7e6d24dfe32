"""How far a text is from trusted ones: in what heads agree on, in the model's states, and in its answer.

Parts are counted in units of trusted texts that nothing was fitted on: how much more than usual the heads of
the last layer agree on one word (`normal`); how far the state that the answer is read from is, and the mean
state of the text's words, in Mahalanobis distance, after two thirds of the layers and before the last one;
and how sure the answer is, in log-odds of the likeliest one. A trigger of words shows in the first, one of no
word in the rest, where signs that are weak alone are added: the statistic is what is above zero of the first
plus what is above zero of the sum of the others. Of a model that generates the answer is also begun, and how
much of it is known by heart (`answers`) and how sure the model is of it are added as a part of their own. A
text is held against trusted texts as they are, and against these with a few words of another one put in: a
stranger's words raise no flag.
Threat model: as of `normal`. Does not protect: texts of another kind are flagged as well.
Source: Lee et al. 2018, arXiv 1807.03888 (Mahalanobis distance of states); Chen et al. 2022, arXiv 2210.07907
(of poisoned texts in middle layers). The combination is own.

Shapes: N texts, K states of a text, D model width, R texts that distances are fitted on, Q parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transom.trust.backdoor.measures import Floats, Ints
from transom.trust.backdoor.normal import Normal, fit, held_p_values, order_of

_SHRINK, _RIDGE, _TAIL, _LEAST = 0.2, 0.02, 0.9, 1e-6
_LEAST_UNIT = 0.05  # else a part that hardly moves on trusted texts outweighs all others where it does


@dataclass(frozen=True, eq=False)
class Look:
    """What is seen of texts: measures of heads [N, L, M], states [N, K, D], half of them of the token that is
    read and half of the mean over words, and of the answer its sureness and, of a model that generates, how
    much is known by heart and how sure all of it is [N, Q]; `tokens` are the texts' lengths."""

    measures_NLM: Floats
    states_NKD: Floats
    answers_NQ: Floats
    tokens: Sequence[int]

    def part(self, places: Ints) -> Look:
        """Of some texts."""
        return Look(
            self.measures_NLM[places], self.states_NKD[places], self.answers_NQ[places],
            [int(one) for one in np.asarray(self.tokens)[places]],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Cloud:
    """Where states of trusted texts lie, by directions [R, D] and how much of each is usual [R]."""

    centre_D: Floats
    deviation_D: Floats
    directions_RD: Floats
    usual_R: Floats

    @classmethod
    def of(cls, states_RD: Floats) -> _Cloud:
        centre_D, deviation_D = states_RD.mean(0), np.maximum(states_RD.std(0), _LEAST)
        _, size_R, directions_RD = np.linalg.svd((states_RD - centre_D) / deviation_D, full_matrices=False)
        variance_R = (1 - _SHRINK) * size_R**2 / max(len(states_RD) - 1, 1)
        return cls(centre_D, deviation_D, directions_RD, variance_R / (variance_R + _SHRINK + _RIDGE))

    def distances(self, states_ND: Floats) -> Floats:
        """Mahalanobis, of a covariance that was shrunk to the identity [N]."""
        z_ND = (states_ND - self.centre_D) / self.deviation_D
        along_NR = z_ND @ self.directions_RD.T
        rest_N = (z_ND**2).sum(1) - (along_NR**2 * self.usual_R).sum(1)
        return np.asarray(np.sqrt(np.maximum(rest_N, 0) / (_SHRINK + _RIDGE)))


@dataclass(frozen=True, eq=False)
class Usual:
    """Fitted by `usual`. `units_2Q` are the median and the spread of each distance and each part of the
    answer; `held` the statistics of held-out texts, and of these with words of others."""

    normal: Normal
    clouds: tuple[_Cloud, ...]
    units_2Q: Floats
    held: tuple[Floats, ...]

    def statistics(self, look: Look) -> Floats:
        """The larger, the farther [N]."""
        parts_NQ = (_parts(self.clouds, look) - self.units_2Q[0]) / self.units_2Q[1]
        agreement_N = self.normal.distances(look.measures_NLM, look.tokens)[:, 0]
        count = len(self.clouds)
        read_N, words_N = parts_NQ[:, : count // 2].mean(1), parts_NQ[:, count // 2 : count].mean(1)
        rest_N = read_N + words_N + parts_NQ[:, count]
        heart_N = parts_NQ[:, count + 1 :].sum(1)
        return np.asarray(sum(np.maximum(one, 0) for one in (agreement_N, rest_N, heart_N)))

    def p_values(self, statistics_N: Floats) -> Floats:
        """The share of trusted texts that are as far, of whichever kind has more [N]; never zero."""
        return np.asarray(np.max([held_p_values(one, statistics_N) for one in self.held], axis=0))


def held_of(count: int) -> Ints:
    """The places of those of so many trusted texts that nothing is fitted on."""
    return order_of(count)[3 * count // 4 :]


def usual(look: Look, disturbed: Look) -> Usual:
    """Of trusted texts, and of those at `held_of` with words of others. Raises as `fit`."""
    normal, order = fit(look.measures_NLM, look.tokens), order_of(len(look.tokens))
    half, rest = len(order) // 2, 3 * len(order) // 4
    fitted, units = look.part(order[:half]), look.part(order[half:rest])
    clouds = tuple(_Cloud.of(fitted.states_NKD[:, one]) for one in range(look.states_NKD.shape[1]))
    parts_NQ = _parts(clouds, units)
    median_Q = np.median(parts_NQ, axis=0)
    spread_Q = np.maximum(np.quantile(parts_NQ, _TAIL, axis=0) - median_Q, _LEAST_UNIT)
    bare = Usual(normal, clouds, np.stack([median_Q, spread_Q]), ())
    held = (look.part(held_of(len(look.tokens))), disturbed)
    return replace(bare, held=tuple(map(bare.statistics, held)))


def _parts(clouds: Sequence[_Cloud], look: Look) -> Floats:
    """Distances, and the parts of the answer [N, Q]."""
    far = [cloud.distances(look.states_NKD[:, place]) for place, cloud in enumerate(clouds)]
    return np.concatenate([np.stack(far, axis=1), look.answers_NQ], axis=1)
