"""A party's report of its run as an HTML page beside it: charts of loss and score, what crossed, the promise.

Threat model: that of `transom.report.run`. Does not protect: the page tells of the party's own run.
Source: own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from transom.files import write_file
from transom.report.lines import Chart, Line
from transom.report.run import RunPage, Said, run_page
from transom.vertical.job import VerticalJob
from transom.vertical.metrics import SCORE
from transom.vertical.timeline import COMPUTING, PARTNER, SAVING, SENDING, WAITING

_NAMES = {"auc": "AUC", "accuracy": "accuracy", "rmse": "RMSE", "deviance": "mean Poisson deviance"}
_MOST_POINTS = 40  # of a time line
_LIMITS = (
    "What embeddings tell of features, and gradients of labels, beyond what the noise bounds. No attack was "
    "run for this page.",
    "The interval covers the choice of the rows that were tested on, not another seed or other people.",
    "A partner that trains on other rows or answers falsely: the figures are what came of its answers.",
)


def write_page(job: VerticalJob, report: Mapping[str, Any]) -> Path:
    """The page of what `report.json` holds, in the job's folder. Raises MisconfiguredError."""
    path = job.folder / "report.html"
    write_file(path, run_page(_page(job, report)).encode())
    return path


def _page(job: VerticalJob, report: Mapping[str, Any]) -> RunPage:
    return RunPage(
        title=f"Vertical training {report['job']}, {report['party']} party",
        headline=_headline(report),
        details=tuple(_details(report)),
        charts=tuple(_charts(job, report.get("history", ()))),
        chart_lead="On the rows that were not trained on, after each epoch; bars are 95 % intervals.",
        parts=(
            *_timelines(report),
            _promise(report),
            _crossed(report),
            _cost(job, report),
            Said("What this does not prove", _LIMITS),
        ),
    )


def _headline(report: Mapping[str, Any]) -> str:
    score = report.get("score")
    if score:
        return f"{_NAMES[score['name']]} {score['value']:.4g}."
    return f"Trained in {report['steps']:,} steps."


def _details(report: Mapping[str, Any]) -> Iterator[str]:
    score = report.get("score")
    tested = report["rows"] - report["rows_of_training"]
    if score and score["low"] is not None:
        yield (
            f"95 % interval {score['low']:.4g} to {score['high']:.4g}, on {tested:,} rows that were not "
            "trained on."
        )
    yield (
        f"{report['rows']:,} rows are common to both parties; {report['rows_of_training']:,} were trained "
        f"on, in {report['steps']:,} steps by the schedule {report['schedule']}."
    )


def _charts(job: VerticalJob, history: Any) -> Iterator[Chart]:
    points = [(point["epoch"] + 1, point) for point in history]
    trained = [(epoch, point["train_loss"]) for epoch, point in points if point["train_loss"] is not None]
    lines = [Line("rows of training", tuple(trained))] if job.task not in ("regression", "counts") else []
    tested = tuple(
        (epoch, point["metrics"]["loss"])
        for epoch, point in points
        if point["metrics"].get("loss") is not None
    )
    yield Chart("Loss", (*lines, Line("rows of test", tested)))
    name = SCORE[job.task]
    scored = [(epoch, point) for epoch, point in points if point["metrics"].get(name) is not None]
    yield Chart(
        _NAMES[name],
        (
            Line(
                "rows of test",
                tuple((epoch, point["metrics"][name]) for epoch, point in scored),
                tuple(tuple(point["interval"]) if point["interval"] else None for _, point in scored),
            ),
        ),
    )


def _timelines(report: Mapping[str, Any]) -> Iterator[Said]:
    """What this party was doing, and what messages tell of the partner."""
    found = report.get("timeline")
    if not found:
        return
    together = math.ceil(len(found[PARTNER]) / _MOST_POINTS)
    span_s = together * found["span_s"]

    def line(name: str, shown: str) -> Line:
        shares = [found[name][at : at + together] for at in range(0, len(found[name]), together)]
        return Line(shown, tuple((at * span_s, 100 * fmean(one)) for at, one in enumerate(shares)))

    own = tuple(line(name, name) for name in (SENDING, SAVING, WAITING))
    yield Said(
        "Time lines",
        (
            "Of the partner a party knows what messages tell: where nothing of this party's is there or on "
            "its way, it waits.",
        ),
        lead=f"Per cent of each {span_s:g} seconds, of the process that ended the run. Workers that are "
        "processes compute while it waits; a single one computes in what is left of its time.",
        charts=(
            Chart("This party's workers", (line(COMPUTING, "computing"),), "seconds", stacked=True),
            Chart("This party's process", own, "seconds", stacked=True),
            Chart("The partner", (line(PARTNER, "had something to do"),), "seconds", stacked=True),
        ),
    )


def _promise(report: Mapping[str, Any]) -> Said:
    noise = report["noise"]
    guarantee, figures = noise.get("guarantee"), []
    if "mu" in noise:
        figures.append(("mu of the whole run (Gaussian differential privacy)", f"{noise['mu']:.4g}"))
    if "releases_of_a_row_at_most" in noise:
        figures.append(
            ("times that a row's embedding is released at most", str(noise["releases_of_a_row_at_most"]))
        )
    if not guarantee:
        return Said("What is promised", ("Nothing left.",), tuple(figures))
    figures = [("kind", guarantee["kind"]), ("of what", guarantee["unit"]), *figures]
    whose = (
        "this party's embeddings"
        if report["party"] == "feature"
        else "this party's gradients, which tell of the labels"
    )
    return Said("What is promised", tuple(guarantee["assumptions"]), tuple(figures), f"Of {whose}.")


def _crossed(report: Mapping[str, Any]) -> Said:
    sent = [
        (
            f"sent: {topic}",
            f"{one['messages']:,} messages" + (f", {one['rows']:,} rows" if one["rows"] else ""),
        )
        for topic, one in report["sent"].items()
    ]
    link = report["link"]
    if link:
        sent.append(("bytes sent by the process that ended the run", f"{link['bytes']:,}"))
        sent.append(("messages sent again by it", f"{link['resent']:,}"))
    return Said(
        "What the partner has learnt",
        tuple(f"{one[:1].upper()}{one[1:]}." for one in report["disclosed"]),
        tuple(sent),
    )


def _cost(job: VerticalJob, report: Mapping[str, Any]) -> Said:
    train = job.train
    figures = [
        ("task", job.task), ("schedule", train.schedule), ("epochs", str(train.epochs)),
        ("rows of a batch", str(train.batch_rows)), ("workers of this party", str(train.workers)),
        ("learning rate", f"{train.learning_rate:g}"), ("numbers of an embedding", str(job.width)),
        ("wire", job.wire), ("seconds waited", f"{report['wait_s']:.1f}"),
        ("processor seconds of the workers", f"{report['busy_s']:.1f}"),
    ]  # fmt: skip
    figures += [(f"given out again: {why}", str(count)) for why, count in report["given_out_again"].items()]
    if age := report.get("staleness"):
        figures.append(
            ("steps that a gradient was old", f"{age['mean']:.2f} on average, {age['most']:g} at most")
        )
    return Said("Settings and cost", (), tuple(figures))
