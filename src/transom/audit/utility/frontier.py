"""The frontier: what an attack recovers against what the protected text is still good for.

Each text is protected once a setting and the same protected text goes to every model, so modes differ by
the model alone. Intervals hold for fresh items and fresh draws; a classifier's training set is fixed.

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
from transom.audit.utility.protect import Protect
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
                score_N = task.scores(protected, model)
                utility = float(score_N.mean()), *mean_interval(score_N)
                points.append(FrontierPoint(label, setting.name, *_recovered(setting), *utility, task.name))
                progress(len(points) / total)
    return Frontier(tuple(points))


def _recovered(setting: Setting) -> tuple[float, float, float]:
    found = setting.recovery
    if found is None:
        return 1.0, 1.0, 1.0
    if found.value is None or found.low is None or found.high is None:
        raise MisconfiguredError(f"the attack at {setting.name} did not run; a point needs its recovery")
    return found.value, found.low, found.high
