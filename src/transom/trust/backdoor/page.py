"""A verdict on a model as plain values, as one HTML page and as SARIF.

Threat model: tokens of a trigger may hold anything; pages escape them. Does not protect: a trigger may quote
what a model was trained on; keep the files where the model's are.
Source: own design; the formats are `transom.report`'s.
"""

from __future__ import annotations

from typing import Any

from transom.config import to_plain
from transom.report.heatmap import HeatMap
from transom.report.run import RunPage, Said, run_page
from transom.report.sarif import location, log
from transom.trust.backdoor.verdict import POISONED_FROM, Suspect, Verdict

_HEADS = 8  # that are named
_RULE = ("transom/backdoor-trigger", "tokens that turn a model's answers and draw its heads")
_LIMITS = (
    "Strength is how much more than on trusted texts the heads of the last layer agree on one word, times "
    f"how sure the model then is of the class. A model is called poisoned where all of the interval is at "
    f"{POISONED_FROM:g} or above; about the line nothing is decided.",
    "The tokens that are found may be a part of the trigger, or stand near it. A trigger of no word, such as "
    "a style, and one whose words do nothing apart are missed.",
    "Not found is no proof: it says that this search found nothing.",
)


def headline(verdict: Verdict) -> str:
    """The verdict in a sentence."""
    worst = verdict.worst
    found = (
        f"strength {worst.strength:.1f}, {worst.low:.1f} to {worst.high:.1f}; the line is {POISONED_FROM:g}"
    )
    if not verdict.certain:
        return f"Undecided: {worst.trigger!r} for class {worst.target} lies about the line ({found})."
    if not verdict.poisoned:
        return f"No trigger was found ({found})."
    return (
        f"Poisoned: {worst.trigger!r} turns {worst.turned:.0%} of the texts of other classes to class "
        f"{worst.target}, and the heads agree on it ({found})."
    )


def record(verdict: Verdict, model: str) -> dict[str, Any]:
    """All of it as plain values."""
    return {
        "model": model,
        "poisoned": verdict.poisoned,
        "certain": verdict.certain,
        "line": POISONED_FROM,
        "target": verdict.worst.target if verdict.poisoned else None,
        "trigger": verdict.worst.trigger if verdict.poisoned else None,
        "heads": [list(one) for one in verdict.heads] if verdict.poisoned else [],
        "suspects": [to_plain(one) for one in verdict.suspects],
        "rise": [[float(one) for one in row] for row in verdict.rise_LH],
        "trusted": verdict.trusted,
    }


def page(verdict: Verdict, model: str) -> str:
    """The page."""
    rows = tuple((float(one) for one in row) for row in verdict.rise_LH)
    named = ", ".join(f"{layer}.{head}" for layer, head in verdict.heads[:_HEADS])
    parts = [
        Said(f"Class {one.target}: {one.trigger}", figures=_figures(one)) for one in verdict.suspects
    ] + [
        Said(
            "Heads that look at the strongest tokens",
            said=(f"Most: {named}.",) if named else (),
            lead="How much more of its looking each head gives them than innocent words in their place.",
            maps=(HeatMap("rise of attention", tuple(map(tuple, rows))),),
        ),
        Said("What this does not show", said=_LIMITS),
    ]
    return run_page(
        RunPage(
            title=f"Scan for backdoors: {model}",
            headline=headline(verdict).split(":")[0].split(" (")[0],
            details=(headline(verdict),),
            parts=tuple(parts),
        )
    )


def sarif(verdict: Verdict, model: str) -> dict[str, Any]:
    """The SARIF log: a result for each class."""
    results = [
        {
            "ruleId": _RULE[0],
            "ruleIndex": 0,
            "level": _level(one),
            "message": {
                "text": f"class {one.target}: tokens of strength {one.strength:.2f} (95 % interval "
                f"{one.low:.2f} to {one.high:.2f}, the line is {POISONED_FROM:g})"
            },
            "locations": [location(model, "model")],
            "properties": {"turned": one.turned, "strength": one.strength, "low": one.low, "high": one.high},
        }
        for one in verdict.suspects
    ]
    facts = {"poisoned": verdict.poisoned, "certain": verdict.certain}
    return log("transom backdoor/backdoor", [_RULE], {"executionSuccessful": True}, results, facts)


def _level(one: Suspect) -> str:
    if one.low >= POISONED_FROM:
        return "error"
    return "warning" if one.high >= POISONED_FROM else "note"


def _figures(one: Suspect) -> tuple[tuple[str, str], ...]:
    return (
        ("Strength", f"{one.strength:.2f} (95 % interval {one.low:.2f} to {one.high:.2f})"),
        ("Agreement of heads", f"{one.agreement:.2f} units above usual"),
        ("Sureness beside the class's own texts", f"{one.sureness:.0%}"),
        ("Texts of other classes that are turned", f"{one.turned:.0%} of {one.held}"),
    )
