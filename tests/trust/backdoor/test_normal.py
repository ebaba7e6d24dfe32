"""The one-class statistic: p-values of innocent texts are uniform, what is unusual is far, either way."""

from __future__ import annotations

import numpy as np
import pytest

from transom.errors import MisconfiguredError
from transom.trust.backdoor.measures import MEASURES, Floats
from transom.trust.backdoor.normal import FEWEST, fit

LAYERS, CONSENSUS = 4, MEASURES.index("consensus")


def drawn(count: int, seed: int) -> tuple[Floats, list[int]]:
    """Measures that move with the length, are correlated, and have tails."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(5, 60, count)
    mix = np.random.default_rng(0).normal(size=(LAYERS * len(MEASURES), LAYERS * len(MEASURES))) / 5
    noise = draw.standard_t(6, size=(count, LAYERS * len(MEASURES)))
    measures = noise @ (mix + np.eye(len(mix))) - 2.0 * np.log(tokens)[:, None]
    return measures.reshape(count, LAYERS, len(MEASURES)), tokens.tolist()


def test_innocent_texts_are_flagged_at_the_rate_that_is_asked_for() -> None:
    shares = []
    for seed in range(20):
        normal = fit(*drawn(200, seed))
        p_values = normal.p_values(normal.statistics(*drawn(300, 1000 + seed)))
        assert p_values.min() >= 1 / 101
        shares.append([(p_values <= rate).mean() for rate in (0.02, 0.05, 0.2)])
    for share, rate in zip(np.mean(shares, 0), (0.02, 0.05, 0.2), strict=True):
        assert abs(share - rate) < 0.02


@pytest.mark.parametrize("way", [1.0, -1.0])
def test_what_is_unusual_in_any_measure_is_far(way: float) -> None:
    normal, (measures, tokens) = fit(*drawn(400, 0)), drawn(200, 1)
    usual = normal.p_values(normal.statistics(measures, tokens))
    moved = measures.copy()
    moved[:, 1] += way * 9.0  # all measures of a lower layer
    far = normal.p_values(normal.statistics(moved, tokens))
    assert np.median(far) < 0.01 < np.median(usual)


def test_agreement_of_the_last_layer_counts_by_itself() -> None:
    normal, (measures, tokens) = fit(*drawn(400, 0)), drawn(200, 1)
    moved = measures.copy()
    moved[:, -1, CONSENSUS] += 12.0
    assert (normal.distances(moved, tokens)[:, 0] > normal.distances(measures, tokens)[:, 0] + 1).all()
    lower = measures.copy()
    lower[:, 0, CONSENSUS] += 12.0
    np.testing.assert_allclose(
        normal.distances(lower, tokens)[:, 0], normal.distances(measures, tokens)[:, 0]
    )


def test_length_alone_is_nothing_unusual() -> None:
    normal, (measures, tokens) = fit(*drawn(2000, 0)), drawn(2000, 1)
    p_values = normal.p_values(normal.statistics(measures, tokens))
    short = np.array(tokens) < 15
    assert abs((p_values[short] <= 0.05).mean() - (p_values[~short] <= 0.05).mean()) < 0.03


@pytest.mark.parametrize("count", [0, FEWEST - 1])
def test_too_few_trusted_texts_are_refused(count: int) -> None:
    with pytest.raises(MisconfiguredError, match=f"{count} trusted texts are too few"):
        fit(*drawn(count, 0))


def test_texts_that_are_all_alike_are_refused() -> None:
    measures, _ = drawn(1, 0)
    with pytest.raises(MisconfiguredError, match="all alike"):
        fit(np.repeat(measures, FEWEST, 0), [9] * FEWEST)
