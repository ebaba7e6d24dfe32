"""Noise: its law, what it promises and whether the distinguisher agrees, and its shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.audit.attacks.epsilon import EpsilonFinding, judge
from transom.audit.attacks.rows import Noise
from transom.audit.draws import Draws
from transom.errors import MisconfiguredError, NeverError
from transom.privacy.guarantee import price, released
from transom.privacy.noise import (
    MOST_METRIC,
    Shape,
    clipped,
    d_chi,
    d_chi_guarantee,
    gaussian,
    gaussian_guarantee,
    noised,
    task_directions,
    used_directions,
)
from transom.privacy.stream import Stream

SECRET = bytes(range(32))
RNG = np.random.default_rng(0)
Sample = Callable[[int, int, float], Any]


def drawn(n: int, d: int, eta: float, label: str = "x") -> Any:
    return d_chi(Stream(SECRET, f"{label}/{n}/{d}/{eta}"), n, d, eta)


def gamma_a_coordinate(n: int, d: int, eta: float) -> Any:
    """As published: a length a coordinate, on a direction from a cube that nobody normalised."""
    rng = np.random.default_rng(1)
    return rng.gamma(d, 1 / eta, (n, d)) * rng.uniform(-1, 1, (n, d))


def gamma_a_coordinate_of_a_unit(n: int, d: int, eta: float) -> Any:
    """The same with a true direction: the mean length is right, its law is not."""
    rng = np.random.default_rng(2)
    normal_ND = rng.normal(size=(n, d))
    unit_ND = normal_ND / np.linalg.norm(normal_ND, axis=1, keepdims=True)
    return rng.gamma(d, 1 / eta, (n, d)) * unit_ND


def from_a_cube(n: int, d: int, eta: float) -> Any:
    """The right length, and a direction that prefers the cube's corners."""
    rng = np.random.default_rng(3)
    cube_ND = rng.uniform(-1, 1, (n, d))
    return rng.gamma(d, 1 / eta, (n, 1)) * cube_ND / np.linalg.norm(cube_ND, axis=1, keepdims=True)


def length_p(noise_ND: Any, eta: float) -> float:
    """How likely lengths like these are under Gamma(d, 1 / eta)."""
    lengths_N = np.linalg.norm(noise_ND, axis=1)
    return float(stats.kstest(lengths_N, stats.gamma(noise_ND.shape[1], scale=1 / eta).cdf).pvalue)


def direction_p(noise_ND: Any) -> float:
    """The same of the directions' cosines with an axis, a diagonal and a random line: on the sphere each
    square is Beta(1/2, (d - 1)/2), and the sign even. One look at the three, the least times three."""
    n, d = noise_ND.shape
    unit_ND = noise_ND / np.linalg.norm(noise_ND, axis=1, keepdims=True)
    lines = np.stack([np.eye(d)[0], np.ones(d), np.random.default_rng(4).normal(size=d)])
    cosines_N3 = unit_ND @ (lines / np.linalg.norm(lines, axis=1, keepdims=True)).T
    law = stats.beta(0.5, (d - 1) / 2).cdf
    squares = [stats.kstest(cosine_N**2, law).pvalue for cosine_N in cosines_N3.T]
    signs = [stats.binomtest(int((cosine_N > 0).sum()), n).pvalue for cosine_N in cosines_N3.T]
    return float(min(squares + signs)) * 6


@pytest.mark.parametrize("d", [2, 3, 24, 384])
@pytest.mark.parametrize("eta", [0.1, 7.0, 150.0])
def test_the_length_is_gamma_and_the_direction_uniform(d: int, eta: float) -> None:
    noise_ND = drawn(4000, d, eta)
    assert length_p(noise_ND, eta) > 1e-3
    assert direction_p(noise_ND) > 1e-3
    lengths_N = np.linalg.norm(noise_ND, axis=1)
    assert lengths_N.mean() == pytest.approx(d / eta, rel=5 / math.sqrt(4000 * d))
    assert abs(stats.spearmanr(lengths_N, noise_ND[:, 0] / lengths_N).statistic) < 5 / 4000**0.5
    assert noise_ND.mean() == pytest.approx(0.0, abs=5 * math.sqrt((d + 1) / (4000 * d)) / eta)


