"""What an attack found: a value with its interval, the chance level beside it, and what it cost.

An attack is a function `attack(target, knowledge, data, budget_s) -> Finding`. A share of successes carries
the exact two-sided interval of Clopper and Pearson; an attack that cannot be mounted says "not run" and
why, so that its absence is never read as a good result.

Threat model: none of its own; each attack states its attacker.
Does not prove privacy: a low value says that this attack failed on this sample within this budget.
Source: Clopper and Pearson 1934, Biometrika 26.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from transom.report.picture import Picture
from transom.report.statistics import Bools, clustered_interval, interval

MAX_EXAMPLES = 10
INTERRUPTED = "the audit was interrupted"
RAISE_BUDGET = "raise --budget"  # ends the reason of every attack that was not run for want of time


@dataclass(frozen=True)
class Example:
    """One text: as it was, as it was seen, as the attack read it; for reports only, never for logs."""

    original: str = field(repr=False)
    seen: str = field(repr=False)
    recovered: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One attack's outcome. `value` is in units of `metric`, between `low` and `high` with 95 % confidence.

    `baseline` is what guessing reaches, `n` the number of trials behind `value`, `cost_s` the seconds spent.
    `setting` is the point of a sweep that it belongs to, empty without one. A finding that was "not run" has
    None for its figures and says in `reason` what was missing. At most MAX_EXAMPLES `examples` are shown;
    `pictures` stand in the page alone.
    """

    name: str
    metric: str
    setting: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    cost_s: float = 0.0
    n: int = 0
    note: str = ""
    status: Literal["run", "not run"] = "run"
    reason: str = ""
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)
    pictures: tuple[Picture, ...] = field(default=(), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order of the fields; without pictures."""
        plain = asdict(self)
        del plain["pictures"]
        return plain

    @property
    def label(self) -> str:
        """The attack, and its setting where there are several."""
        return f"{self.name}, {self.setting}" if self.setting else self.name

    @property
    def above_chance(self) -> bool:
        """Whether the interval lies above the chance level; never for an attack that was not run."""
        return self.low is not None and self.baseline is not None and self.low > self.baseline


class Attack(Protocol):
    """A name, the metric of its finding, and the call. Modules satisfy it, and so does any object."""

    @property
    def NAME(self) -> str: ...
    @property
    def METRIC(self) -> str: ...
    def attack(self, target: Any, knowledge: Any, data: Any, budget_s: float, /) -> Finding:
        """What was found within about `budget_s` seconds; "not run" where the target does not fit."""


@dataclass(frozen=True)
class Bound:
    """An attack made of a function, for one that needs a setting or a target of its own."""

    NAME: str
    METRIC: str
    attack: Callable[[Any, Any, Any, float], Finding]


def measured(
    name: str, metric: str, value: float, interval: tuple[float, float], *, baseline: float, **fields: Any
) -> Finding:
    """A finding that ran, with further `fields` of it; what it cost is measured by who runs it."""
    low, high = interval
    return Finding(name=name, metric=metric, value=value, low=low, high=high, baseline=baseline, **fields)


def share(
    name: str, metric: str, *, hits: int, n: int, baseline: float, cost_s: float = 0.0, note: str = ""
) -> Finding:
    """A finding for `hits` successes in `n` trials, with its exact interval. Raises MisconfiguredError."""
    found = measured(name, metric, hits / max(n, 1), interval(hits, n), baseline=baseline, n=n, note=note)
    return replace(found, cost_s=round(cost_s, 3))


def clustered(
    name: str, metric: str, hit_N: Bools, sizes: Sequence[int], *, baseline: float, **fields: Any
) -> Finding:
    """The share of tokens hit, in texts of so many tokens each (none empty): texts are independent, tokens
    of one text are not."""
    sizes_S = np.array(sizes)
    hits_S = np.add.reduceat(hit_N.astype(np.int64), np.cumsum(sizes_S) - sizes_S)
    interval, value = clustered_interval(hits_S, sizes_S), float(hit_N.mean())
    return measured(name, metric, value, interval, baseline=baseline, n=len(hit_N), **fields)


def not_run(name: str, metric: str, reason: str) -> Finding:
    """A finding without figures; `reason` says what the target or the knowledge lacks."""
    return Finding(name=name, metric=metric, status="not run", reason=reason)


def interrupted(findings: Iterable[Finding]) -> bool:
    """Whether the user broke off: then nothing more is run, and no gate is passed."""
    return any(found.reason == INTERRUPTED for found in findings)


def unreached(findings: Iterable[Finding]) -> int:
    """How many were not run for want of time."""
    return sum(found.reason.endswith(RAISE_BUDGET) for found in findings)


def left_out(findings: Sequence[Finding]) -> bool:
    """Whether time was wanting for most of those that could have been run: what is there is no audit."""
    return unreached(findings) > sum(found.value is not None for found in findings)
