"""A plan as an HTML page: what was chosen and why, what else would cost, what was measured, what crossed.

Threat model: that of `transom.report.run`. Does not protect: the page tells how fast both parties are.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transom.files import write_file
from transom.report.lines import Chart, Line
from transom.report.run import RunPage, Said, run_page
from transom.vertical import plan_link
from transom.vertical.epoch import ROLES, Given
from transom.vertical.job import VerticalJob
from transom.vertical.plan import Made, workers
from transom.vertical.planner import LEAST_ROWS, Choice, curves

_LIMITS = (
    "How many epochs a training needs is a rule of thumb, measured on small networks at learning rates of "
    "0.001 to 0.004. Where it matters, try the second and third choice as well.",
    "Times were measured when nothing was trained. Other work on a machine or on the link makes them longer.",
    "The partner's constants are what it said.",
)


def write_page(job: VerticalJob, made: Made) -> Path:
    """The page of a plan, in the job's folder. Raises MisconfiguredError."""
    path = job.folder / "plan.html"
    write_file(path, run_page(_page(job, made)).encode())
    return path


def lines(job: VerticalJob, made: Made) -> tuple[str, ...]:
    """What to put into the job file, in place of what stands there."""
    return ("train:", *(f"  {name}: {value}" for name, value in _settings(job, made).items()))


def _settings(job: VerticalJob, made: Made) -> dict[str, str]:
    return {"batch_rows": str(made.plan.chosen.batch_rows), "workers": str(workers(job, made.plan))}


def _page(job: VerticalJob, made: Made) -> RunPage:
    plan = made.plan
    return RunPage(
        title=f"Plan of vertical training {job.name}, {job.role} party",
        headline=f"Batches of {plan.chosen.batch_rows:,} rows, {_own(job, made)}.",
        details=tuple(f"{text[:1].upper()}{text[1:]}." for text in plan.reasons[:3]),
        charted="What the model says",
        chart_lead="By the rows of a batch and the workers of this party, with the partner's as chosen. "
        "Large batches make an epoch short, and more epochs are needed.",
        charts=tuple(_charts(job, made)),
        parts=(
            Said("For the job file", (), tuple(_settings(job, made).items()), "Below train in the job."),
            Said("What else would cost", (), tuple(_choices(made))),
            Said("What was measured", (), tuple(_constants(made.given)), _LEAD),
            Said("What the partner has learnt by it", tuple(_disclosed())),
            Said("What this does not prove", _LIMITS),
        ),
    )


_LEAD = "Of one worker on one core; what lies between is a power of the rows beside an overhead."


def _charts(job: VerticalJob, made: Made) -> Iterator[Chart]:
    """An epoch alone, and weighed by how many are needed."""
    plan, found = made.plan, curves(made.given, made.plan, job.role)
    names = {
        count: f"{count} under way" if plan.schedule == "avfl" else _counted(count, "worker")
        for count in found
    }
    for title, value in (
        ("Seconds of an epoch", "epoch_s"),
        ("Seconds of an epoch, times the epochs", "cost_s"),
    ):
        drawn = (
            Line(names[count], tuple((one.batch_rows, getattr(one, value)) for one in line))
            for count, line in found.items()
        )
        yield Chart(title, tuple(drawn), "rows of a batch", logarithmic=True)


def _choices(made: Made) -> Iterator[tuple[str, str]]:
    for one in (made.plan.chosen, *made.plan.runners_up):
        more = one.cost_s / made.plan.chosen.cost_s - 1
        name = f"{one.batch_rows:,} rows, {_workers(made, one)}"
        yield (
            name,
            f"{one.epoch_s:.3g} s an epoch, {one.epochs_factor:.3g} times the epochs"
            + (f", {more:+.0%} in all" if one != made.plan.chosen else ", chosen"),
        )


def _workers(made: Made, one: Choice) -> str:
    if made.plan.schedule == "avfl":
        return f"{one.feature_workers} under way"
    return f"workers {one.label_workers} and {one.feature_workers}"


def _constants(given: Given) -> Iterator[tuple[str, str]]:
    yield "latency of the link, one way", f"{1000 * given.wire.latency_s:.2f} ms"
    fast = given.wire.bytes_per_s >= plan_link.FASTEST
    yield (
        "bandwidth of the link, each way",
        "none seen" if fast else f"{given.wire.bytes_per_s / 1e6:,.1f} MB/s",
    )
    for role in ROLES:
        party = given.party(role)
        most = min(party.most_rows, given.rows)
        for name, power in (
            ("forward", party.forward), ("backward", party.backward), ("a message", party.message),
        ):  # fmt: skip
            few_ms, many_ms = (1000 * power(rows) for rows in (LEAST_ROWS, most))
            told = f"{few_ms:.2g} ms for {LEAST_ROWS} rows, {many_ms:.2g} for {most:,}"
            yield f"{role} party, {name}", told
        yield f"{role} party, a worker's weights", f"{1000 * party.average_s:.2g} ms"
        memory = f"{party.base_bytes / 2**20:,.0f} MiB, and {party.row_bytes:,.0f} bytes a row"
        yield f"{role} party, memory of a worker", memory
        offered = f"{_counted(party.cores, 'core')}, {party.memory_bytes / 2**20:,.0f} MiB"
        yield f"{role} party, offered", offered


def _disclosed() -> Iterator[str]:
    yield "Which rows both parties have, how many, and their order; settings of the training and versions."
    yield from plan_link.disclosed().values()


def _own(job: VerticalJob, made: Made) -> str:
    count = workers(job, made.plan)
    return f"{count} under way" if made.plan.schedule == "avfl" else _counted(count, "worker")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
