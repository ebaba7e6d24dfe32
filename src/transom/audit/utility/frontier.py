"""The frontier: what an attack recovers against what the protected text is still good for.

Each text is protected once a setting and the same protected text goes to every model, so modes differ by
the model alone. Intervals are over items: exact (Clopper and Pearson) when every score is 0 or 1, else
Student's t on the mean. They hold for fresh items and fresh draws; a classifier's training set is fixed.

Threat model: none of its own. The recovery beside words+obfuscated is that of words alone: a host which owns
the base model is counted as one that undid the obfuscation.
Does not prove that other tasks fare alike.
Source: Student 1908, Biometrika 6; Clopper and Pearson 1934, Biometrika 26.

Legend: N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from transom.audit.utility.model import Answerer
from transom.audit.utility.protect import Protect, Protected
from transom.audit.utility.tasks import Task
from transom.errors import MisconfiguredError
from transom.report.finding import Finding
from transom.report.report import Frontier, FrontierPoint
from transom.report.statistics import mean_interval


@dataclass(frozen=True)
class Setting:
    """One protection, named for the plot, and what an attack recovers from it (None: everything)."""

    name: str
    protect: Protect = field(repr=False)
    recovery: Finding | None = None


@dataclass(frozen=True)
class Measured:
    """Mean score over `n` items with its 95 % interval."""

    utility: float
    low: float
    high: float
    n: int


def measure(task: Task, protected: Sequence[Protected], model: Answerer) -> Measured:
    """The task's utility through `model`, given its texts protected. Raises MisconfiguredError."""
    score_N = task.scores(protected, model)
    return Measured(float(score_N.mean()), *mean_interval(score_N), len(score_N))


def frontier(
    tasks: Sequence[Task],
    settings: Sequence[Setting],
    models: Mapping[str, Answerer],
    progress: Callable[[float], None] = lambda share: None,
) -> Frontier:
    """One point for each task, setting and model; `models` are by the label of their line in the plot.

    `progress` is called with the share done, from 0 to 1. Raises MisconfiguredError.
    """
    points = []
    total = len(tasks) * len(settings) * len(models)
    for task in tasks:
        for setting in settings:
            protected = [setting.protect(text) for text in task.texts]
            for label, model in models.items():
                points.append(_point(label, task.name, setting, measure(task, protected, model)))
                progress(len(points) / total)
    return Frontier(tuple(points))


def _point(label: str, task: str, setting: Setting, found: Measured) -> FrontierPoint:
    reached = _recovered(setting)
    return FrontierPoint(label, setting.name, *reached, found.utility, found.low, found.high, task)


def _recovered(setting: Setting) -> tuple[float, float, float]:
    found = setting.recovery
    if found is None:
        return 1.0, 1.0, 1.0
    if found.value is None or found.low is None or found.high is None:
        raise MisconfiguredError(f"the attack at {setting.name} did not run; a point needs its recovery")
    return found.value, found.low, found.high