@pytest.mark.parametrize("d", [3, 24])
def test_known_wrong_samplers_are_seen(d: int) -> None:
    """The tests above can fail: for the published sampler, whose noise is sqrt(d / 3) times too long, ..."""
    published = gamma_a_coordinate(4000, d, 7.0)
    square = np.square(np.linalg.norm(published, axis=1)).mean()
    assert square / np.square(d / 7.0) == pytest.approx((d + 1) / 3, rel=0.05)
    assert length_p(published, 7.0) < 1e-6
    assert length_p(gamma_a_coordinate_of_a_unit(4000, d, 7.0), 7.0) < 1e-6
    cube = from_a_cube(40_000, d, 7.0)
    assert length_p(cube, 7.0) > 1e-3
    assert direction_p(cube) < 1e-6


def test_a_rotation_changes_nothing_and_coordinates_are_alike() -> None:
    """Covariance (d + 1) / eta^2 I, before and after a rotation; two halves of the sample agree in law."""
    n, d, eta = 20_000, 8, 2.0
    noise_ND = drawn(n, d, eta)
    turned_ND = noise_ND @ Stream(SECRET, "turn").orthogonal(d)
    variance = (d + 1) / eta**2
    for sample_ND in (noise_ND, turned_ND):
        covariance_DD = np.cov(sample_ND, rowvar=False)
        np.testing.assert_allclose(covariance_DD, variance * np.eye(d), atol=7 * variance / n**0.5)
    for column in range(d):
        assert stats.ks_2samp(noise_ND[: n // 2, 0], turned_ND[n // 2 :, column]).pvalue > 1e-4


def test_the_audit_knows_the_same_law() -> None:
    """Two samplers of one density, of which one is seeded and measures, the other is secret and protects."""
    zeros = torch.zeros(4000, 24)
    other_ND = Noise("norm", 1 / 7.0).protect(zeros, torch.Generator().manual_seed(0)).numpy()
    ours_ND = drawn(4000, 24, 7.0)
    assert stats.ks_2samp(np.linalg.norm(ours_ND, axis=1), np.linalg.norm(other_ND, axis=1)).pvalue > 1e-3
    assert stats.ks_2samp(ours_ND[:, 5], other_ND[:, 5]).pvalue > 1e-3
    assert Noise("norm", 1 / 7.0).variance(24) == pytest.approx(25 / 49)


@given(st.integers(0, 40), st.integers(2, 20), st.floats(1e-3, 1e3), st.floats(1.0, 100.0))
def test_noise_is_its_labels_alone(n: int, d: int, eta: float, factor: float) -> None:
    """The same bytes from the same label; another label shares none; eta scales a row's length, and only
    that of its own row."""
    noise_ND = d_chi(Stream(SECRET, "a"), n, d, eta)
    assert noise_ND.dtype == np.float64
    assert noise_ND.shape == (n, d)
    assert np.isfinite(noise_ND).all()
    assert noise_ND.tobytes() == d_chi(Stream(SECRET, "a"), n, d, np.full(n, eta)).tobytes()
    assert not np.isin(noise_ND, d_chi(Stream(SECRET, "b"), n, d, eta)).any()
    etas_N = np.where(np.arange(n) % 2, eta * factor, eta)
    mixed_ND = d_chi(Stream(SECRET, "a"), n, d, etas_N)
    assert mixed_ND[::2].tobytes() == noise_ND[::2].tobytes()
    np.testing.assert_allclose(mixed_ND[1::2] * factor, noise_ND[1::2], rtol=1e-12)


@pytest.mark.parametrize("eta", [0.0, -1.0, math.nan, math.inf])
def test_an_eta_that_is_none_is_refused(eta: float) -> None:
    with pytest.raises(MisconfiguredError, match="eta must be positive"):
        d_chi(Stream(SECRET, "a"), 3, 4, np.array([1.0, eta, 1.0]))
    with pytest.raises(MisconfiguredError, match="eta must be positive"):
        d_chi_guarantee(eta, 1.0)
    with pytest.raises(MisconfiguredError, match="sigma must be positive"):
        gaussian(Stream(SECRET, "a"), 3, 4, eta)
    with pytest.raises(MisconfiguredError, match="clip must be positive"):
        d_chi_guarantee(1.0, 1.0, clip=eta)


def test_one_dimension_is_refused() -> None:
    with pytest.raises(MisconfiguredError, match="width 2"):
        d_chi(Stream(SECRET, "a"), 3, 1, 1.0)


def verdict(at_x: Any, at_y: Any, epsilon: float, delta: float = 0.0) -> EpsilonFinding:
    return judge(
        Draws(at_x.astype(np.float64), at_y.astype(np.float64)), epsilon=epsilon, delta=delta, alpha=1e-4
    )


@pytest.mark.parametrize(
    ("d", "eta", "distance"), [(2, 1.0, 1.0), (2, 0.5, 4.0), (3, 0.25, 4.0), (8, 0.5, 2.0)]
)
def test_the_distinguisher_does_not_break_the_metric_claim(d: int, eta: float, distance: float) -> None:
    """Two rows at a distance: e^(eta * distance) holds, at any angle to the axes."""
    x_D, y_D = np.zeros(d), np.ones(d) * distance / d**0.5
    n = 40_000
    found = verdict(x_D + drawn(n, d, eta, "x"), y_D + drawn(n, d, eta, "y"), eta * distance)
    assert not found.rejected
    guarantee = d_chi_guarantee(eta, distance, clip=distance / 2)
    assert price(guarantee) == pytest.approx(eta * distance)
    assert price(guarantee) >= eta * distance


def half_as_long(n: int, d: int, eta: float, label: str) -> Any:
    return drawn(n, d, 2 * eta, label)


def shortened(n: int, d: int, eta: float, label: str) -> Any:
    """Noise that never goes beyond its mean: far outputs give the row away."""
    noise_ND = drawn(n, d, eta, label)
    length_N1 = np.linalg.norm(noise_ND, axis=1, keepdims=True)
    return noise_ND * np.minimum(1.0, d / eta / length_N1)


def one_axis(n: int, d: int, eta: float, label: str) -> Any:
    """A shape that forgets one direction nearly wholly, under the claim of the plain law."""
    return Shape(np.eye(d)[:, :1], 0.2).bend(drawn(n, d, eta, label))


@pytest.mark.parametrize("broken", [half_as_long, shortened, one_axis])
def test_the_distinguisher_breaks_less_noise_than_claimed(broken: Any) -> None:
    n, eta, x_D, y_D = 40_000, 1.0, np.zeros(2), np.array([1.5, 0.0])
    assert verdict(x_D + broken(n, 2, eta, "x"), y_D + broken(n, 2, eta, "y"), 1.5).rejected
    assert not verdict(x_D + drawn(n, 2, eta, "x"), y_D + drawn(n, 2, eta, "y"), 1.5).rejected


def test_noise_rounded_before_it_is_added_is_caught() -> None:
    """Low bits: a float32 result is one of x = 0, when the noise was; of noise in float64 none is, and the
    sum's own rounding leaves nothing to see."""
    n, x_D, y_D = 4000, np.zeros(2), np.array([1.0, 0.0]) / 3

    def coarse(values_ND: Any) -> Any:
        return (values_ND == values_ND.astype(np.float32)).all(axis=1).astype(np.int64)

    early = [row_D + drawn(n, 2, 1.0, "x").astype(np.float32) for row_D in (x_D, y_D)]
    assert judge(Draws(*map(coarse, early)), epsilon=1 / 3).rejected
    late = [row_D + drawn(n, 2, 1.0, "x") for row_D in (x_D, y_D)]
    assert not judge(Draws(*map(coarse, late)), epsilon=1 / 3).rejected
    rows_ND = np.tile(y_D.astype(np.float32), (n, 1))
    sum_ND = noised(rows_ND, drawn(n, 2, 1.0))
    assert sum_ND.dtype == np.float32
    np.testing.assert_array_equal(sum_ND, (rows_ND.astype(np.float64) + drawn(n, 2, 1.0)).astype(np.float32))
    for wrong_ND in (drawn(n, 2, 1.0).astype(np.float32), drawn(n - 1, 2, 1.0)):
        with pytest.raises(MisconfiguredError, match="float64"):
            noised(rows_ND, wrong_ND)


def test_a_shape_keeps_the_claim_that_its_guarantee_makes() -> None:
    n, eta, x_D, y_D = 40_000, 0.5, np.zeros(2), np.array([1.5, 0.0])
    epsilon = d_chi_guarantee(eta, 1.5, inside=0.2).epsilon
    assert epsilon == pytest.approx(2.5)
    found = verdict(x_D + one_axis(n, 2, eta, "x"), y_D + one_axis(n, 2, eta, "y"), 1.5 * 2.5)
    assert not found.rejected
    assert found.epsilon_lower > 1.5 * eta


@pytest.mark.parametrize("inside", [1.0, 0.5])
def test_the_gaussian_holds_its_events_and_a_weaker_one_does_not(inside: float) -> None:
    """Two rows as far apart as the clip allows, along the direction with the least noise."""
    n, d, sigma, clip, delta = 40_000, 4, 2 / inside, 1.0, 0.01
    guarantee = gaussian_guarantee(sigma, clip, inside=inside)
    epsilon = price(guarantee, delta)
    x_D, y_D = (clipped(sign * 9 * np.eye(4)[:1], clip)[0] for sign in (1, -1))

    def seen(label: str, row_D: Any, strength: float) -> Any:
        noise_ND = gaussian(Stream(SECRET, label), n, d, sigma * strength)
        return row_D + Shape(np.eye(d)[:, :1], inside).bend(noise_ND)

    assert not verdict(seen("x", x_D, 1.0), seen("y", y_D, 1.0), epsilon, delta).rejected
    assert verdict(seen("x", x_D, 0.5), seen("y", y_D, 0.5), epsilon, delta).rejected


def test_gaussian_noise_is_normal_and_independent() -> None:
    noise_ND = gaussian(Stream(SECRET, "g"), 5000, 6, 0.3)
    assert noise_ND.dtype == np.float64
    assert stats.kstest(noise_ND.ravel() / 0.3, "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.cov(noise_ND, rowvar=False), 0.09 * np.eye(6), atol=7 * 0.09 / 5000**0.5)


@given(st.floats(0.01, 100.0), st.integers(0, 10_000))
def test_clipping_shortens_what_is_longer_and_nothing_else(clip: float, seed: int) -> None:
    rows_ND = np.random.default_rng(seed).normal(size=(8, 5)).astype(np.float32)
    rows_ND[0] = 0.0
    short_ND = clipped(rows_ND, clip)
    assert short_ND.dtype == np.float32
    lengths_N, short_N = (np.linalg.norm(rows, axis=1) for rows in (rows_ND, short_ND))
    np.testing.assert_allclose(short_N, np.minimum(lengths_N, clip), rtol=1e-5)
    np.testing.assert_allclose(short_ND * lengths_N[:, None], rows_ND * short_N[:, None], atol=1e-4)


def test_a_guarantee_is_metric_only_where_it_bounds_something() -> None:
    free = d_chi_guarantee(0.5, 1.2)
    assert (free.kind, free.diameter) == ("metric-dp", None)
    with pytest.raises(MisconfiguredError, match="diameter"):
        released(free)
    twice = d_chi_guarantee(0.5, 1.2, clip=2.0, inside=0.5, releases=3)
    assert (twice.epsilon, twice.diameter) == (pytest.approx(3.0), 4.0)
    assert price(twice) == pytest.approx(12.0)
    just, over = (d_chi_guarantee(MOST_METRIC * x, 1.0) for x in (0.999, 1.001))
    assert (just.kind, over.kind) == ("metric-dp", "empirical")
    for useful in (
        d_chi_guarantee(100.0, 1.0, clip=1.0),
        d_chi_guarantee(0.5, 1.2, spared="9 tokens, chosen from labels"),
        d_chi_guarantee(0.5, 1.2, releases=100),
        d_chi_guarantee(0.5, 1.2, inside=0.01),
    ):
        assert useful.kind == "empirical"
        with pytest.raises(NeverError):
            released(useful)
    assert "100 between two nearest tokens" in d_chi_guarantee(100.0, 1.0).assumptions[0]
    assert any("labels" in told for told in d_chi_guarantee(0.5, 1.2, spared="from labels").discloses)
    with pytest.raises(MisconfiguredError, match="at least once"):
        d_chi_guarantee(1.0, 1.0, releases=0)


def test_gaussian_releases_compose_and_a_shape_costs_its_weakest_direction() -> None:
    one = gaussian_guarantee(2.0, 1.0)
    assert price(gaussian_guarantee(4.0, 1.0, releases=4), 1e-6) == pytest.approx(price(one, 1e-6))
    assert price(gaussian_guarantee(4.0, 1.0, inside=0.5), 1e-6) == pytest.approx(price(one, 1e-6))


def basis(d: int, rank: int, seed: int = 0) -> Any:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, rank)))[0]


