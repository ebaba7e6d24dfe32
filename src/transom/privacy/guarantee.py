"""A promise is a value: what a privatising operation guarantees, to whom, under which assumptions.

Threat model: none of its own; it states that of the operation which returns it.
Does not protect anything: a `Guarantee` is a claim, checked by the tests that `GUARANTEES.md` names for it.
Source: Dwork and Roth 2014 (pure and approximate DP); Chatzikokolakis et al. 2013 (metric DP); Dong, Roth and
Su 2022 (Gaussian DP).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from transom.errors import MisconfiguredError, NeverError, NotYetError
from transom.privacy.account import ApproximateEvent, Event, GaussianEvent, PureEvent, compose

Kind = Literal["pure-dp", "metric-dp", "approximate-dp", "gdp", "empirical"]
Scope = Literal["word", "record", "run"]

_UNSET: dict[str, Any] = {"epsilon": None, "delta": 0.0, "mu": None, "diameter": None, "events": ()}
_FIELDS: dict[str, tuple[set[str], set[str]]] = {  # what a kind needs, and what it may have beside that
    "pure-dp": ({"epsilon"}, set()),
    "metric-dp": ({"epsilon"}, {"delta", "diameter"}),
    "approximate-dp": ({"epsilon", "delta"}, set()),
    "approximate-dp of events": ({"events"}, set()),
    "gdp": ({"mu"}, set()),
    "empirical": (set(), set()),
}


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What is promised. Raises MisconfiguredError for a value that no promise has.

    `unit` says what epsilon counts (one word, one prompt); `adjacency` which two inputs count as neighbours;
    `discloses` what is public by design; `scope` what two neighbours differ in and all of whose traces the
    promise covers. `mu` is that of Gaussian DP. An approximate promise has an epsilon at a delta, or the
    `events` that `price` turns into one for any delta. `diameter` bounds the distance of a metric promise.
    `empirical` ones carry no epsilon: only measurements back them.
    """

    kind: Kind
    unit: str
    adjacency: str
    epsilon: float | None = None
    delta: float = 0.0
    mu: float | None = None
    diameter: float | None = None
    events: tuple[Event, ...] = ()
    scope: Scope | None = None
    assumptions: tuple[str, ...] = ()
    discloses: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise MisconfiguredError(f"a guarantee is {', '.join(get_args(Kind))}; got {self.kind!r:.40}")
        if self.scope is not None and self.scope not in get_args(Scope):
            raise MisconfiguredError(f"a scope is {', '.join(get_args(Scope))}; got {self.scope!r:.40}")
        kind = "approximate-dp of events" if self.kind == "approximate-dp" and self.events else self.kind
        needed, allowed = _FIELDS[kind]
        present = {name for name, unset in _UNSET.items() if getattr(self, name) != unset}
        for name in sorted(needed - present):
            raise MisconfiguredError(f"a guarantee of kind {kind} needs {name}")
        for name in sorted(present - needed - allowed):
            raise MisconfiguredError(f"a guarantee of kind {kind} has no {name}, got {getattr(self, name)}")
        for name in ("epsilon", "mu", "diameter"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise MisconfiguredError(f"{name} must be non-negative, got {value}")
        if not 0.0 <= self.delta < 1.0:
            raise MisconfiguredError(f"delta must lie in [0, 1), got {self.delta}")
        if not all(isinstance(event, Event) for event in self.events):
            raise MisconfiguredError("the events of a guarantee are those of transom.privacy.account")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; an infinite number becomes the string "inf". Of the fields that not every
        kind has, those that are set."""
        record = asdict(self)
        record["events"] = tuple(event.to_dict() for event in self.events)
        for name in ("mu", "diameter", "events", "scope"):
            if not record[name] and record[name] != 0:
                del record[name]
        return {name: "inf" if value == math.inf else value for name, value in record.items()}


def released(guarantee: Guarantee) -> tuple[Event, ...]:
    """The events to charge for one use of what gives the guarantee.

    Raises NeverError for an empirical promise, MisconfiguredError for a metric one without a diameter,
    NotYetError for a metric one with a delta.
    """
    epsilon, delta = guarantee.epsilon, guarantee.delta
    if guarantee.events:
        return guarantee.events
    if guarantee.mu is not None:
        return (GaussianEvent(noise=1 / guarantee.mu),) if guarantee.mu else ()
    if epsilon is None:
        raise NeverError("an empirical guarantee has no epsilon at any delta; attack it, with transom audit")
    if guarantee.kind == "metric-dp":
        if guarantee.diameter is None:
            raise MisconfiguredError(
                "a metric-dp guarantee has an epsilon for each unit of distance; give it the diameter, which "
                "is the largest distance between two inputs, if there is one"
            )
        if delta:  # of the law, not of each inequality: their sum depends on epsilon
            raise NotYetError("a metric-dp guarantee with a delta is not priced; give an exact mechanism's")
        epsilon = math.nextafter(epsilon * guarantee.diameter, math.inf)
    if delta:
        return (ApproximateEvent(epsilon=epsilon, delta=delta),)
    return (PureEvent(epsilon=epsilon),)


def price(guarantee: Guarantee, delta: float = 0.0, *, uses: int = 1) -> float:
    """The epsilon at `delta` of so many uses, rounded up. Raises as `released` and `account.compose` do."""
    return compose([event.times(uses) for event in released(guarantee)], delta)
