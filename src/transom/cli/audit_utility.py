"""Utility beside recovery in `transom audit words`: tasks on plain text and on text at each epsilon.

    --utility classify:dev.tsv --utility summarize:news.jsonl --utility answers:facts.csv

Tasks and their files: `transom.audit.utility.files`. A task that fails is a finding "not run" with its
reason, and the report is written all the same. The minutes that this takes do not count towards --budget.
Threat model and what it does not measure: `transom.audit.utility`.
Source: own design.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from transom.audit.utility.files import read_task
from transom.audit.utility.frontier import Setting, frontier
from transom.audit.utility.model import Answerer, load_answerer, obfuscated
from transom.audit.utility.protect import unprotected, words
from transom.audit.utility.tasks import Task
from transom.cli.audit_report import told
from transom.cli.output import progress
from transom.obfuscation.keys import PRESETS, preset
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import INTERRUPTED, Finding, not_run
from transom.report.report import Frontier, FrontierPoint

METRIC = "utility"
_WHOSE = "Recovery is that of the strongest attack on one output of each text."
UtilityOption = Annotated[
    list[str] | None,
    "Also: what is it good for? classify:, summarize: or answers:FILE.",
]
UtilityModelOption = Annotated[str, "The model that does the tasks: directory, .gguf or hub name."]
UtilityPresetOption = Annotated[str | None, f"Also words+obfuscated, with {', '.join(PRESETS)}."]


@dataclass(frozen=True)
class Utility:
    """The tasks, and the models that do them, by the label of their line in the plot."""

    tasks: tuple[Task, ...] = field(repr=False)
    models: Mapping[str, Answerer] = field(repr=False)


def open_utility(places: Sequence[str] | None, model: str, preset_name: str | None) -> Utility | None:
    """Read the tasks and load the models, before time is spent on attacks; None when no task is asked for.

    Raises MisconfiguredError, CheckpointError, NotYetError, MissingExtraError.
    """
    if not places:
        return None
    settings = None if preset_name is None else preset(preset_name)
    plain = load_answerer(model)
    models = {"words": plain}
    tasks = tuple(read_task(place, plain) for place in places)
    if settings is not None:
        models["words+obfuscated"] = obfuscated(plain, secrets.token_bytes(32), settings)
    return Utility(tasks, models)


def at_setting(name: str, sanitizer: Sanitizer, found: Sequence[Finding]) -> list[Setting]:
    """Words at one epsilon beside the strongest of the attacks on one draw; none when no attack ran."""
    strongest = max(found, key=lambda each: each.value or 0.0, default=None)
    if strongest is None or strongest.value is None:
        return []
    return [Setting(name, words(sanitizer), strongest)]


def measured(
    utility: Utility | None, settings: Sequence[Setting], *, quiet: bool
) -> tuple[Frontier | None, tuple[Finding, ...]]:
    """The frontier from plain text over `settings`, and a finding for each task that did not run."""
    if utility is None:
        return None, ()
    settings = (Setting("plain text", unprotected), *settings)
    points: list[FrontierPoint] = []
    failed: list[Finding] = []
    for task in utility.tasks:
        try:
            with progress(f"utility: {task.name}", 1.0, quiet=quiet) as meter:
                points += frontier((task,), settings, utility.models, meter.reach).points
        except KeyboardInterrupt:
            rest = utility.tasks[utility.tasks.index(task) :]
            failed += [not_run(each.name, METRIC, INTERRUPTED) for each in rest]
            break
        except Exception as error:
            failed.append(not_run(task.name, METRIC, told(error)))
    return Frontier(tuple(points), _WHOSE) if points else None, tuple(failed)