@given(st.integers(2, 12), st.integers(1, 12), st.floats(0.01, 1.0), st.integers(0, 10_000))
def test_a_shape_scales_within_and_leaves_the_rest(d: int, rank: int, inside: float, seed: int) -> None:
    shape = Shape(basis(d, min(rank, d), seed), inside)
    rows_ND = np.random.default_rng(seed).normal(size=(6, d))
    bent_ND = shape.bend(rows_ND)
    within_DD = shape.basis_DR @ shape.basis_DR.T
    np.testing.assert_allclose(bent_ND @ within_DD, inside * rows_ND @ within_DD, atol=1e-9)
    np.testing.assert_allclose(bent_ND - bent_ND @ within_DD, rows_ND - rows_ND @ within_DD, atol=1e-9)
    np.testing.assert_allclose(shape.straighten(bent_ND), rows_ND, atol=1e-9)


def test_shaped_noise_has_the_covariance_that_it_states() -> None:
    n, d, eta, inside = 20_000, 8, 2.0, 0.3
    shape = Shape(basis(d, 3), inside)
    noise_ND = shape.bend(drawn(n, d, eta))
    variance = (d + 1) / eta**2
    expected_DD = variance * (np.eye(d) - (1 - inside**2) * shape.basis_DR @ shape.basis_DR.T)
    np.testing.assert_allclose(np.cov(noise_ND, rowvar=False), expected_DD, atol=7 * variance / n**0.5)
    assert shape.bend(noise_ND[:4]).dtype == np.float64


