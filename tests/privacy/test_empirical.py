"""Empirical privacy: the likeliest token, the distance that eta is reported with, and calibration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.audit.attacks import matching
from transom.checkpoint import load
from transom.errors import MisconfiguredError
from transom.privacy.empirical import calibrate_eta, empirical_privacy, likeliest, nearest_distance
from transom.privacy.nearest import two_nearest
from transom.privacy.noise import Shape, d_chi
from transom.privacy.stream import Stream

SECRET = bytes(range(32))
V, D, N = 300, 32, 1000
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(V, D)).astype(np.float32)
IDS = RNG.integers(0, V, N)


def noise(eta: Any, d: int = D, n: int = N) -> Any:
    return d_chi(Stream(SECRET, "empirical"), n, d, eta)


def privacy(eta: float) -> float:
    return empirical_privacy(TABLE, IDS, noise(eta))


@given(st.integers(0, 10_000), st.integers(0, 30), st.integers(1, 20))
def test_the_two_nearest_are_those_of_all_distances(seed: int, rows: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows_SF = rng.normal(size=(rows, 4)).astype(np.float32)
    base_VF = rng.normal(size=(size, 4)).astype(np.float32)
    away_SV = np.linalg.norm(rows_SF[:, None] - base_VF[None], axis=2)
    ids_S2, away_S2 = two_nearest(rows_SF, base_VF)
    wanted_S2 = np.sort(away_SV, axis=1)[:, [0, min(1, size - 1)]]
    np.testing.assert_allclose(away_S2, wanted_S2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(away_SV, ids_S2, 1), away_S2, rtol=1e-4, atol=1e-6)
    if rows:
        np.testing.assert_array_equal(matching.nearest(rows_SF, base_VF)[0], ids_S2[:, 0])


def test_privacy_falls_from_all_to_nothing() -> None:
    curve = [privacy(eta) for eta in (0.01, 3.0, 8.0, 20.0, 1000.0)]
    assert curve == sorted(curve, reverse=True)
    assert curve[0] > 0.98
    assert curve[-1] == 0.0


def brute_force(seen_ND: Any, etas_V: Any, shape: Shape | None) -> Any:
    """The token of the highest density, written out: |A^-1 n| under noise n = A m of a token's own eta."""
    bend_DD = np.eye(D) if shape is None else shape.bend(np.eye(D))
    away_NV = np.linalg.norm((seen_ND[:, None] - TABLE[None]) @ np.linalg.inv(bend_DD), axis=2)
    return (D * np.log(etas_V) - etas_V * away_NV).argmax(axis=1)


@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
def test_the_likeliest_token_is_that_of_the_density(shaped: bool, factor: float) -> None:
    shape = Shape(np.linalg.qr(RNG.normal(size=(D, 4)))[0], 0.3) if shaped else None
    etas_V = np.where(np.arange(V) % 3, 8.0, 8.0 * factor)
    noise_ND = noise(etas_V[IDS])[:100]
    seen_ND = TABLE[IDS[:100]] + (noise_ND if shape is None else shape.bend(noise_ND))
    guess_N = likeliest(TABLE, seen_ND, eta_V=etas_V, shape=shape)
    assert (guess_N == brute_force(seen_ND, etas_V, shape)).mean() > 0.99
    if factor == 1.0:
        np.testing.assert_array_equal(guess_N, likeliest(TABLE, seen_ND, shape=shape))


def test_an_attacker_who_knows_the_shape_reads_more() -> None:
    """Most noise lies outside of the span; in the shape's units it no longer hides what is inside."""
    shape = Shape(np.linalg.qr(RNG.normal(size=(D, 8)))[0], 0.1)
    bent_ND = shape.bend(noise(1.5))
    naive = empirical_privacy(TABLE, IDS, bent_ND)
    assert empirical_privacy(TABLE, IDS, bent_ND, shape=shape) < naive - 0.2
    assert empirical_privacy(TABLE, IDS, noise(1.5)) > naive


def test_an_attacker_who_knows_who_is_spared_reads_more() -> None:
    """The length of noise tells whether a token is one of the few that were spared, so only those compete."""
    etas_V = np.where(np.arange(V) < 30, 2.5, 1.25)
    ids = RNG.integers(0, 30, N)
    noise_ND = noise(etas_V[ids])
    naive = empirical_privacy(TABLE, ids, noise_ND)
    assert empirical_privacy(TABLE, ids, noise_ND, eta_V=etas_V) < naive - 0.2


def test_one_spared_token_is_told_by_its_length_alone() -> None:
    etas_V = np.where(np.arange(V) == 7, 0.02, 0.01)
    seen_ND = TABLE[7] + noise(etas_V[np.full(200, 7)], n=200)
    assert (likeliest(TABLE, seen_ND, eta_V=etas_V) == 7).mean() > 0.9
    assert (likeliest(TABLE, seen_ND) == 7).mean() < 0.1


def test_the_mean_of_releases_reads_more() -> None:
    releases = [d_chi(Stream(SECRET, str(number)), N, D, 2.0) for number in range(5)]
    once, mean = (empirical_privacy(TABLE, IDS, kept) for kept in (releases[0], np.mean(releases, axis=0)))
    assert mean < once - 0.3


