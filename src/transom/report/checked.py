"""What an attack returned, believed only if it can be: fields of their types, figures that fit each other.

Numbers of numpy become plain ones, so that a report can be written as JSON.
Threat model: a user's own attack with a mistake in it. Does not protect against: one that lies.
Source: own design.
"""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

from transom.report.finding import Example, Finding, not_run
from transom.report.metrics import metric

_WORDS = ("name", "metric", "setting", "note", "reason")
_FIGURES = ("value", "low", "high", "baseline", "cost_s")


def checked(name: str, metric: str, returned: object) -> Finding:
    """The finding with plain numbers, or one so called that was "not run", with what is wrong about it."""
    if not isinstance(returned, Finding):
        wrong = f"it returned a {type(returned).__name__}, not a Finding"
    elif not (wrong := _ill_typed(vars(returned))):
        given = {one: getattr(returned, one) for one in _FIGURES}
        figures: dict[str, Any] = {one: float(it) for one, it in given.items() if it is not None}
        found = replace(returned, **figures, n=int(returned.n))
        if not (wrong := _impossible(found)):
            return found
    return not_run(name, metric, wrong)


def _ill_typed(fields: dict[str, Any]) -> str:
    """The first field of a wrong type, in words."""
    kinds = ((_WORDS, str, "str"), (_FIGURES, Real | None, "a number"), (("n",), Integral, "int"))
    for names, kind, said in kinds:
        for name in names:
            if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
                return f"its {name} is of type {type(fields[name]).__name__}, not {said}"
    examples = fields["examples"]
    if not isinstance(examples, tuple) or not all(isinstance(one, Example) for one in examples):
        return "its examples are not a tuple of Example"
    if not all(isinstance(text, str) for one in examples for text in vars(one).values()):
        return "its examples do not hold three texts each"
    return ""


def _impossible(found: Finding) -> str:
    """What of the figures cannot be, in words."""
    value, low, high, row = found.value, found.low, found.high, metric(found.metric)
    if found.status not in ("run", "not run"):
        return 'its status is neither "run" nor "not run"'
    if found.status == "not run":
        return "" if value is low is high is None else 'it says "not run" and returns figures'
    if not all(math.isfinite(getattr(found, name) or 0.0) for name in _FIGURES):
        return "its figures are not finite"
    if value is None or low is None or (high is None and not row.certified):
        return "it returned no value or no interval"
    if not low <= value <= (value if high is None else high):
        return "its value lies outside its interval"
    if low < row.least or (value if high is None else high) > row.most:
        return f"its figures are no {row.unit} between {row.least:g} and {row.most:g}"
    return ""