@pytest.mark.parametrize(
    ("basis_DR", "inside", "said"),
    [
        (np.eye(3)[:, :2], 0.0, "inside"),
        (np.eye(3)[:, :2], 1.1, "inside"),
        (2 * np.eye(3)[:, :2], 0.5, "orthonormal"),
        (np.full((3, 2), np.nan), 0.5, "orthonormal"),
        (np.ones(3), 0.5, "shape"),
        (np.eye(3)[:2], 0.5, "shape"),
        (np.eye(3)[:, :0], 0.5, "shape"),
    ],
)
def test_a_shape_that_is_none_is_refused(basis_DR: Any, inside: float, said: str) -> None:
    with pytest.raises(MisconfiguredError, match=said):
        Shape(basis_DR, inside)


def overlap(one_DR: Any, other_DR: Any) -> float:
    """The share of one span that lies in the other, of the same rank."""
    return float(np.square(one_DR.T @ other_DR).sum() / one_DR.shape[1])


def test_without_a_task_the_used_directions_are_where_states_vary() -> None:
    loud_DR = basis(16, 3, 1)
    states_ND = RNG.normal(size=(2000, 16)) + 4 * RNG.normal(size=(2000, 3)) @ loud_DR.T + 100.0
    found_DR = used_directions(states_ND, 3)
    assert overlap(found_DR, loud_DR) > 0.98
    Shape(found_DR, 0.5)


