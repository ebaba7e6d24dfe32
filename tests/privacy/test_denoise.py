"""The expected row is Bayes' own, between nearest token and prior mean, and nearer to the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from transom.errors import MisconfiguredError
from transom.privacy.denoise import expected_rows
from transom.privacy.nearest import two_nearest
from transom.privacy.noise import Shape, d_chi
from transom.privacy.stream import Stream

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(60, 8)).astype(np.float32)
PRIOR = RNG.gamma(1.0, size=60)
BASIS = np.linalg.qr(RNG.normal(size=(8, 3)))[0]


def noisy(ids: Any, eta: Any, shape: Shape | None = None) -> Any:
    noise = d_chi(Stream(bytes(32), "x"), len(ids), 8, eta)
    return TABLE[ids] + (noise if shape is None else shape.bend(noise)).astype(np.float32)


@given(st.floats(0.1, 30), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_it_is_bayes_rule(eta: float, spared: bool, shaped: bool, prior: bool, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    eta_V = np.where(np.arange(60) < 5, 3 * eta, eta) if spared else np.full(60, eta)
    shape = Shape(BASIS, 0.3) if shaped else None
    prior_V = PRIOR if prior else None
    seen = noisy(drawn.integers(0, 60, 5), eta, shape)
    found = expected_rows(seen, TABLE, eta_V if spared else eta, prior_V=prior_V, shape=shape)
    away = seen[:, None].astype(np.float64) - TABLE[None]
    if shape is not None:
        away = away - away @ BASIS @ BASIS.T + away @ BASIS @ BASIS.T / 0.3
    density = 8 * np.log(eta_V) - eta_V * np.linalg.norm(away, axis=-1)
    expected = softmax(density + np.log(np.ones(60) if prior_V is None else prior_V), axis=1) @ TABLE
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_it_lies_between_the_nearest_token_and_the_mean_of_all() -> None:
    seen = noisy(np.arange(60), 5.0)
    np.testing.assert_allclose(
        expected_rows(seen, TABLE, 1e4), TABLE[two_nearest(seen, TABLE)[0][:, 0]], atol=1e-5
    )
    mean = PRIOR @ TABLE / PRIOR.sum()
    np.testing.assert_allclose(
        expected_rows(seen, TABLE, 1e-6, prior_V=PRIOR), np.tile(mean, (60, 1)), atol=1e-4
    )


@pytest.mark.parametrize("eta", [3.0, 6.0, 10.0])
def test_it_is_nearer_to_the_truth_than_the_noisy_row_and_than_the_nearest_token(eta: float) -> None:
    ids = np.random.default_rng(1).integers(0, 60, 3000)  # more than a block
    seen = noisy(ids, eta)
    nearest = TABLE[two_nearest(seen, TABLE)[0][:, 0]]
    errors = [
        float(np.square(one - TABLE[ids]).sum(1).mean())
        for one in (expected_rows(seen, TABLE, eta), seen, nearest)
    ]
    assert errors[0] < min(errors[1:])


def test_a_token_that_never_comes_has_no_part() -> None:
    prior = np.zeros(60)
    prior[7] = 1
    np.testing.assert_allclose(
        expected_rows(noisy(np.arange(60), 1.0), TABLE, 1.0, prior_V=prior), TABLE[[7] * 60]
    )


@pytest.mark.parametrize(
    ("eta", "prior"),
    [(0.0, PRIOR), (-1.0, PRIOR), (np.nan, PRIOR), (1.0, PRIOR[:9]), (1.0, -PRIOR), (1.0, 0 * PRIOR)],
)
def test_values_that_do_not_fit_are_refused(eta: float, prior: Any) -> None:
    with pytest.raises(MisconfiguredError, match="60 tokens need"):
        expected_rows(TABLE[:2], TABLE, eta, prior_V=prior)
