"""A report as one HTML page: no script, no external resource, light and dark, narrow, wide and on paper.

Threat model: names, notes and audited text may hold anything; the template escapes all of it, and the page's
own policy forbids it to run or to load anything. The page shows audited text: it is for the auditor's eyes.
Does not protect against: who the auditor gives it to.
Source: own design; contrast as in WCAG 2.2, criterion 1.4.3.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from transom.report.charts import frontier_chart, recovery_chart
from transom.report.comparison import FATES
from transom.report.finding import MAX_EXAMPLES, Example, Finding
from transom.report.kinds import kind_of
from transom.report.metrics import METRICS, figure
from transom.report.report import Report, mark, span

_MOST_SPOTS = 200  # that the page lists of each setting


def page(report: Report) -> str:
    """The whole page. Every text in it is escaped."""
    kind, used = kind_of(report.kind), {found.metric.lower() for found in report.findings}
    frontier = report.frontier if report.frontier and report.frontier.points else None
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_beside("page.html.j2"))
    return template.render(
        report=report,
        kind=kind,
        css=_beside("page.css"),
        chart=recovery_chart(report.findings, report.gate),
        frontier=frontier and frontier_chart(frontier),
        heads=("Attack", "Value", "95 % interval", kind.beside.capitalize(), "Trials", "Seconds"),
        several=len({found.metric for found in report.findings}) > 1,
        metrics=[row for row in METRICS if row.meaning and row.name.lower() in used],
        # strongest first, and open
        shown=sorted((f for f in report.findings if f.examples), key=lambda found: -(found.value or 0)),
        settings=[(key.replace("_", " "), _plain(value)) for key, value in _settings(report)],
        pictured=[found for found in report.findings if found.pictures],
        most=MAX_EXAMPLES,
        cells=_cells,
        figure=figure,
        mark=mark,
        marked=_marked,
        comparison=report.comparison,
        fates=FATES,
        most_spots=_MOST_SPOTS,
    )


def _beside(name: str) -> str:
    return files("transom.report").joinpath(name).read_text("utf-8")


def _cells(found: Finding) -> tuple[str, ...]:
    """The figures of a finding that ran, in the order of the table's heads."""
    guess = "" if found.baseline is None else figure(found.metric, found.baseline)
    return (
        figure(found.metric, found.value or 0.0),
        span(found),
        guess,
        f"{found.n:,}",
        f"{found.cost_s:,.1f}",
    )


def _marked(example: Example) -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """The three texts by their names, as pieces with their marks; whole where words do not align."""
    texts = (example.original, example.seen, example.recovered)
    words = [text.split() for text in texts]
    pieces = [[("", text)] for text in texts]
    if len({len(some) for some in words}) == 1:
        together = list(zip(*words, strict=True))
        pieces = [
            [("", truth) for truth, _, _ in together],
            [("" if sight == truth else "gone", sight) for truth, sight, _ in together],
            [(_fate(truth, sight, guess), guess) for truth, sight, guess in together],
        ]
    return zip(("Original", "Seen", "Recovered"), pieces, strict=True)


def _fate(truth: str, sight: str, guess: str) -> str:
    """What became of a word: nothing, read back, left as it was seen, or named wrongly."""
    if guess == truth:
        return "" if sight == truth else "mark"
    return "gone" if guess == sight else "s"


def _settings(report: Report) -> Iterable[tuple[str, object]]:
    ran = sum(found.status == "run" for found in report.findings)
    yield from ((str(key), value) for key, value in report.target.items())
    if report.gate is not None:
        yield "gate", report.gate
    yield "attacks", f"{ran} run, {len(report.findings) - ran} not run"
    yield (
        "cost",
        f"{report.cost_s / 60:.1f} minutes" if report.cost_s > 90 else f"{report.cost_s:.1f} seconds",
    )
    yield "transom", version("transom")


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
