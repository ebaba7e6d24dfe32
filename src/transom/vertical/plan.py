"""A plan of a vertical training, from both jobs to a file at each party: which batch, how many workers.

Each party measures its own part (`measure`), the parties tell each other constants and time the link
(`plan_link`), and both choose by the same model (`planner`), alike. `OUT/ROLE/plan.json` keeps it, with what
it is of; a plan of another job or other rows is not used.
Threat model: as `plan_link`'s; a job that changed since. Does not protect anything beyond them.
Source: own.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transom.config import read_config, to_plain
from transom.errors import CheckpointError, MisconfiguredError, system_errors
from transom.files import write_file
from transom.link.broker import Broker
from transom.link.config import connected
from transom.link.memory import together
from transom.link.record import Record
from transom.link.session import Session
from transom.vertical import plan_link
from transom.vertical.epoch import Given, Wire
from transom.vertical.job import VerticalJob, terms
from transom.vertical.measure import machine, measure
from transom.vertical.part import Part
from transom.vertical.party import facts
from transom.vertical.planner import Plan, choose
from transom.vertical.profile import Profile
from transom.vertical.schedule import way_of

FILE = "plan.json"
_MOST_RUN_CHARS = 59  # of the link's run, before ".plan"
_MEASURING = 0.7  # of the time, about
Advance = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """What a party offers of its machine; None: all of it, or its part of so many parties' there."""

    cores: int | None = None
    memory_bytes: float | None = None
    parties: int = 1


@dataclass(frozen=True)
class Made:
    """A plan as both parties have it, and what it was made of."""

    given: Given
    plan: Plan


@dataclass(frozen=True)
class Planned:
    """`plan.json`: what it is of, what stands in the job instead, and all that led to it."""

    of: Mapping[str, str]
    batch_rows: int
    workers: int
    plan: Any
    given: Any
    disclosed: Mapping[str, str]


def with_partner(job: VerticalJob, part: Part, limits: Limits, advance: Advance) -> Made:
    """Measure, meet the partner over the job's link, and choose; nothing of it is resumed.

    Raises LinkError, also for terms that differ; MisconfiguredError where no plan fits.
    """
    if job.link is None:
        raise MisconfiguredError(
            "the job has no link; add one, or give both jobs: transom vertical plan LABEL FEATURE"
        )
    profile = _measured(job, part, limits, advance)
    run = f"{job.link.run[:_MOST_RUN_CHARS]}.plan"
    with _beside(job) as folder:  # messages are as durable as those of a training
        link = replace(job.link, record=Path(folder), wire=job.wire)
        with connected(link, _terms(job, part), run=run) as (session, agreement, _):
            return _made(
                job, part, session,
                plan_link.given(job, part, profile, session, agreement, lambda done: advance(_rest(done))),
            )  # fmt: skip


def here(
    jobs: tuple[VerticalJob, VerticalJob], parts: tuple[Part, Part], limits: tuple[Limits, Limits],
    wire: Wire | None, advance: Advance,
) -> Made:  # fmt: skip
    """As `with_partner`, both parties in one process, one measured after the other; `wire` is the link that
    it is planned for, in place of none at all."""
    profiles = []
    for number, (job, part, own) in enumerate(zip(jobs, parts, limits, strict=True)):
        profiles.append(_measured(job, part, own, lambda done, at=number: advance((at + done) / 2)))  # type: ignore[misc]

    def work(number: int) -> Callable[[Broker], Made]:
        return lambda broker: _party(jobs, parts[number], profiles[number], number, broker, wire)

    return together(work(1), work(0))


def write(job: VerticalJob, part: Part, made: Made) -> Path:
    """Keep it in the job's folder. Raises MisconfiguredError."""
    planned = Planned(
        about(job, part), made.plan.chosen.batch_rows, workers(job, made.plan), made.plan.to_dict(),
        to_plain(made.given), plan_link.disclosed(),
    )  # fmt: skip
    path = job.folder / FILE
    write_file(path, (json.dumps(to_plain(planned), indent=2, sort_keys=True) + "\n").encode())
    return path


def planned_job(job: VerticalJob, part: Part) -> VerticalJob:
    """The job with what `write` kept in place of its own batch size and workers.

    Raises CheckpointError where there is no plan, or one of another job or of other rows (both told).
    """
    path, again = job.folder / FILE, "run transom vertical plan again at both parties"
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; run transom vertical plan at both parties first")
    kept, now = read_config(Planned, path, what="the plan", error=CheckpointError), about(job, part)
    if other := sorted(name for name in {*kept.of, *now} if kept.of.get(name) != now.get(name)):
        told = "; ".join(
            f"{name} was {str(kept.of.get(name))[:80]!r}, and is {str(now.get(name))[:80]!r}"
            for name in other
        )
        raise CheckpointError(f"{path} is of another job: {told}; {again}")
    return replace(job, train=replace(job.train, batch_rows=kept.batch_rows, workers=kept.workers))


def workers(job: VerticalJob, plan: Plan) -> int:
    """What this party's job says; in `avfl` both say how many batches are under way."""
    chosen = plan.chosen
    return (
        chosen.label_workers if (job.role, plan.schedule) == ("label", "pubsub") else chosen.feature_workers
    )


def about(job: VerticalJob, part: Part) -> dict[str, str]:
    """What a plan is of: what both parties have alike but for what it finds, and what takes time here."""
    own = {name: json.dumps(to_plain(getattr(job, name))) for name in ("bottom", "top", "noise", "device")}
    alike = {name: one for name, one in _terms(job, part).items() if not name.startswith("version of")}
    alike.pop("purpose")
    return {**alike, **own, "columns": part.schema, "wire": job.wire} | {"train.batch_rows": "planned"}


def _terms(job: VerticalJob, part: Part) -> dict[str, str]:
    found = terms(job, {**facts(job, part, way_of(job)), "purpose": "plan"})
    return {name: one for name, one in found.items() if name != "workers"}


def _party(
    jobs: tuple[VerticalJob, VerticalJob], part: Part, profile: Profile, number: int, broker: Broker,
    wire: Wire | None,
) -> Made:  # fmt: skip
    job, other = jobs[number], jobs[1 - number]
    with _beside(job) as folder:
        record = Record(
            Path(folder) / "record.sqlite", job=job.name, run="plan", party=job.role, partner=other.role
        )
        with closing(record), Session(broker, record, _terms(job, part), wire=job.wire) as session:
            given = plan_link.given(job, part, profile, session, session.connect())
            return _made(job, part, session, given if wire is None else replace(given, wire=wire))


def _made(job: VerticalJob, part: Part, session: Session, given: Given) -> Made:
    plan = choose(given, job.train.batch_rows)
    plan_link.agree(job, session, plan)
    session.finish()
    return Made(given, plan)


def _measured(job: VerticalJob, part: Part, limits: Limits, advance: Advance) -> Profile:
    cores, memory_bytes = machine()
    return measure(
        job, part, lambda done: advance(_MEASURING * done),
        cores=limits.cores or max(cores // limits.parties, 1),
        memory_bytes=limits.memory_bytes or memory_bytes / limits.parties,
    )  # fmt: skip


def _rest(done: float) -> float:
    return _MEASURING + (1 - _MEASURING) * done


def _beside(job: VerticalJob) -> tempfile.TemporaryDirectory[str]:
    """A folder that goes away, on the disk of the job's own."""
    with system_errors(f"cannot make {job.folder}"):
        job.folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="plan.", dir=job.folder)
