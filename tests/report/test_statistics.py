"""Intervals cover what they are of, and BLEU follows its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.report.finding import clustered
from transom.report.statistics import (
    bleu4_of,
    bleu_counts,
    bleu_interval,
    bounds,
    clustered_interval,
    interval,
    mean_interval,
)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("n", [20, 200])
def test_the_interval_covers_the_rate(rate: float, n: int) -> None:
    from scipy.stats import binom

    hits = np.arange(n + 1)
    bounds = np.array([interval(int(h), n) for h in hits])
    covered = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
    assert binom.pmf(hits, n, rate)[covered].sum() >= 0.95


@pytest.mark.parametrize("n", [1, 7, 500])
def test_the_interval_holds_its_share_and_stays_between_0_and_1(n: int) -> None:
    for hits in {0, 1, n // 2, n}:
        low, high = interval(hits, n)
        assert 0 <= low <= hits / n <= high <= 1
    assert interval(0, n)[0] == 0
    assert interval(n, n)[1] == 1
    assert interval(0, n)[1] == pytest.approx(1 - 0.025 ** (1 / n))  # its closed form at no hits


def test_more_trials_narrow_the_interval() -> None:
    widths = [high - low for low, high in (interval(n // 4, n) for n in (40, 400, 4000))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("hits", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)])
def test_counts_that_cannot_be_are_refused(hits: int, n: int, confidence: float) -> None:
    with pytest.raises(MisconfiguredError, match="need 0 <= hits <= n"):
        interval(hits, n, confidence)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_clustered_interval_covers(share: float) -> None:
    """Texts of different length and their own rates: the overall rate lies in 95 % of the intervals."""
    draw = np.random.default_rng(4)
    inside = []
    for _ in range(400):
        sizes = draw.integers(1, 40, 120)
        rates = draw.beta(share * 4, (1 - share) * 4, 120)
        low, high = clustered_interval(draw.binomial(sizes, rates), sizes)
        inside.append(low <= share <= high)
    assert 0.92 <= np.mean(inside) <= 1.0


def test_tokens_of_one_text_are_not_independent() -> None:
    """All-or-nothing texts count as one trial each, however long they are."""
    hits, sizes = np.array([100, 0] * 20), np.full(40, 100)
    low, high = clustered_interval(hits, sizes)
    assert low < 0.36
    assert high > 0.64


def test_no_hit_leaves_room_for_one_text() -> None:
    low, high = clustered_interval(np.zeros(10, np.int64), np.full(10, 1000))
    assert low == 0.0
    assert 0.2 < high < 0.4


def test_bleu_follows_its_definition() -> None:
    """By hand: 5 of 6, 3 of 5, 2 of 4, 1 of 3 matches, and a brevity penalty of exp(1 - 7/6)."""
    reference, guess = (1, 2, 3, 4, 9, 6, 7), (1, 2, 3, 4, 5, 6)
    expected = np.exp(1 - 7 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu4_of(bleu_counts([reference], [guess])) == pytest.approx(expected)
    assert bleu4_of(bleu_counts([(1, 1, 2, 3, 4)], [(1, 1, 1, 1, 1)])) == 0.0


def test_the_bleu_interval_holds_the_value_and_narrows() -> None:
    draw = np.random.default_rng(5)
    texts = draw.integers(0, 50, (400, 12))
    guesses = np.where(draw.random((400, 12)) < 0.9, texts, -1)
    widths = []
    for count in (40, 400):
        counts = bleu_counts(texts[:count].tolist(), guesses[:count].tolist())
        low, high = bleu_interval(counts)
        assert low < bleu4_of(bleu_counts(texts[:count].tolist(), guesses[:count].tolist())) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize("seen", [10, 80])
@pytest.mark.parametrize("read", [0.15, 0.5, 0.95])
def test_the_bleu_interval_covers(covers: Any, read: float, seen: int) -> None:
    """A population of 3,000 texts, some read much better than others; intervals come from a few of them."""
    draw = np.random.default_rng(6)
    texts = [draw.integers(0, 50, size) for size in draw.integers(5, 25, 3000)]
    rates = draw.beta(8 * read, 8 * (1 - read), len(texts))
    guesses = [
        np.where(draw.random(len(text)) < rate, text, -1) for text, rate in zip(texts, rates, strict=True)
    ]
    counts = bleu_counts([text.tolist() for text in texts], [guess.tolist() for guess in guesses])
    truth = bleu4_of(counts)
    found = [bleu_interval(counts[draw.integers(0, len(texts), seen)]) for _ in range(200)]
    assert 0.02 < truth < 0.97
    assert covers(found, truth)


def test_the_bleu_interval_of_few_texts_is_wide_where_all_or_nothing_was_read() -> None:
    texts = np.random.default_rng(7).integers(0, 50, (10, 12)).tolist()
    low, high = bleu_interval(bleu_counts(texts, [[-1] * 12] * 10))
    assert low == 0.0
    assert 0.05 < high < 0.3
    low, high = bleu_interval(bleu_counts(texts, texts))
    assert 0.7 < low < 0.95
    assert high == 1.0


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (5.0, 1.5), (0.5, 0.5)])
def test_the_interval_of_a_mean_covers_it(a: float, b: float) -> None:
    rng = np.random.default_rng(7)
    covered = [low <= a / (a + b) <= high for low, high in map(mean_interval, rng.beta(a, b, (2000, 24)))]
    assert np.mean(covered) > 0.93


def test_right_and_wrong_scores_get_the_exact_interval() -> None:
    low, high = mean_interval(np.ones(24))
    assert high == 1
    assert low == pytest.approx(0.025 ** (1 / 24))
    rng = np.random.default_rng(8)
    covered = [low <= 0.9 <= high for low, high in map(mean_interval, rng.binomial(1, 0.9, (2000, 30)) * 1.0)]
    assert np.mean(covered) >= 0.95


def test_one_score_says_nothing_and_none_or_a_wrong_one_is_refused() -> None:
    assert mean_interval(np.array([0.5])) == (0, 1)
    for wrong in ([], [0.5, 1.5], [0.5, np.nan]):
        with pytest.raises(MisconfiguredError, match="in \\[0, 1\\]"):
            mean_interval(np.array(wrong))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.floats(0.001, 0.4))
def test_bounds_of_many_counts_are_those_of_each(hits: list[int], tail: float) -> None:
    pairs = np.stack(bounds(np.array(hits), 50, tail), axis=1)
    assert np.allclose(pairs, [interval(hit, 50, 1 - 2 * tail) for hit in hits])


def test_a_finding_over_texts_counts_each_texts_hits() -> None:
    sizes, draw = [3, 1, 5, 2], np.random.default_rng(0)
    hit_N = draw.random(11) < 0.5
    hits = [int(part.sum()) for part in np.split(hit_N, np.cumsum(sizes)[:-1])]
    found = clustered("x", "ttrsr", hit_N, sizes, baseline=0.1, note="why")
    assert (found.low, found.high) == clustered_interval(np.array(hits), np.array(sizes))
    assert (found.value, found.n, found.baseline, found.note) == (hit_N.mean(), 11, 0.1, "why")
