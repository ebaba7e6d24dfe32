"""One audit's outcome: findings, the worst of them, a verdict in a sentence, and the gate.

The gate compares the upper end of an interval: what an attack may really reach is above its bound or not. An
epsilon has only a lower end, so there the gate compares that. Lists of guesses, likeness to an embedding and
areas under a curve are reported and not gated (`metrics`): none of them is a share of text read.

Threat model: none of its own; each attack states its attacker.
Does not prove privacy: a gate that passes says that these attacks, within their budgets, found no more.
Source: own design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from transom.report.comparison import Comparison
from transom.report.finding import INTERRUPTED, RAISE_BUDGET, Finding, interrupted, left_out, unreached
from transom.report.metrics import figure, metric


def now() -> str:
    """The time for `Report.created`, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
    """What is recovered against what is still useful, over settings and tasks; whose recovery, in `note`."""

    points: tuple[FrontierPoint, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `transom audit KIND` found on `target` (plain settings for the reader) and what it cost.

    `stopped` says why it broke off, and is empty where it did not. `comparison` sets settings side by side.
    """

    kind: str
    target: Mapping[str, Any]
    findings: tuple[Finding, ...]
    frontier: Frontier | None = None
    comparison: Comparison | None = None
    gate: float | None = None
    stopped: str = ""
    created: str = field(default_factory=now)
    cost_s: float

    @cached_property
    def worst(self) -> Finding | None:
        """The gated finding that may reach furthest; None when no such attack ran."""
        return max(self._gated, key=lambda found: gauge(found) or 0.0, default=None)

    @property
    def passed(self) -> bool | None:
        """None without a gate; else whether attacks ran, to the end, and none may exceed the gate."""
        if self.gate is None:
            return None
        if self.worst is None or self.stopped or interrupted(self.findings) or self.left_out:
            return False
        return not exceeds(self.worst, self.gate)

    @property
    def left_out(self) -> bool:
        """Whether most attacks were not run for want of time."""
        return left_out(self.findings)

    @property
    def standing(self) -> str:
        """How many findings there are, and what that does to their intervals; empty for one."""
        ran = sum(found.low is not None for found in self.findings)
        if ran < 2:
            return ""
        return (
            f"{ran} findings stand in this report, each with an interval of its own, not corrected for their "
            f"number: with 95 % confidence for all at once, each would need {1 - 0.05 / ran:.2%} of its own."
        )

    @property
    def verdict(self) -> str:
        """The outcome in plain words: the gate where there is one, the headline, and what it rests on."""
        return " ".join(filter(None, (self.gate_sentence, self.headline, *self.details)))

    @property
    def headline(self) -> str:
        """One short sentence; for a sweep, from the setting where least is read to that where most is."""
        best = self._strongest
        if self.comparison is not None:
            return self.comparison.headline
        if best is None:
            return "Nothing was measured."
        if len(self._by_setting) > 1:
            return self._swept
        if metric(best.metric).certified:
            outcome = "is broken" if best.above_chance else "was not refuted"
            return f"The claim of epsilon {best.baseline or 0.0:g} {outcome}."
        if not any(found.above_chance for found in self._gated):
            return self._beside or "No attack is shown to beat guessing."
        return f"{figure(best.metric, best.value or 0.0)} {_outcome(best)}."

    @property
    def details(self) -> tuple[str, ...]:
        """What the headline rests on: the strongest attack beside guessing, at each setting; or what was
        missing."""
        if not (count := unreached(self.findings)):
            return self._rests_on
        unrun = f"{count} of {len(self.findings)} attacks were not run for want of time; {RAISE_BUDGET}."
        return (unrun, *self._rests_on)

    @property
    def _rests_on(self) -> tuple[str, ...]:
        best = self._strongest
        if self.comparison is not None:
            return tuple(f"{note[:1].upper()}{note[1:]}." for note in self.comparison.notes)
        if best is None:
            why = {found.reason for found in self.findings if found.reason}
            return (f"Reason: {why.pop()}." if len(why) == 1 else "No attack could be run.",)
        if metric(best.metric).certified:
            return (f"What was drawn certifies an epsilon of {span(best)}; {best.note}.",)
        if len(self._by_setting) == 1:
            return (f"The strongest attack, {best.name}: {_reached(best)}.",)
        return tuple(f"{one.setting}: {one.name}, {_reached(one)}." for one in self._by_setting)

    @property
    def gate_sentence(self) -> str:
        """Whether the gate is passed, and why not; empty without one."""
        worst = self.worst
        if self.gate is None or worst is None:
            return ""
        bound = figure(worst.metric, self.gate)
        if self.passed:
            return f"Passed: within the bound of {bound}."
        if exceeds(worst, self.gate):
            reach = "is" if worst.high is None else "may be"
            return f"Not passed: {worst.label} {reach} above the bound of {bound}."
        if self.left_out and not self.stopped and not interrupted(self.findings):
            return f"Not passed: most attacks were not run for want of time; {RAISE_BUDGET}."
        return f"Not passed: {self.stopped or INTERRUPTED}."

    @property
    def _strongest(self) -> Finding | None:
        """The gated finding that surely reads most, be it no more than guessing reads."""
        return max(self._gated, key=_strength, default=None)

    @cached_property
    def _by_setting(self) -> list[Finding]:
        """The strongest at each setting, in the order of the sweep."""
        settings = dict.fromkeys(found.setting for found in self._gated)
        return [max((f for f in self._gated if f.setting == one), key=_strength) for one in settings]

    @property
    def _swept(self) -> str:
        beaten = {found.setting for found in self._gated if found.above_chance}
        shown = [found for found in self._by_setting if found.setting in beaten]
        if not shown:
            return self._beside or "No attack is shown to beat guessing at any setting."
        least, most = (end(shown, key=_strength) for end in (min, max))
        share, what = figure(most.metric, most.value or 0.0), _outcome(most)
        if len(shown) < len(self._by_setting):
            rest = "at some settings no attack is shown to beat guessing"
            return f"Up to {share} {what} ({most.setting}); {rest}."
        if least.metric != most.metric:
            return f"Up to {share} {what} ({most.setting})."
        lowest = figure(least.metric, least.value or 0.0)
        return f"{lowest} ({least.setting}) to {share} ({most.setting}) {what}."

    @property
    def _beside(self) -> str:
        """The headline where only a figure that is no share of text beats guessing; empty where none does."""
        best = max(filter(alarming, self.findings), key=_strength, default=None)
        if best is None:
            return ""
        reached, guessing = (figure(best.metric, value or 0.0) for value in (best.value, best.baseline))
        return f"{best.label} beats guessing: {reached} {best.metric}, where guessing gives {guessing}."

    @property
    def _gated(self) -> list[Finding]:
        return [found for found in self.findings if gauge(found) is not None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        worst = self.worst
        return {
            "kind": self.kind,
            "target": dict(self.target),
            "verdict": self.verdict,
            "standing": self.standing,
            "left_out": self.left_out,
            "worst": worst and {name: getattr(worst, name) for name in ("name", "setting", "metric", "high")},
            "gate": self.gate,
            "passed": self.passed,
            "findings": [found.to_dict() for found in self.findings],
            "frontier": None if self.frontier is None else asdict(self.frontier)["points"],
            **({} if self.comparison is None else {"comparison": self.comparison.to_dict()}),
            "created": self.created,
            "cost_s": self.cost_s,
        }


def _strength(found: Finding) -> float:
    return found.low or 0.0


def _outcome(found: Finding) -> str:
    return metric(found.metric).outcome or f"{found.metric} is what an attacker reaches"


def _reached(found: Finding) -> str:
    guessing = "" if found.baseline is None else f"; guessing {figure(found.metric, found.baseline)}"
    return (
        f"{figure(found.metric, found.value or 0.0)} {found.metric} (95 % interval {span(found)}){guessing}"
    )


def gauge(found: Finding) -> float | None:
    """What the gate looks at: the end of the interval that counts, or None for what is not gated."""
    row = metric(found.metric)
    if not row.gated:
        return None
    return found.low if row.certified else found.high


def alarming(found: Finding) -> bool:
    """Whether an attacker surely does better than by guessing."""
    return found.above_chance and metric(found.metric).better == "attacker"


def mark(found: Finding, gate: float | None) -> Literal["over", "above", "level"]:
    """How a finding stands: "over" the gate, "above" guessing, or "level" with it."""
    if gate is not None and exceeds(found, gate):
        return "over"
    return "above" if alarming(found) else "level"


def exceeds(found: Finding, gate: float) -> bool:
    """Whether `found` is, or may be, worse than `gate`."""
    reached = gauge(found)
    return reached is not None and reached > gate


def span(found: Finding) -> str:
    """The interval in words; empty without one."""
    if found.low is None:
        return ""
    if found.high is None:
        return f"at least {figure(found.metric, found.low)}"
    return f"{figure(found.metric, found.low)} to {figure(found.metric, found.high)}"
