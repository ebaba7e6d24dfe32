"""What commands of `transom vertical` share: their job files, and the rows that both parties have.

Threat model: that of `transom.vertical`. Does not protect anything beyond it.
Source: `transom.vertical`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.output import progress
from transom.cli.tunnels import said
from transom.errors import LinkError, MisconfiguredError

if TYPE_CHECKING:
    from transom.vertical.job import VerticalJob
    from transom.vertical.part import Part
    from transom.vertical.table import Table

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="This party's job, YAML.")]
LabelFile = Annotated[Path, typer.Argument(metavar="LABEL", help="The label party's job, YAML.")]
FeatureFile = Annotated[Path, typer.Argument(metavar="FEATURE", help="The feature party's job, YAML.")]
PartnerFile = Annotated[
    Path | None, typer.Argument(metavar="PARTNER", help="The partner's job, to run both parties here.")
]
Device = Annotated[str | None, "Where it computes, in place of the job's: cpu, cuda."]
PartnerKind = Annotated[str | None, typer.Option("--partner-tunnel", help="What the partner's rows pass.")]


@dataclass(frozen=True)
class Tunnels:
    """What the command line says of tunnels, in place of a job."""

    kind: str | None = None
    epsilon: float | None = None
    clip: float | None = None
    partner_kind: str | None = None

    def of(self, job: VerticalJob) -> VerticalJob:
        """The job with them. Raises MisconfiguredError."""
        from transom.config import from_plain, to_plain
        from transom.vertical.job import VerticalJob

        noise = said(job.noise, self.kind, self.epsilon, self.clip)
        plain: dict[str, Any] = {} if noise is None else {"noise": noise}
        if self.partner_kind is not None:
            plain["partner_noise"] = self.partner_kind
        if not plain:
            return job
        found: VerticalJob = from_plain(VerticalJob, {**to_plain(job), **plain}, "--tunnel", folder=Path())
        return found


def job_of(path: Path, device: str | None, tunnels: Tunnels | None = None) -> VerticalJob:
    from transom.vertical.job import read_job

    job = read_job(path)
    job = job if tunnels is None else tunnels.of(job)
    return job if device is None else replace(job, device=device)


def jobs_of(
    label: Path, feature: Path, device: str | None, tunnels: Tunnels | None = None
) -> tuple[VerticalJob, VerticalJob]:
    """Both jobs, the label party's first; tunnels of the command line are the feature party's. Raises
    MisconfiguredError."""
    tunnels = tunnels or Tunnels()
    theirs = Tunnels(partner_kind=tunnels.kind)
    jobs = job_of(label, device, theirs), job_of(feature, device, tunnels)
    for job, path, role, what in (
        (jobs[0], label, "label", "names no"),
        (jobs[1], feature, "feature", "names a"),
    ):
        if job.role != role:
            raise MisconfiguredError(f"{path} {what} data.label_column; name the label party's job first")
    return jobs


def table_of(job: VerticalJob, *, quiet: bool) -> Table:
    from transom.vertical.table import read_table

    with progress("reading", quiet=quiet):
        return read_table(job)


def part_of(job: VerticalJob, table: Table, *, quiet: bool, aligned: bool = False) -> Part:
    """The common rows, which are found with the partner where that was not done, unless they must be."""
    from transom.vertical import align
    from transom.vertical.part import make_part

    if aligned or (job.folder / align.FILE).exists():
        return make_part(job, table, align.read(job, table))
    with progress("waiting for the partner, and comparing IDs", 1.0, quiet=quiet) as bar:
        found = align.with_partner(job, table, lambda done, total: bar.reach(done / total))
    made = make_part(job, table, found)
    align.write(job, found)
    return made


def realigned(job: VerticalJob, table: Table, part: Part, meet_s: float, *, quiet: bool) -> Part:
    """A partner that does not come to train may look for the common rows, which it has lost or never kept."""
    from transom.vertical import align
    from transom.vertical.part import make_part

    with progress("looking whether the partner compares IDs", 1.0, quiet=quiet) as bar:
        end_s = time.monotonic() + meet_s
        try:
            found = align.with_partner(job, table, lambda done, total: bar.reach(done / total), meet_s)
        except LinkError:
            if time.monotonic() < end_s:
                raise
            return part
    align.write(job, found)
    return make_part(job, table, found)