def test_with_a_task_they_are_where_noise_costs_most_for_what_they_tell() -> None:
    """Of two pairs of directions that cost the same, the pair that tells less of the tokens is taken."""
    axes_DD = basis(16, 16, 2)
    variance_D = np.ones(16)
    variance_D[:2], variance_D[2:4] = 0.1, 9.0
    states_ND = RNG.normal(size=(4000, 16)) * np.sqrt(variance_D) @ axes_DD.T
    cost_D = np.full(16, 0.1)
    cost_D[:4] = 1.0
    gradients_ND = RNG.normal(size=(4000, 16)) * cost_D @ axes_DD.T
    assert overlap(used_directions(states_ND, 2, gradients_ND), axes_DD[:, :2]) > 0.95
    assert overlap(used_directions(states_ND, 4, gradients_ND), axes_DD[:, :4]) > 0.95
    assert overlap(used_directions(states_ND, 2), axes_DD[:, 2:4]) > 0.95


def test_noise_in_the_shape_of_a_task_costs_it_less() -> None:
    """Equal strength outside: a linear task is moved `inside` times as far, and less than by plain noise of
    the same mean square."""
    task_DR = basis(32, 2, 3)
    gradients_ND = RNG.normal(size=(500, 2)) @ task_DR.T
    shape = Shape(used_directions(RNG.normal(size=(20_000, 32)), 2, gradients_ND), 0.25)
    noise_ND = drawn(4000, 32, 1.0)
    plain, bent = (np.square(sample_ND @ task_DR).mean() for sample_ND in (noise_ND, shape.bend(noise_ND)))
    assert bent / plain == pytest.approx(0.25**2, rel=0.1)
    assert np.square(shape.bend(noise_ND)).sum() > 0.9 * np.square(noise_ND).sum()


