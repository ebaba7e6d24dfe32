"""Prices against closed forms, exact compositions and dp-accounting's own: never below, hardly above."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import MisconfiguredError, MissingExtraError, NotYetError
from transom.privacy import account
from transom.privacy.account import (
    ApproximateEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    PureEvent,
    ResponseEvent,
    compose,
    event_from,
    gaussian,
    gaussian_epsilon,
    sensitivity,
)

DELTAS = [1e-3, 1e-6, 1e-9, 1e-10]


def exact_gaussian_delta(mu: float, epsilon: float) -> Any:
    """Balle and Wang 2018, theorem 8, in 60 digits."""
    import mpmath

    with mpmath.workdps(60):
        mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
        reached, allowed = mpmath.ncdf(mu / 2 - epsilon / mu), mpmath.ncdf(-mu / 2 - epsilon / mu)
        return reached - mpmath.exp(epsilon) * allowed


@pytest.mark.parametrize("mu", [1e-6, 1e-3, 0.1, 0.5, 1.0, 4.0, 30.0, 400.0])
@pytest.mark.parametrize("delta", DELTAS)
def test_a_gaussian_costs_what_the_exact_formula_says_and_never_less(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert exact_gaussian_delta(mu, epsilon) <= delta
    if epsilon:
        assert exact_gaussian_delta(mu, epsilon * (1 - 1e-4)) > delta


def test_known_prices_of_gaussians() -> None:
    """sigma = 1 at delta 1e-5 costs 4.377 (the classical calibration says 4.845), from the literature."""
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(1e-9, 1e-5) == 0.0  # statistical distance below delta
    assert gaussian_epsilon(1e5, 1e-5) >= 1e5**2 / 2


def test_gaussians_are_one_gaussian() -> None:
    """mu of E epochs of rows clipped to S, one of which is replaced: sqrt(E) 2 S / sigma."""
    epochs, clip, sigma = 9, 0.5, 4.0
    event = gaussian(sigma=sigma, clip=clip, neighbours="replace-one", count=epochs)
    expected = gaussian_epsilon(math.sqrt(epochs) * 2 * clip / sigma, 1e-6)
    assert expected <= compose([event], 1e-6) <= expected * (1 + 1e-9)
    apart = [GaussianEvent(noise=3.0), GaussianEvent(noise=4.0)]
    assert compose(apart, 1e-6) == pytest.approx(gaussian_epsilon(5 / 12, 1e-6), rel=1e-9)


def test_neighbours_are_told_apart_in_one_place() -> None:
    assert sensitivity(1.5, "add-or-remove") == 1.5
    assert sensitivity(1.5, "replace-one") == 3.0
    assert gaussian(sigma=6.0, clip=1.5, neighbours="replace-one").noise == 2.0
    assert gaussian(sigma=6.0, clip=1.5, neighbours="add-or-remove", sampling=0.1).noise == 4.0
    with pytest.raises(NotYetError, match="add-or-remove neighbours alone"):
        gaussian(sigma=6.0, clip=1.5, neighbours="replace-one", sampling=0.1)
    with pytest.raises(MisconfiguredError, match="neighbours"):
        sensitivity(1.0, "both")  # type: ignore[arg-type]
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(MisconfiguredError, match="clipped"):
            gaussian(sigma=1.0, clip=clip, neighbours="add-or-remove")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 1000)), max_size=5))
def test_pure_epsilons_add_up_rounded_up(parts: list[tuple[float, int]]) -> None:
    exact = sum((Fraction(repr(epsilon)) * count for epsilon, count in parts), Fraction(0))
    for delta in (0.0, 1e-6):
        price = compose([PureEvent(epsilon=epsilon, count=count) for epsilon, count in parts], delta)
        assert exact <= Fraction(price) or price == float(exact)
        assert price <= math.nextafter(float(exact), math.inf)


def test_ten_tenths_are_one() -> None:
    assert compose([PureEvent(epsilon=0.1)] * 10, 0.0) == 1.0
    assert compose([], 1e-6) == 0.0
    assert compose([PureEvent(epsilon=math.inf), PureEvent(epsilon=1.0)], 0.0) == math.inf


def test_one_laplace_has_its_closed_form() -> None:
    """delta(epsilon) = 1 - exp((epsilon - 1/b) / 2); at delta 0 it is pure."""
    event = LaplaceEvent(noise=2.0)
    assert compose([event], 0.0) == 0.5
    assert compose([LaplaceEvent(noise=2.0, count=7)], 0.0) == 3.5
    for delta in (1e-2, 1e-4):
        exact = 0.5 + 2 * math.log1p(-delta)
        assert exact <= compose([event], delta) <= exact + 1e-4


def exact_approximate_delta(epsilon: float, delta: float, count: int, total: float) -> float:
    """Kairouz, Oh and Viswanath 2015, theorem 3.3: the delta of `count` releases at `total`."""
    kept, odds = (1 - delta) ** count, 1 + math.exp(epsilon)
    excess = sum(
        math.comb(count, i)
        * max(0.0, math.exp((count - i) * epsilon) - math.exp(total + i * epsilon))
        / odds**count
        for i in range(count + 1)
    )
    return 1 - kept * (1 - excess)


@pytest.mark.parametrize(("epsilon", "delta", "count"), [(0.5, 1e-5, 1), (0.1, 1e-6, 30), (1.0, 1e-7, 12)])
def test_approximate_releases_compose_as_well_as_anything_can(
    epsilon: float, delta: float, count: int
) -> None:
    price = compose([ApproximateEvent(epsilon=epsilon, delta=delta, count=count)], 1e-3)
    assert exact_approximate_delta(epsilon, delta, count, price) <= 1e-3 * (1 + 1e-9)
    assert exact_approximate_delta(epsilon, delta, count, price * 0.99 - 1e-3) > 1e-3


def test_more_delta_than_there_is_has_no_price() -> None:
    spent = ApproximateEvent(epsilon=0.1, delta=1e-6, count=11)
    assert compose([spent], 1e-5) == math.inf
    assert compose([spent], 1.2e-5) < math.inf


@pytest.mark.parametrize("sampling", [0.01, 0.5])
def test_one_sampled_gaussian_has_its_closed_form(sampling: float) -> None:
    """Removing a record: delta(epsilon) = q delta_gaussian(log(1 + (e^epsilon - 1) / q))."""
    price = compose([GaussianEvent(noise=1.0, sampling=sampling)], 1e-6)
    inner = math.log1p(math.expm1(price) / sampling)
    assert sampling * exact_gaussian_delta(1.0, inner) <= 1e-6 * (1 + 1e-6)
    inner = math.log1p(math.expm1(price * 0.999) / sampling)
    assert sampling * exact_gaussian_delta(1.0, inner) > 1e-6


@pytest.mark.parametrize(("noise", "sampling", "count"), [(1.0, 0.01, 300), (4.0, 0.1, 100), (0.7, 0.02, 20)])
def test_sampled_gaussians_cost_what_dp_accounting_says(noise: float, sampling: float, count: int) -> None:
    import dp_accounting as dp

    reference = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    reference.compose(dp.PoissonSampledDpEvent(sampling, dp.GaussianDpEvent(noise)), count)
    expected = reference.get_epsilon(1e-6)
    price = compose([GaussianEvent(noise=noise, sampling=sampling, count=count)], 1e-6)
    assert expected * (1 - 1e-3) <= price <= expected * (1 + 1e-3)


def test_what_dp_accounting_says_of_neighbours_is_why_there_is_one_convention() -> None:
    """Asked for replace-one, its two accountants mean different things; ours is asked for neither."""
    import dp_accounting as dp

    def asked(accountant: Any, relation: Any) -> float:
        return float(
            accountant(neighboring_relation=relation).compose(dp.GaussianDpEvent(4.0), 10).get_epsilon(1e-5)
        )

    pld, rdp = dp.pld.PLDAccountant, dp.rdp.RdpAccountant
    add, replace_one = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE
    ours = {
        n: gaussian(sigma=4.0, clip=1.0, neighbours=n, count=10) for n in ("add-or-remove", "replace-one")
    }
    assert compose([ours["add-or-remove"]], 1e-5) == pytest.approx(asked(pld, add), rel=1e-4)
    assert compose([ours["replace-one"]], 1e-5) == pytest.approx(asked(pld, replace_one), rel=1e-4)
    assert asked(rdp, replace_one) == asked(rdp, add) > 1.05 * asked(pld, add)


@pytest.mark.parametrize("mu", [0.05, 1.0, 6.0])
def test_loss_distributions_are_never_below_the_closed_form(mu: float) -> None:
    for delta in (1e-4, 1e-7, 1e-10):
        exact = gaussian_epsilon(mu, delta)
        assert exact * (1 - 1e-9) <= account._pld_epsilon([], mu, delta) <= exact * (1 + 1e-2)


EVENTS = st.one_of(
    st.builds(PureEvent, epsilon=st.floats(0, 2), count=st.integers(1, 3)),
    st.builds(LaplaceEvent, noise=st.floats(0.5, 50), count=st.integers(1, 20)),
    st.builds(ResponseEvent, epsilon=st.floats(0, 2), count=st.integers(1, 20)),
    st.builds(GaussianEvent, noise=st.floats(0.5, 50), count=st.integers(1, 20)),
    st.builds(
        GaussianEvent, noise=st.floats(0.7, 20), sampling=st.floats(0.001, 0.9), count=st.integers(1, 50)
    ),
    st.builds(
        ApproximateEvent, epsilon=st.floats(0, 2), delta=st.floats(1e-12, 1e-8), count=st.integers(1, 5)
    ),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(EVENTS, min_size=2, max_size=3), st.sampled_from([1e-5, 1e-8]))
def test_what_is_added_never_lowers_the_price_and_order_does_not_matter(
    events: list[Event], delta: float
) -> None:
    prices = [compose(events[:n], delta) for n in range(len(events) + 1)]
    assert prices == sorted(prices)
    assert compose(events[::-1], delta) == prices[-1]
    apart = sum(compose([event], delta / len(events)) for event in events)  # sequential composition
    assert prices[-1] <= apart * (1 + 1e-2) + 1e-6


def test_pure_epsilons_stand_beside_the_others_unchanged() -> None:
    noisy = LaplaceEvent(noise=20.0, count=50)
    with_pure = compose([noisy, PureEvent(epsilon=0.75)], 1e-6)
    assert with_pure == pytest.approx(compose([noisy], 1e-6) + 0.75, rel=1e-12)


@pytest.mark.parametrize("delta", [1e-11, -1e-6, 1.0, math.nan, math.inf])
def test_a_delta_that_cannot_be_priced_is_refused(delta: float) -> None:
    with pytest.raises(MisconfiguredError, match="delta must be 0, or at least 1e-10"):
        compose([PureEvent(epsilon=1.0)], delta)


def test_events_without_an_epsilon_at_delta_0_are_named() -> None:
    with pytest.raises(MisconfiguredError, match="approximate and gaussian events"):
        compose(
            [GaussianEvent(noise=1.0), ApproximateEvent(epsilon=1.0, delta=0.1), LaplaceEvent(noise=1.0)], 0
        )


@pytest.mark.parametrize("epsilon", [1.0, 100.0, 699.0, 701.0, 709.5, 710.0, 1e4, 1e6, 1e300])
def test_a_release_that_hides_next_to_nothing_has_its_price(epsilon: float) -> None:
    """Beyond e^709 there is no float64: then epsilons add up, and nothing raises."""
    small = [ResponseEvent(epsilon=0.5, count=40), LaplaceEvent(noise=4.0, count=3)]
    for event in (ResponseEvent(epsilon=epsilon, count=2), ApproximateEvent(epsilon=epsilon, delta=1e-9)):
        alone, beside = compose([event], 1e-6), compose([event, *small], 1e-6)
        assert 0.9 * epsilon * event.count <= alone <= epsilon * event.count
        assert alone <= beside <= epsilon * event.count + compose(small, 0)
    assert compose([ResponseEvent(epsilon=710.0), *small], 1e-6) == pytest.approx(
        710 + compose(small, 1e-6), rel=1e-12
    )


def test_losses_beyond_floating_point_are_infinite() -> None:
    assert compose([LaplaceEvent(noise=1.0), GaussianEvent(noise=0.02)], 1e-6) == math.inf
    assert compose([LaplaceEvent(noise=1.0), GaussianEvent(noise=1e-5)], 1e-6) == math.inf
    assert compose([LaplaceEvent(noise=1e-3)], 1e-6) == 1000.0  # the plain sum still holds


def test_the_extra_is_named_where_it_is_needed_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    account._composed.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[accounting\]'"):
        compose([LaplaceEvent(noise=1.0)], 1e-6)
    compose([GaussianEvent(noise=1.0), PureEvent(epsilon=1.0)], 1e-6)
    compose([LaplaceEvent(noise=1.0)], 0.0)


@pytest.mark.parametrize(
    "event",
    [
        PureEvent(epsilon=0.5),
        ApproximateEvent(epsilon=0, delta=1e-6, count=3),
        LaplaceEvent(noise=4),
        GaussianEvent(noise=4, sampling=0.25, count=2),
    ],
)
def test_an_event_survives_json(event: Event) -> None:
    assert event_from(json.loads(json.dumps(event.to_dict()))) == event
    assert event_from({**event.to_dict(), "count": 9}).count == 9


@pytest.mark.parametrize("record", [{"event": "skellam", "noise": 1.0}, {}, [], None, {"event": ["pure"]}])
def test_an_unknown_event_is_refused_by_name(record: Any) -> None:
    with pytest.raises(NotYetError, match="not known"):
        event_from(record)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PureEvent, {"epsilon": -0.1}),
        (PureEvent, {"epsilon": math.nan}),
        (PureEvent, {"epsilon": "1"}),
        (PureEvent, {"epsilon": 1.0, "count": 0}),
        (PureEvent, {"epsilon": 1.0, "count": 1.0}),
        (PureEvent, {"epsilon": 1.0, "count": True}),
        (ApproximateEvent, {"epsilon": 1.0, "delta": 0.0}),
        (ApproximateEvent, {"epsilon": 1.0, "delta": 1.0}),
        (LaplaceEvent, {"noise": 0.0}),
        (LaplaceEvent, {"noise": math.inf}),
        (GaussianEvent, {"noise": 1.0, "sampling": 0.0}),
        (GaussianEvent, {"noise": 1.0, "sampling": 1.1}),
        (GaussianEvent, {"noise": math.nan}),
    ],
)
def test_parameters_that_no_mechanism_has_are_refused(kind: type[Event], values: dict[str, Any]) -> None:
    with pytest.raises(MisconfiguredError):
        kind(**values)
    with pytest.raises(MisconfiguredError):
        event_from({"event": kind.name, **values})


def test_an_event_with_other_fields_is_refused() -> None:
    with pytest.raises(MisconfiguredError, match="other fields"):
        event_from({"event": "laplace", "epsilon": 1.0})