def test_the_nearest_distance_is_the_median_to_another_row() -> None:
    away_VV = np.linalg.norm(TABLE[:, None] - TABLE[None], axis=2)
    np.fill_diagonal(away_VV, np.inf)
    nearest_V = away_VV.min(axis=1)
    assert nearest_distance(TABLE) == pytest.approx(np.median(nearest_V), rel=1e-4)
    assert nearest_distance(TABLE, np.array([5, 5, 9, 200])) == pytest.approx(
        np.median(nearest_V[[5, 9, 200]])
    )
    assert nearest_distance(TABLE, sample=50) == pytest.approx(np.median(nearest_V), rel=0.1)
    copied = np.concatenate([TABLE, np.tile(TABLE[:1], (500, 1))])
    assert nearest_distance(copied) == pytest.approx(np.median(nearest_V[1:]), rel=1e-2)
    with pytest.raises(MisconfiguredError, match="copy"):
        nearest_distance(np.ones((5, 3)))


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_calibration_meets_its_target_and_so_does_fresh_noise(target: float) -> None:
    found = calibrate_eta(privacy, target, 0.1, 1000.0, tolerance=0.01)
    assert target <= found.privacy <= target + 0.01
    assert found.privacy == privacy(found.eta)
    etas, shares = zip(*found.curve, strict=True)
    assert list(etas) == sorted(etas)
    assert list(shares) == sorted(shares, reverse=True)
    fresh = empirical_privacy(TABLE, IDS, d_chi(Stream(SECRET, "fresh"), N, D, found.eta))
    assert fresh == pytest.approx(target, abs=4 * math.sqrt(0.5 * target * (1 - target) / N) + 0.03)


@given(st.floats(0.01, 0.99), st.floats(0.3, 30.0), st.floats(0.1, 5.0))
def test_any_falling_measure_is_met(target: float, middle: float, slope: float) -> None:
    """Against the exact inverse of a logistic curve, on both sides of the tolerance."""

    def measure(eta: float) -> float:
        return 1 / (1 + (eta / middle) ** slope)

    found = calibrate_eta(measure, target, 1e-30, 1e30, tolerance=0.005)
    assert target <= found.privacy <= target + 0.005
    exact = middle * (1 / target - 1) ** (1 / slope)
    assert found.eta <= exact * (1 + 1e-9)


def test_a_target_out_of_reach_is_said() -> None:
    with pytest.raises(MisconfiguredError, match=r"eta 100 \(0.000\)"):
        calibrate_eta(privacy, 0.5, 50.0, 100.0)
    with pytest.raises(MisconfiguredError, match="another range"):
        calibrate_eta(privacy, 0.5, 0.01, 0.02)
    with pytest.raises(MisconfiguredError, match="jumps from"):
        calibrate_eta(lambda eta: float(eta < 7), 0.5, 1.0, 100.0)
    for low, high, target, tolerance in ((2.0, 1.0, 0.5, 0.1), (1.0, 2.0, 1.5, 0.1), (1.0, 2.0, 0.5, 0.0)):
        with pytest.raises(MisconfiguredError, match="need 0 < low"):
            calibrate_eta(privacy, target, low, high, tolerance)


@pytest.mark.parametrize("noise_ND", [np.zeros((3, D)), np.zeros((2, D + 1)), np.zeros(D)])
def test_noise_that_does_not_fit_is_refused(noise_ND: Any) -> None:
    with pytest.raises(MisconfiguredError, match="2 tokens need noise"):
        empirical_privacy(TABLE, np.array([1, 2]), noise_ND)
    with pytest.raises(MisconfiguredError, match="0 tokens"):
        empirical_privacy(TABLE, np.array([], np.int64), np.zeros((0, D)))


def test_minilm_as_measured_before() -> None:
    """0.876 at eta 50, 0.139 at 100, 0.005 at 150 (the specification's), within sampling over its tokens; the
    useful window is where eta times the nearest distance is about 100, so d_chi's own bound is void."""
    table_VD = load("minilm").model.get_input_embeddings().weight.detach().numpy()
    ids = np.random.default_rng(1).integers(1996, len(table_VD), 300)
    for eta, low, high in ((50.0, 0.8, 0.93), (100.0, 0.08, 0.25), (150.0, 0.0, 0.07)):
        assert low < empirical_privacy(table_VD, ids, noise(eta, 384, 300)) < high
    assert nearest_distance(table_VD, ids) == pytest.approx(1.0, abs=0.1)


def test_the_published_sampler_hides_more_at_the_same_eta() -> None:
    """Its noise is sqrt(d / 3) times as long, so a figure taken with it is none of d_chi's."""
    rng = np.random.default_rng(0)
    wrong_ND = rng.gamma(D, 1 / 8.0, (N, D)) * rng.uniform(-1, 1, (N, D))
    assert empirical_privacy(TABLE, IDS, wrong_ND) > privacy(8.0) + 0.3
    assert stats.kstest(np.linalg.norm(wrong_ND, axis=1), stats.gamma(D, scale=1 / 8.0).cdf).pvalue < 1e-9
