"""What a study of made-up answers found, as a page and as plain values.

Threat model: names may hold anything; the page escapes all text. Does not protect: who is given a page learns
what is in it; it holds no answers.
Source: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transom.report.heatmap import HeatMap
from transom.report.lines import Chart, Line
from transom.report.run import RunPage, Said, run_page
from transom.trust.hallucination.detector import SELECTIONS
from transom.trust.hallucination.study import Area, Studied

_LIMITS = (
    "States are correlates of truth: a detector that was fitted on one kind of answers may tell nothing of "
    "another (the table of transfers), and takes many negations for what they negate.",
    "A low risk is no proof, and a high one no refutation.",
)
_SPELLED = {
    "first": "first step",
    "last": "last step",
    "mean": "mean",
    "max": "largest step",
    "window": "largest steps in a row",
}
_MEANS = {
    "understanding": "over what was to be read",
    "query": "over the question",
    "generation": "over the answer",
}


def record(studied: Sequence[Studied], model: str) -> dict[str, Any]:
    """All of it as plain values."""
    return {"model": model, "selections": list(SELECTIONS), "sets": [_record(one) for one in studied]}


def headline(studied: Sequence[Studied]) -> str:
    """In a sentence a set."""
    return "; ".join(
        f"{one.name}: AUROC {_spelled(one.area)}, best baseline {max(one.baselines.values()):.3f}, "
        f"ECE {one.ece:.3f}"
        for one in studied
    )


def page(studied: Sequence[Studied], model: str) -> str:
    """The page."""
    return run_page(
        RunPage(
            title=f"What tells made-up answers of {model}",
            headline=f"{len(studied)} set{'s' if len(studied) != 1 else ''} of answers studied",
            details=tuple(headline([one]) for one in studied),
            charted="Risks and what came of them",
            chart_lead="Of parts of equal size: the mean risk, and the share that was made up. Where both "
            "are alike a risk can be read as a probability. Then the mean risk along the answer.",
            charts=tuple(chart for one in studied for chart in (_curve(one), _along(one))),
            parts=(
                *(part for one in studied for part in _parts(one)),
                *([_transfers(studied)] if len(studied) > 1 else []),
                Said("What this does not show", said=_LIMITS),
            ),
        )
    )


def _record(one: Studied) -> dict[str, Any]:
    negated = None if one.negated is None else {"value": one.negated.value, "interval": one.negated.interval}
    return {
        "name": one.name,
        "answers": list(one.answers),
        "made_up": list(one.made_up),
        "auroc": one.area.value,
        "auroc_interval": one.area.interval,
        "ece": one.ece,
        "curve": [list(part) for part in one.curve],
        "along": [list(part) for part in one.along],
        "heads": {name: [list(row) for row in rows] for name, rows in one.heads.items()},
        "families": {name: list(values) for name, values in one.families.items()},
        "stages": one.stages,
        "without": one.without,
        "baselines": one.baselines,
        "transfer_from": one.transfer,
        "negated": negated,
    }


def _curve(one: Studied) -> Chart:
    points = tuple((round(risk, 3), share) for risk, share, _ in one.curve)
    even = tuple((risk, risk) for risk, _ in points)
    return Chart(one.name, (Line("made up", points), Line("as the risk says", even)), under="risk")


def _along(one: Studied) -> Chart:
    made_up, rest = (tuple((row[0], row[place]) for row in one.along) for place in (1, 2))
    lines = (Line("made up", made_up), Line("not made up", rest))
    return Chart(f"{one.name}: risk along the answer", lines, under="share said")


def _parts(one: Studied) -> list[Said]:
    families = tuple(one.families.values())
    best = max(one.families.items(), key=lambda pair: max(pair[1]))
    number = SELECTIONS.index(max(SELECTIONS, key=lambda name: best[1][SELECTIONS.index(name)]))
    stage = max(one.stages.items(), key=lambda pair: pair[1], default=None)
    said = [
        f"Most is told by {best[0]}, by its {_SPELLED[SELECTIONS[number]]} ({best[1][number]:.3f} alone)."
    ]
    if stage is not None:
        said.append(f"Of the stages most is told by states {_MEANS[stage[0]]} ({stage[1]:.3f}).")
    figures = [
        ("Answers", f"{one.answers[0]} learnt from, {one.answers[1]} held out ({one.made_up[1]} made up)"),
        ("AUROC", _spelled(one.area)),
        *((f"Without {name}", f"{value:.3f}") for name, value in one.without.items()),
        *((f"States {_MEANS[name]} alone", f"{value:.3f}") for name, value in one.stages.items()),
        *((f"Baseline, {name}", f"{value:.3f}") for name, value in one.baselines.items()),
    ]
    if one.negated is not None:
        figures.append(("On negations", _spelled(one.negated)))
    rows = ", ".join(f"{place} {name}" for place, name in enumerate(one.families))
    across = ", ".join(f"{place} {name}" for place, name in enumerate(SELECTIONS))
    told = HeatMap(
        "AUROC above 0.5",
        tuple(tuple(max(v - 0.5, 0.0) for v in row) for row in families),
        "row",
        "selection",
    )
    return [
        Said(one.name, said=tuple(said), figures=tuple(figures)),
        Said(
            f"{one.name}: families by selection",
            lead=f"Rows: {rows}. Selections: {across}.",
            maps=(told,),
        ),
        *([_looked(one)] if one.heads else []),
    ]


def _looked(one: Studied) -> Said:
    maps = tuple(
        HeatMap(name, tuple(tuple(abs(v - 0.5) for v in row) for row in rows), "layer", "head")
        for name, rows in one.heads.items()
    )
    best, name = max((abs(v - 0.5), name) for name, rows in one.heads.items() for row in rows for v in row)
    return Said(
        f"{one.name}: what single heads tell",
        lead="How far from 0.5 the AUROC of a head's mean over the answer is, in the layers that were "
        f"looked at, from the first down. The most is {best:.3f}, by {name}.",
        maps=maps,
    )


def _transfers(studied: Sequence[Studied]) -> Said:
    return Said(
        "What transfers",
        lead="AUROC on the held-out answers of a set, of a detector that learnt from another.",
        figures=tuple(
            (f"{name} on {one.name}", f"{value:.3f}")
            for one in studied
            for name, value in one.transfer.items()
            if name != one.name
        ),
    )


def _spelled(found: Area) -> str:
    if found.interval is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} (95 % interval {found.interval[0]:.3f} to {found.interval[1]:.3f})"
