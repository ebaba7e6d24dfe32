"""One audit's outcome: findings, the worst of them, a verdict in a sentence, and the gate.

The gate compares the upper end of an interval: what an attack may really reach is above its bound or not. An
epsilon has only a lower end, so there the gate compares that. Lists of guesses, likeness and areas under a
curve are reported and not gated: none of them is a share of text read.

Threat model: none of its own; each attack states its attacker.
Does not prove privacy: a gate that passes says that these attacks, within their budgets, found no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from transom.audit.finding import INTERRUPTED, Finding

EPSILON_METRIC = "epsilon lower bound"
_UNGATED = ("top-10 ", "top-100 ", "cosine", "AUC")


@dataclass(frozen=True)
class FrontierPoint:
    """One setting of a sweep: recovery and utility on `task`, each a share with its interval."""

    label: str
    setting: str
    recovery: float
    recovery_low: float
    recovery_high: float
    utility: float
    utility_low: float
    utility_high: float
    task: str


@dataclass(frozen=True)
class Frontier:
    """What is recovered against what is still useful, over settings and tasks."""

    points: tuple[FrontierPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `transom audit KIND` found on `target` (plain settings for the reader) and what it cost."""

    kind: str
    target: Mapping[str, Any]
    findings: tuple[Finding, ...]
    frontier: Frontier | None = None
    gate: float | None = None
    created: str
    cost_s: float

    @cached_property
    def worst(self) -> Finding | None:
        """The gated finding that may reach furthest; None when no such attack ran."""
        gated = [found for found in self.findings if gauge(found) is not None]
        return max(gated, key=lambda found: gauge(found) or 0.0, default=None)

    @property
    def passed(self) -> bool | None:
        """None without a gate; else whether attacks ran, uninterrupted, and none may exceed the gate."""
        if self.gate is None:
            return None
        if self.worst is None or any(found.reason == INTERRUPTED for found in self.findings):
            return False
        return not exceeds(self.worst, self.gate)

    @property
    def verdict(self) -> str:
        """The outcome in plain words."""
        if self.worst is None:
            why = {found.reason for found in self.findings if found.reason}
            return f"Nothing was measured: {why.pop() if len(why) == 1 else 'no attack could be run'}."
        return " ".join(filter(None, (self._gate_sentence(self.worst), _sentence(self.worst))))

    def _gate_sentence(self, worst: Finding) -> str:
        if self.gate is None:
            return ""
        bound = figure(worst.metric, self.gate)
        if self.passed:
            return f"Passed: within the bound of {bound}."
        if exceeds(worst, self.gate):
            return f"Not passed: it may be above the bound of {bound}."
        return f"Not passed: {INTERRUPTED}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        worst = self.worst
        return {
            "kind": self.kind,
            "target": dict(self.target),
            "verdict": self.verdict,
            "worst": worst and {"name": worst.name, "metric": worst.metric, "high": worst.high},
            "gate": self.gate,
            "passed": self.passed,
            "findings": [found.to_dict() for found in self.findings],
            "frontier": None if self.frontier is None else asdict(self.frontier)["points"],
            "created": self.created,
            "cost_s": self.cost_s,
        }


def gauge(found: Finding) -> float | None:
    """What the gate looks at: the end of the interval that counts, or None for what is not gated."""
    if found.metric.startswith(_UNGATED):
        return None
    return found.low if found.metric == EPSILON_METRIC else found.high


def exceeds(found: Finding, gate: float) -> bool:
    """Whether `found` is, or may be, worse than `gate`."""
    reached = gauge(found)
    return reached is not None and reached > gate


def figure(metric: str, value: float) -> str:
    """A value as people read it: a share in percent, an epsilon as a number."""
    if metric == EPSILON_METRIC:
        return f"{value:.2f}"
    percent = 100 * value
    return f"{percent:.2f} %" if 0 < percent < 1 else f"{percent:.1f} %"


def span(found: Finding) -> str:
    """The interval in words; empty without one."""
    if found.low is None:
        return ""
    if found.high is None:
        return f"at least {figure(found.metric, found.low)}"
    return f"{figure(found.metric, found.low)} to {figure(found.metric, found.high)}"


def _sentence(worst: Finding) -> str:
    if worst.metric == EPSILON_METRIC:
        return _epsilon_sentence(worst)
    reached = f"{figure(worst.metric, worst.value or 0.0)} {worst.metric}"
    guessing = "" if worst.baseline is None else f"; guessing reaches {figure(worst.metric, worst.baseline)}"
    what = (
        "The strongest attack" if worst.above_chance else "No attack is shown to beat guessing: the strongest"
    )
    return f"{what}, {worst.name}, reaches {reached} (95 % interval {span(worst)}){guessing}."


def _epsilon_sentence(worst: Finding) -> str:
    low, claimed = worst.low or 0.0, worst.baseline or 0.0
    if worst.above_chance:
        return f"The claim is broken: epsilon is at least {low:.2f}, claimed is {claimed:g}."
    return f"The claim of epsilon {claimed:g} was not refuted: epsilon is at least {low:.2f}."
