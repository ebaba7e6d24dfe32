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
from transom.vertical.planner import Choice, curves

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
    return ("train:", f"  batch_rows: {made.plan.chosen.batch_rows}", f"  workers: {workers(job, made.plan)}")


def _page(job: VerticalJob, made: Made) -> RunPage:
    plan = made.plan
    drawn = (
        Line(f"{count} under way" if plan.schedule == "avfl" else _counted(count, "worker"), line)
        for count, line in curves(made.given, plan, job.role).items()
    )
    return RunPage(
        title=f"Plan of vertical training {job.name}, {job.role} party",
        headline=f"Batches of {plan.chosen.batch_rows:,} rows, {_own(job, made)}.",
        details=plan.reasons[:3],
        charted="Seconds of an epoch",
        chart_lead="As the model has them, by the rows of a batch and the workers of this party, with the "
        "partner's as chosen. Large batches make an epoch short and need more epochs.",
        charts=(Chart("Seconds of an epoch", tuple(drawn), "rows of a batch", logarithmic=True),),
        parts=(
            Said("For the job file", lines(job, made)),
            Said("What else would cost", (), tuple(_choices(made))),
            Said("What was measured", (), tuple(_constants(made.given)), _LEAD),
            Said("What the partner has learnt by it", tuple(_disclosed())),
            Said("What this does not prove", _LIMITS),
        ),
    )


_LEAD = "Seconds of a batch of B rows are overhead + lambda · B^gamma, of one worker on one core."


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
    yield "bandwidth of the link, each way", f"{given.wire.bytes_per_s / 1e6:,.1f} MB/s"
    for role in ROLES:
        party = given.party(role)
        for name, power in (
            ("forward", party.forward), ("backward", party.backward), ("a message", party.message),
        ):  # fmt: skip
            told = f"{power.overhead_s:.3g} + {power.lambda_s:.3g} · B^{power.gamma:.2f} s"
            yield f"{role} party, {name}", told
        yield f"{role} party, a worker's weights", f"{1000 * party.average_s:.3g} ms"
        memory = f"{party.base_bytes / 2**20:,.0f} MiB, and {party.row_bytes:,.0f} bytes a row"
        yield f"{role} party, memory of a worker", memory
        offered = f"{_counted(party.cores, 'core')}, {party.memory_bytes / 2**20:,.0f} MiB"
        yield f"{role} party, offered", offered


def _disclosed() -> Iterator[str]:
    yield "Which rows both parties have, how many, and their order; settings of the training and versions."
    for name, what in plan_link.disclosed().items():
        yield f"{name}: {what}"


def _own(job: VerticalJob, made: Made) -> str:
    count = workers(job, made.plan)
    return f"{count} under way" if made.plan.schedule == "avfl" else _counted(count, "worker")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