@pytest.mark.parametrize(
    ("states_ND", "gradients_ND", "rank"),
    [
        (np.ones((1, 4)), None, 1),
        (np.ones((9, 4)), None, 0),
        (np.ones((9, 4)), None, 5),
        (np.full((9, 4), np.nan), None, 2),
        (np.ones((9, 4)), np.ones((9, 5)), 2),
        (np.ones((9, 4)), np.full((9, 4), np.inf), 2),
    ],
)
def test_directions_of_nothing_are_refused(states_ND: Any, gradients_ND: Any, rank: int) -> None:
    with pytest.raises(MisconfiguredError):
        used_directions(states_ND, rank, gradients_ND)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_directions_of_a_task_are_those_in_which_its_classes_differ(classes: int) -> None:
    """Whatever else varies more; where the rank is more than the classes need, the first of them."""
    axes_DD = np.linalg.qr(RNG.normal(size=(24, 24)))[0]
    centres_CR = 4 * np.eye(classes)[:, 1:]
    labels_B = np.arange(6000) % classes
    states_BD = RNG.normal(size=(6000, 24)) @ (np.diag([1.0] * 20 + [5.0] * 4) @ axes_DD.T)
    states_BD += centres_CR[labels_B] @ axes_DD[:, : classes - 1].T
    for rank in (classes - 1, classes + 2, 24):
        basis_DR = task_directions(states_BD + 7.0, labels_B, rank)
        np.testing.assert_allclose(basis_DR.T @ basis_DR, np.eye(rank), atol=1e-9)
        assert overlap(basis_DR[:, : classes - 1], axes_DD[:, : classes - 1]) > 0.95


def test_the_first_direction_of_two_classes_is_a_ridge_classifiers() -> None:
    labels_B, states_BD = RNG.integers(0, 2, 400), RNG.normal(size=(400, 6))
    centred_BD = states_BD - states_BD.mean(0)
    rows_BD = np.vstack([centred_BD, np.sqrt(0.01 * np.square(centred_BD).sum() / 6) * np.eye(6)])
    wanted_B = np.concatenate([labels_B - labels_B.mean(), np.zeros(6)])
    weights_D = np.linalg.lstsq(rows_BD, wanted_B, rcond=None)[0]  # ridge regression, by more rows
    found_D = task_directions(states_BD, labels_B, 1)[:, 0]
    assert abs(found_D @ weights_D) / np.linalg.norm(weights_D) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("states", "labels", "rank"),
    [
        (np.ones((4, 3)), [0, 1, 0], 1),
        (np.ones((4, 3)), [1, 1, 1, 1], 1),
        (np.ones((4, 3)), [0, 1, 0, 1], 4),
        (np.full((4, 3), np.nan), [0, 1, 0, 1], 1),
    ],
)
def test_directions_of_no_task_are_refused(states: Any, labels: list[int], rank: int) -> None:
    with pytest.raises(MisconfiguredError):
        task_directions(states, np.array(labels), rank)
