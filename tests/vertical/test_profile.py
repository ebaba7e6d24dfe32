"""Constants come back out of what they made, bad ones are refused, and nothing measured crosses."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.config import to_plain
from transom.errors import LinkRefusedError, MisconfiguredError
from transom.vertical.profile import (
    Fitted,
    Measured,
    Power,
    Profile,
    disclosed,
    fit,
    fit_power,
    received,
    worst_factor,
)

SIZES = (16, 64, 256, 1024, 4096)
GOOD = Fitted(forward=Power(1e-5, 0.9, 1e-3), backward=Power(2e-5, 0.8), cores=4, memory_bytes=1e9)


def measured(sizes: tuple[int, ...] = SIZES) -> tuple[Measured, ...]:
    return tuple(Measured(b, 1e-5 * b**0.9, 2e-5 * b**0.8, 5e6 + 300 * b) for b in sizes)


@given(st.floats(1e-7, 1e-2), st.floats(0, 3))
def test_a_power_law_comes_back(lambda_s: float, gamma: float) -> None:
    found = fit_power((16, 512), [lambda_s * b**gamma for b in (16, 512)])
    assert math.isclose(found.lambda_s, lambda_s, rel_tol=1e-9)
    assert math.isclose(found.gamma, gamma, rel_tol=1e-9, abs_tol=1e-9)
    assert found.overhead_s == 0


@given(st.floats(1e-6, 1e-4), st.floats(0.5, 1.2), st.floats(1e-4, 1e-1))
def test_an_overhead_is_found_that_two_constants_miss(
    lambda_s: float, gamma: float, overhead_s: float
) -> None:
    seconds = [overhead_s + lambda_s * b**gamma for b in SIZES]
    assert worst_factor(fit_power(SIZES, seconds), SIZES, seconds) < 1.03


def test_without_an_overhead_the_fit_is_that_of_numpys_polynomials() -> None:
    chance = random.Random(1)
    seconds = [1e-5 * b**0.8 * chance.uniform(0.8, 1.2) for b in SIZES[:3]]
    slope, height = np.polyfit(np.log(SIZES[:3]), np.log(seconds), 1)
    found = fit_power(SIZES[:3], seconds)
    assert found.gamma == pytest.approx(slope)
    assert found.lambda_s == pytest.approx(math.exp(height))


def test_uneven_measurements_are_fitted_within_their_unevenness() -> None:
    chance = random.Random(2)
    seconds = [(1e-3 + 1e-5 * b) * chance.uniform(0.9, 1.1) for b in SIZES]
    assert worst_factor(fit_power(SIZES, seconds), SIZES, seconds) < 1.1 / 0.9


def test_time_that_falls_with_the_rows_is_fitted_as_even() -> None:
    found = fit_power((16, 64), (2.0, 1.0))
    assert found.gamma == 0
    assert found(1000) == pytest.approx(math.sqrt(2))


def test_a_profile_is_fitted_whole() -> None:
    messages = tuple((rows, 1e-3 + 1e-6 * rows) for rows in SIZES)
    found = fit(
        Profile(
            measured=measured(), messages=messages, average_s=2e-3, cores=3, memory_bytes=1e8, most_rows=500
        )
    )
    assert found.base_bytes == pytest.approx(5e6)
    assert found.row_bytes == pytest.approx(300)
    assert found.memory(2, 3, 1000) == pytest.approx(2 * 5e6 + 3 * 3e5)
    assert found.forward(100) == pytest.approx(1e-5 * 100**0.9)
    assert (found.average_s, found.cores, found.most_rows) == (2e-3, 3, 500)
    assert found.message(512) == pytest.approx(1e-3 + 512e-6, rel=0.03)
    assert fit(Profile(measured=measured(), messages=((16, 2e-3),))).message(4096) == 2e-3


def test_memory_never_falls_with_rows_nor_below_nothing() -> None:
    falling = (Measured(16, 1.0, 1.0, 200.0), Measured(64, 1.0, 1.0, 100.0))
    assert fit(Profile(measured=falling)).base_bytes == 150
    steep = (Measured(16, 1.0, 1.0, 10.0), Measured(64, 1.0, 1.0, 100.0))
    found = fit(Profile(measured=steep))
    assert found.base_bytes == 0
    assert found.row_bytes == pytest.approx((160 + 6400) / (256 + 4096))
    once = (Measured(16, 1.0, 1.0, 10.0), Measured(64, 1.0, 1.0))
    assert fit(Profile(measured=once)).base_bytes == 10


@pytest.mark.parametrize(
    "bad",
    [
        (),
        (Measured(16, 1.0, 1.0),),
        (Measured(16, 1.0, 1.0), Measured(16, 2.0, 2.0)),
        (Measured(16, 1.0, 1.0), Measured(0, 1.0, 1.0)),
        (Measured(16, 1.0, 1.0), Measured(32, 0.0, 1.0)),
        (Measured(16, 1.0, 1.0), Measured(32, 1.0, math.nan)),
        (Measured(16, 1.0, 1.0), Measured(32, math.inf, 1.0)),
        (Measured(16, 1.0, 1.0), Measured(32, 1.0, 1.0, -1.0)),
    ],
)
def test_what_cannot_have_been_measured_is_refused(bad: tuple[Measured, ...]) -> None:
    with pytest.raises(MisconfiguredError, match="measure"):
        fit(Profile(measured=bad))


# What crosses


def test_constants_go_through_json() -> None:
    assert received(json.loads(json.dumps(to_plain(GOOD)))) == GOOD


def test_constants_alone_cross_and_the_report_can_list_them() -> None:
    fitted = fit(Profile(measured=measured()))
    crossing = to_plain(fitted)
    assert set(crossing) == set(disclosed())
    assert all(disclosed().values())
    numbers = json.loads(json.dumps(crossing), parse_int=float)
    flat = {one for part in numbers.values() for one in (part.values() if isinstance(part, dict) else [part])}
    secret = {one.forward_s for one in measured()} | {one.backward_s for one in measured()}
    assert not flat & (secret | {one.memory_bytes for one in measured()})
    assert len(flat) < 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cores", 0),
        ("cores", 2.5),
        ("cores", 10**9),
        ("cores", True),
        ("most_rows", 0),
        ("row_bytes", -1.0),
        ("base_bytes", math.nan),
        ("memory_bytes", math.inf),
        ("memory_bytes", "all"),
        ("message", {"lambda_s": -1e-9}),
        ("checkpoint_steps", 0),
        ("average_s", 1e9),
        ("forward", 1.0),
        ("forward", {"lambda_s": 0.0}),
        ("forward", {"lambda_s": math.nan}),
        ("backward", {"lambda_s": 1.0, "gamma": -0.5}),
        ("backward", {"lambda_s": 1.0, "gamma": 9}),
        ("backward", {"gamma": 1.0}),
        ("measured", [1, 2]),
    ],
)
def test_a_partners_constants_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(LinkRefusedError, match=name):
        received(to_plain(GOOD) | {name: value})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    )
)
def test_what_is_no_profile_is_refused(value: Any) -> None:
    with pytest.raises(LinkRefusedError):
        received(value)
