"""Promises: each kind has its fields and no others, its JSON stays, and its price is known or refused."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest

from transom.errors import MisconfiguredError, NeverError, NotYetError
from transom.privacy.account import GaussianEvent, LaplaceEvent, PureEvent, compose
from transom.privacy.guarantee import Guarantee, price, released

SAID = {"unit": "one word", "adjacency": "any two words"}
FIELDS: dict[str, Any] = {
    "epsilon": 1.5,
    "delta": 1e-6,
    "mu": 0.5,
    "diameter": 2.0,
    "events": (LaplaceEvent(noise=2.0),),
}
RIGHT = {
    "pure-dp": [{"epsilon"}],
    "metric-dp": [
        {"epsilon"},
        {"epsilon", "delta"},
        {"epsilon", "diameter"},
        {"epsilon", "delta", "diameter"},
    ],
    "approximate-dp": [{"epsilon", "delta"}, {"events"}],
    "gdp": [{"mu"}],
    "empirical": [set()],
}


def made(kind: Any, fields: set[str]) -> Guarantee:
    return Guarantee(kind=kind, **SAID, **{name: FIELDS[name] for name in fields})


@pytest.mark.parametrize("kind", RIGHT)
def test_each_kind_has_the_fields_it_needs_and_no_others(kind: str) -> None:
    for size in range(len(FIELDS) + 1):
        for fields in map(set, itertools.combinations(FIELDS, size)):
            if fields in RIGHT[kind]:
                made(kind, fields)
            else:
                with pytest.raises(MisconfiguredError, match=f"guarantee of kind {kind}"):
                    made(kind, fields)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("pure-dp", {"epsilon": -1.0}),
        ("pure-dp", {"epsilon": math.nan}),
        ("approximate-dp", {"epsilon": 1.0, "delta": 1.0}),
        ("approximate-dp", {"epsilon": 1.0, "delta": math.nan}),
        ("approximate-dp", {"events": ("gaussian",)}),
        ("gdp", {"mu": -0.1}),
        ("metric-dp", {"epsilon": 1.0, "diameter": math.nan}),
        ("pure-dp", {"epsilon": 1.0, "scope": "sentence"}),
        ("renyi-dp", {"epsilon": 1.0}),
    ],
)
def test_values_that_no_promise_has_are_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(MisconfiguredError):
        Guarantee(kind=kind, **SAID, **values)


def test_the_json_of_a_promise_is_that_of_earlier_versions_plus_what_is_set() -> None:
    pure = Guarantee(
        kind="pure-dp", **SAID, epsilon=math.inf, assumptions=("a",), discloses=("b",), source=""
    )
    assert json.loads(json.dumps(pure.to_dict())) == {
        "kind": "pure-dp",
        "unit": "one word",
        "adjacency": "any two words",
        "epsilon": "inf",
        "delta": 0.0,
        "assumptions": ["a"],
        "discloses": ["b"],
        "source": "",
    }
    assert list(pure.to_dict())[3:6] == ["epsilon", "delta", "assumptions"]
    gaussian = Guarantee(kind="gdp", **SAID, mu=0.0, scope="run").to_dict()
    assert (gaussian["mu"], gaussian["scope"], gaussian["epsilon"]) == (0.0, "run", None)
    events = made("approximate-dp", {"events"}).to_dict()["events"]
    assert json.loads(json.dumps(events)) == [{"event": "laplace", "noise": 2.0, "count": 1}]


def test_a_pure_promise_costs_its_epsilon_at_any_delta() -> None:
    pure = made("pure-dp", {"epsilon"})
    assert price(pure) == price(pure, 1e-6) == 1.5
    assert price(pure, uses=4) == 6.0
    assert price(replace(pure, epsilon=math.inf), 1e-6) == math.inf


def test_a_metric_promise_costs_what_its_diameter_makes_of_it() -> None:
    bounded = made("metric-dp", {"epsilon", "diameter"})
    assert 3.0 <= price(bounded) <= 3.0 * (1 + 1e-15)
    with pytest.raises(MisconfiguredError, match="diameter"):
        price(made("metric-dp", {"epsilon"}))
    with pytest.raises(NotYetError, match="delta"):
        price(made("metric-dp", {"epsilon", "delta", "diameter"}), 1e-6)


def test_a_gaussian_promise_costs_what_its_event_costs() -> None:
    gaussian = made("gdp", {"mu"})
    assert released(gaussian) == (GaussianEvent(noise=2.0),)
    assert price(gaussian, 1e-6, uses=9) == pytest.approx(price(replace(gaussian, mu=1.5), 1e-6), rel=1e-9)
    assert price(replace(gaussian, mu=0.0), 1e-6) == 0.0
    with pytest.raises(MisconfiguredError, match="gaussian events have no epsilon at delta 0"):
        price(gaussian)


def test_what_only_measurements_back_has_no_price() -> None:
    with pytest.raises(NeverError, match="empirical"):
        price(made("empirical", set()), 1e-6)


def test_a_promise_of_events_costs_their_sum() -> None:
    events = (PureEvent(epsilon=0.25), LaplaceEvent(noise=2.0, count=3))
    promise = Guarantee(kind="approximate-dp", **SAID, events=events)
    assert price(promise) == 1.75
    assert price(promise, 1e-6) == compose(events, 1e-6) < 1.75


def test_an_approximate_promise_costs_its_epsilon_at_its_delta_and_less_at_more() -> None:
    promise = made("approximate-dp", {"epsilon", "delta"})
    assert price(promise, 1e-6) == 1.5
    assert price(promise, 0.1) < 1.5
    assert price(promise, 1e-7) == math.inf
