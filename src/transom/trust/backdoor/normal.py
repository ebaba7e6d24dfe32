"""What the measures of trusted texts look like, and how far a text is from that.

Measures move with the length of a text, so what is compared is the rest over a line in log length, in
deviations of the trusted texts. Two distances are taken: how much more than usual the heads of the last layer
agree on one word (`consensus`), and the Mahalanobis distance of all measures, either way, which also tells
heads that are less alike than usual. Each is counted in units of its own spread on trusted texts that neither
line nor covariance were fitted on; the larger one is the statistic. Its p-value is the share of a third part
of the trusted texts that reaches it: one in twenty innocent texts of the same kind is flagged at a rate of
0.05, whatever the law.
Threat model: trusted texts are of the task, each once and in any order, and none has the trigger. Does not
protect: texts of another kind than the trusted ones are flagged as well.
Source: Vovk, Gammerman and Shafer 2005, section 2.2 (p-values of held-out examples); Mahalanobis 1936. The
combination is own.

Shapes: N texts, L layers, M measures, F = L M of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from transom.errors import MisconfiguredError
from transom.trust.backdoor.measures import MEASURES, Floats, Ints

FEWEST = 80  # trusted texts: half are fitted on, a quarter gives units, a quarter is held out
_SHRINK = 0.2  # of correlations: fewer texts than measures are enough
_RIDGE = 0.02
_TAIL = 0.9
_LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Normal:
    """Fitted by `fit`. `line_2F` and `deviation_F` are of the measures, `precision_FF` of what is left of
    them; `usual_22` the median and the spread of both distances; `held` the statistics of held-out texts;
    `texts` how many there were in all."""

    line_2F: Floats
    deviation_F: Floats
    precision_FF: Floats
    usual_22: Floats
    held: Floats
    texts: int

    def distances(self, measures_NLM: Floats, tokens: Sequence[int] | Ints) -> Floats:
        """Consensus and Mahalanobis distance [N, 2] of texts of so many tokens, in their units."""
        rest_NF = _flat(measures_NLM) - _design(tokens) @ self.line_2F
        found_N2 = _distances(rest_NF / self.deviation_F, self.precision_FF)
        return np.asarray((found_N2 - self.usual_22[0]) / self.usual_22[1])

    def statistics(self, measures_NLM: Floats, tokens: Sequence[int] | Ints) -> Floats:
        """The larger of both [N]."""
        found: Floats = self.distances(measures_NLM, tokens).max(1)
        return found

    def p_values(self, statistics_N: Floats) -> Floats:
        """The share of trusted texts that are as far [N]; never zero."""
        return held_p_values(self.held, statistics_N)


def fit(measures_NLM: Floats, tokens: Sequence[int] | Ints) -> Normal:
    """Of trusted texts with so many tokens. Raises MisconfiguredError for fewer than 80, or texts that are
    all alike."""
    if len(measures_NLM) < FEWEST or len(tokens) != len(measures_NLM):
        raise MisconfiguredError(
            f"{len(measures_NLM)} trusted texts are too few to say what is usual; give {FEWEST} or more"
        )
    order = order_of(len(tokens))
    measures_NLM, counts_N = measures_NLM[order], np.asarray(tokens)[order]
    half, rest = len(order) // 2, 3 * len(order) // 4
    fitted_NLM, fitted = measures_NLM[:half], counts_N[:half]
    line_2F = np.linalg.lstsq(_design(fitted), _flat(fitted_NLM), rcond=None)[0]
    rest_NF = _flat(fitted_NLM) - _design(fitted) @ line_2F
    deviation_F = rest_NF.std(0)
    if not deviation_F.max() > _LEAST:
        raise MisconfiguredError("the trusted texts are all alike; give texts of the task, each once")
    deviation_F = np.maximum(deviation_F, _LEAST)
    z_NF = rest_NF / deviation_F
    covariance_FF = (1 - _SHRINK) * np.cov(z_NF.T) + (_SHRINK + _RIDGE) * np.eye(len(deviation_F))
    precision_FF = np.linalg.inv(covariance_FF)
    bare = Normal(
        line_2F, deviation_F, precision_FF, np.array([[0.0, 0.0], [1.0, 1.0]]), np.empty(0), len(order)
    )
    found_N2 = bare.distances(measures_NLM[half:rest], counts_N[half:rest])
    median_2 = np.median(found_N2, axis=0)
    usual_22 = np.stack([median_2, np.quantile(found_N2, _TAIL, axis=0) - median_2 + _LEAST])
    made = replace(bare, usual_22=usual_22)
    return replace(made, held=np.sort(made.statistics(measures_NLM[rest:], counts_N[rest:])))


def order_of(count: int) -> Ints:
    """In which texts are fitted on, give units and are held out: a file may have two sources in turns."""
    return np.random.default_rng(0).permutation(count)


def held_p_values(held: Floats, statistics_N: Floats) -> Floats:
    """The share of held-out statistics that reach each one [N]; never zero."""
    reached_N = (held[None] >= np.asarray(statistics_N)[:, None]).sum(1)
    found: Floats = (1.0 + reached_N) / (1.0 + len(held))
    return found


def _distances(z_NF: Floats, precision_FF: Floats) -> Floats:
    """The last layer's consensus, and how far all measures are [N, 2]."""
    consensus_N = z_NF[:, MEASURES.index("consensus") - len(MEASURES)]
    far_N = np.sqrt(np.einsum("nf,fg,ng->n", z_NF, precision_FF, z_NF))
    return np.stack([consensus_N, far_N], axis=1)


def _flat(measures_NLM: Floats) -> Floats:
    return measures_NLM.reshape(len(measures_NLM), -1)


def _design(tokens: Sequence[int] | Ints) -> Floats:
    log_N = np.log(np.maximum(np.asarray(tokens, np.float64), 1.0))
    return np.stack([np.ones_like(log_N), log_N], axis=1)
