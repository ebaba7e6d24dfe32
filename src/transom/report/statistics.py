"""Intervals of what was measured, and BLEU: each interval holds its figure with 95 % confidence unless told.

Threat model: none; arithmetic. Does not cover: samples that are not drawn as the function says.
Source: Clopper and Pearson 1934, Biometrika 26; Korn and Graubard 1998, "Confidence intervals for proportions
with small expected number of positive counts" (clusters); Student 1908, Biometrika 6; Papineni et al. 2002
(BLEU); Mann and Whitney 1947 (AUC by ranks, ties by half); DeLong, DeLong and Clarke-Pearson 1988 (its
interval).

Shapes: N trials or tokens, S texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFIDENCE = 0.95


def interval(hits: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval for a share; it covers at least `confidence`.

    Raises MisconfiguredError unless 0 <= hits <= n, n >= 1 and 0 < confidence < 1.
    """
    if not 0 <= hits <= n or n < 1 or not 0 < confidence < 1:
        raise MisconfiguredError(
            f"need 0 <= hits <= n, n >= 1 and 0 < confidence < 1, got {hits}, {n}, {confidence}"
        )
    low, high = bounds(hits, n, (1 - confidence) / 2)
    return float(low), float(high)


def bounds(hits: Any, n: Any, tail: float) -> tuple[Floats, Floats]:
    """Clopper and Pearson's lower and upper bounds of shares, each wrong with probability `tail` at most."""
    from scipy.stats import beta

    low = np.where(hits > 0, beta.ppf(tail, hits, n - hits + 1), 0.0)
    return low, np.where(hits < n, beta.ppf(1 - tail, hits + 1, n - hits), 1.0)


def mean_interval(score_N: Floats) -> tuple[float, float]:
    """The two-sided interval of a mean of scores in [0, 1]. Raises MisconfiguredError."""
    if not len(score_N) or not np.all((score_N >= 0) & (score_N <= 1)):
        raise MisconfiguredError(f"need one score or more, all in [0, 1], got {len(score_N)}")
    if np.isin(score_N, (0.0, 1.0)).all():
        return interval(int(score_N.sum()), len(score_N))
    if len(score_N) == 1:
        return 0.0, 1.0
    from scipy.stats import t

    reach = t.ppf((1 + CONFIDENCE) / 2, len(score_N) - 1) * score_N.std(ddof=1) / len(score_N) ** 0.5
    return max(0.0, float(score_N.mean() - reach)), min(1.0, float(score_N.mean() + reach))


def clustered_interval(hits_S: Ints | Floats, sizes_S: Ints | Floats) -> tuple[float, float]:
    """Interval for the share hits / sizes of a source whose texts are independent and whose tokens are not.

    Clopper-Pearson with the effective number of tokens, p (1 - p) / variance of the ratio estimator; where
    no text differs from the rest, that is the number of texts.
    """
    from scipy.stats import t

    texts, total = len(sizes_S), sizes_S.sum()
    share = hits_S.sum() / total
    variance = ((hits_S - share * sizes_S) ** 2).sum() * texts / max(1, texts - 1) / total**2
    effective = min(total, share * (1 - share) / variance) if variance > 0 else texts
    tail = (1 - CONFIDENCE) / 2
    if variance > 0 and texts > 1:  # few clusters know their own spread badly
        effective *= (t.ppf(tail, total - 1) / t.ppf(tail, texts - 1)) ** 2
    low, high = bounds(share * effective, effective, tail)
    return float(low), float(high)


def auc(scores_N: Any, labels_N: Any) -> float:
    """The share of pairs of a row of class 1 and one of class 0 that the scores order so, ties by half; NaN
    without either."""
    positive_N = labels_N == 1
    positives, negatives = int(positive_N.sum()), int((~positive_N).sum())
    if not positives or not negatives:
        return math.nan
    ranks_N = _ranks(scores_N)
    return float((ranks_N[positive_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _ranks(values_N: Floats) -> Floats:
    """From 1; of equal values the mean."""
    _, place_N, count_K = np.unique(values_N, return_inverse=True, return_counts=True)
    found: Floats = (np.cumsum(count_K) - (count_K - 1) / 2)[place_N]
    return found


def auc_interval(scores_N: Any, labels_N: Any) -> tuple[float, float] | None:
    """By the spread of each row's share of pairs that it orders so; exact where no pair or each one is."""
    above_N, below_N = scores_N[labels_N == 1], scores_N[labels_N != 1]
    if min(len(above_N), len(below_N)) < 2:
        return None
    value = auc(scores_N, labels_N)
    if value in (0.0, 1.0):
        least = min(len(above_N), len(below_N))
        return interval(int(value) * least, least)
    ranks = _ranks(np.concatenate([above_N, below_N]))
    of_above = (ranks[: len(above_N)] - _ranks(above_N)) / len(below_N)
    of_below = 1 - (ranks[len(above_N) :] - _ranks(below_N)) / len(above_N)
    error = math.sqrt(of_above.var(ddof=1) / len(above_N) + of_below.var(ddof=1) / len(below_N))
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return max(0.0, value - reach), min(1.0, value + reach)


def bleu_counts(references: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> Ints:
    """Per text [S, 10]: clipped matches and n-grams guessed for n = 1 to 4, reference and guess length."""
    rows = []
    for reference, guess in zip(references, guesses, strict=True):
        row = []
        for n in range(1, 5):
            wanted, got = _grams(reference, n), _grams(guess, n)
            row += [(wanted & got).total(), got.total()]
        rows.append([*row, len(reference), len(guess)])
    return np.array(rows, dtype=np.int64)


def bleu4_of(counts: Ints | Floats) -> float:
    """Corpus BLEU-4 in [0, 1] of texts whose `bleu_counts` are given, brevity penalty included.

    >>> bleu4_of(bleu_counts([(1, 2, 3, 4, 5)], [(1, 2, 3, 4, 5)]))
    1.0
    >>> bleu4_of(bleu_counts([(1, 2, 3, 4, 5)], [(1, 2, 4, 3, 5)]))  # no four in a row
    0.0
    """
    return float(_bleu4(counts.sum(axis=0)))


def _bleu4(totals: Ints | Floats) -> Floats:
    """BLEU-4 of each row [..., 10] of summed counts."""
    matches, grams = totals[..., 0:8:2], totals[..., 1:8:2]
    with np.errstate(divide="ignore", invalid="ignore"):  # where some order has no match the value is 0
        brevity = np.minimum(0.0, 1 - totals[..., 8] / totals[..., 9])
        precision = np.exp(brevity + np.log(matches / grams).mean(axis=-1))
    return np.where(matches.all(axis=-1), precision, 0.0)


def bleu_interval(counts: Ints) -> tuple[float, float]:
    """Percentile bootstrap over texts, with one more text of mean length: not read at all for the low end,
    read wholly for the high one. A plain bootstrap knows no n-grams that no text happened to match."""
    draws = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), 400)
    sums, tail = draws @ counts, (1 - CONFIDENCE) / 2
    unread, read = counts.mean(axis=0), counts.mean(axis=0)
    unread[0:8:2], read[0:8:2] = 0, read[1:8:2]
    ends = zip((unread, read), (tail, 1 - tail), strict=True)
    low, high = (np.quantile(_bleu4(sums + more), at) for more, at in ends)
    value = bleu4_of(counts)
    return min(float(low), value), max(float(high), value)


def _grams(text: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))
