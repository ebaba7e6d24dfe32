"""`transom vertical plan`: which batch size and how many workers, by what both parties measure.

    OUT/ROLE/plan.json, plan.html, plan.svg     what was chosen, why, and what it was made of

Threat model: that of `transom.vertical.plan_link`. Does not protect: how fast each party is, and what it
offers of its machine, is known to the other afterwards.
Source: `transom.vertical`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.cli.vertical_jobs import Device, JobFile, PartnerFile, job_of, jobs_of, part_of, table_of
from transom.config import Setting
from transom.errors import MisconfiguredError, MissingExtraError

if TYPE_CHECKING:
    from transom.vertical.epoch import Wire
    from transom.vertical.job import VerticalJob
    from transom.vertical.part import Part
    from transom.vertical.plan import Made


def plan(
    job: JobFile,
    partner: PartnerFile = None,
    cores: Annotated[int | None, Setting("Cores to plan with; by default all.", least=1, most=4096)] = None,
    memory_gb: Annotated[
        float | None, Setting("Memory to plan with; by default all.", above=0, most=1e6)
    ] = None,
    latency_ms: Annotated[
        float | None,
        Setting("Of the link to plan for, one way, where both parties run here.", least=0, most=1e6),
    ] = None,
    mbit_s: Annotated[float | None, Setting("Of the link to plan for, each way.", above=0, most=1e9)] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Choose batch size and workers with the partner, who runs this too. With PARTNER both are measured here.

    `transom vertical train --plan` takes what was chosen.
    """
    from transom.vertical import plan as planning
    from transom.vertical.part import load_here

    memory_bytes = None if memory_gb is None else memory_gb * 1e9
    limits = planning.Limits(cores, memory_bytes, 1 if partner is None else 2)
    wire = _wire(latency_ms, mbit_s, here=partner is not None)
    if partner is None:
        jobs = [job_of(job, device)]
        parts = [part_of(jobs[0], table_of(jobs[0], quiet=as_json), quiet=as_json)]
        with progress("measuring, and meeting the partner", 1.0, quiet=as_json) as bar:
            made = planning.with_partner(jobs[0], parts[0], limits, bar.reach)
    else:
        both = jobs_of(job, partner, device)
        with progress("reading", quiet=as_json):
            jobs, loaded = list(both), load_here(both)
        parts = list(loaded)
        with progress("measuring", 1.0, quiet=as_json) as bar:
            made = planning.here(both, loaded, (limits, limits), wire, bar.reach)
    _tell([(one, part) for one, part in zip(jobs, parts, strict=True)], made, as_json)


def _wire(latency_ms: float | None, mbit_s: float | None, *, here: bool) -> Wire | None:
    """The link to plan for. Raises MisconfiguredError."""
    from transom.vertical.epoch import Wire

    if latency_ms is None and mbit_s is None:
        return None
    if not here:
        raise MisconfiguredError(
            "the link to the partner is measured; --latency-ms and --mbit-s go with both jobs"
        )
    if latency_ms is None or mbit_s is None:
        raise MisconfiguredError("--latency-ms and --mbit-s go together: a link has both")
    return Wire(latency_ms / 1000, mbit_s * 1e6 / 8)


def _tell(parties: list[tuple[VerticalJob, Part]], made: Made, as_json: bool) -> None:
    """Files of each party, and what to do, in short for people."""
    from transom.config import to_plain
    from transom.vertical import plan as planning
    from transom.vertical import plan_page

    record: dict[str, Any] = {"chosen": to_plain(made.plan.chosen), "reasons": list(made.plan.reasons)}
    text, record["parties"] = list(made.plan.reasons), {}
    for job, part in parties:
        files = {"plan": str(planning.write(job, part, made)), "page": str(plan_page.write_page(job, made))}
        files |= _plot(job, made)
        lines = plan_page.lines(job, made)
        record["parties"][job.role] = {**files, "train": {
            "batch_rows": made.plan.chosen.batch_rows, "workers": planning.workers(job, made.plan)
        }}  # fmt: skip
        text += ["", f"in the {job.role} party's job, or with transom vertical train --plan:", *lines]
        text += files.values()
    answer(record, "\n".join(text), as_json=as_json)


def _plot(job: VerticalJob, made: Made) -> dict[str, str]:
    """The plot, where it can be drawn, or why not."""
    from transom.files import write_file
    from transom.vertical.plan_plot import plot

    path = job.folder / "plan.svg"
    try:
        write_file(path, plot(made.given, made.plan, job.role).encode())
    except MissingExtraError as error:
        return {"no_plot": str(error)}
    return {"plot": str(path)}
