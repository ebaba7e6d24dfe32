"""`transom vertical`: one model on the columns of two parties, who meet over their links.

    OUT/label, OUT/feature    what each party keeps: aligned.json, the rows that both have; its record, from
                              which a killed run goes on; what it has learnt; report.json and report.html

Threat model: that of `transom.vertical`. A party's folder names its people.
Does not protect: who is in both files is known to both afterwards.
Source: `transom.vertical`.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli import vertical_plan
from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, plain_console, progress
from transom.cli.tunnels import Clip, Epsilon, TunnelKind
from transom.cli.vertical_jobs import (
    Device,
    FeatureFile,
    JobFile,
    LabelFile,
    PartnerFile,
    PartnerKind,
    Tunnels,
    job_of,
    jobs_of,
    part_of,
    realigned,
    table_of,
)
from transom.cli.watched import watched
from transom.errors import LinkError, MisconfiguredError

if TYPE_CHECKING:
    from transom.vertical.align import Aligned
    from transom.vertical.job import VerticalJob
    from transom.vertical.part import Part
    from transom.vertical.predicted import Predicted
    from transom.vertical.table import Table

app = App(no_args_is_help=True, help="Train with a partner on joined columns.")
app.command()(vertical_plan.plan)

Board = Annotated[Path | None, "Folder for TensorBoard."]
AsPlanned = Annotated[
    bool, typer.Option("--plan", help="Batch size and workers as `transom vertical plan` chose them.")
]


@app.command()
def psi(
    job: JobFile,
    insecure_hashed_join: Annotated[
        bool,
        typer.Option(
            "--insecure-hashed-join",
            help="Send hashes of the IDs, which the partner can undo by trying. Both parties say so.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the rows that both parties have, with the partner, who runs this too."""
    from transom.vertical import align
    from transom.vertical.job import read_job
    from transom.vertical.table import read_table

    read = read_job(job)
    read = replace(read, insecure_hashed_join=read.insecure_hashed_join or insecure_hashed_join)
    if read.insecure_hashed_join:
        plain_console(stderr=True).print("insecure: the partner learns every ID here that it can guess")
    with progress("reading", quiet=as_json):
        table = read_table(read)
    with progress("waiting for the partner, and comparing IDs", 1.0, quiet=as_json) as bar:
        found = align.with_partner(read, table, lambda done, total: bar.reach(done / total))
    path = align.write(read, found)
    _tell(found, table, {"party": read.role, "file": str(path)}, as_json)


@app.command()
def train(
    job: JobFile, as_planned: AsPlanned = False, tunnel: TunnelKind = None, epsilon: Epsilon = None,
    clip: Clip = None, partner_tunnel: PartnerKind = None, device: Device = None, tensorboard: Board = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Train with the partner, who runs this too. Without aligned.json the common rows are found first."""
    from transom.vertical import run
    from transom.vertical.align import FILE
    from transom.vertical.party import make_party
    from transom.vertical.plan import planned_job
    from transom.vertical.schedule import way_of

    read = job_of(job, device, Tunnels(tunnel, epsilon, clip, partner_tunnel))
    timeout_s, was_aligned = read.link.timeout_s if read.link else 0.0, (read.folder / FILE).exists()
    table = table_of(read, quiet=as_json)
    part = part_of(read, table, quiet=as_json)
    read = planned_job(read, part) if as_planned else read
    workers = "processes" if way_of(read).workers > 1 or read.train.cluster else "here"
    end_s = time.monotonic() + timeout_s
    while True:
        with (
            watched(f"training {read.name}", read.train.batch_rows, tensorboard, quiet=as_json) as tell,
            run.way(read) as broker,
            closing(make_party(read, part, tell, workers=workers)) as party,  # type: ignore[arg-type]
        ):
            unsure = was_aligned and not party.has_begun
            meet_s, begun_s = timeout_s / 8 if unsure else None, time.monotonic()
            try:
                run.train(party, broker, meet_s=meet_s)
                break
            except LinkError:
                now_s = time.monotonic()  # terms that differ are told before the time is over
                if meet_s is None or party.has_begun or not begun_s + meet_s <= now_s <= end_s:
                    raise
        part = realigned(read, table, part, timeout_s / 16, quiet=as_json)
        read = planned_job(read, part) if as_planned else read  # a plan of other rows is refused
    _tell_end([read], as_json)


@app.command()
def simulate(
    label: LabelFile, feature: FeatureFile, as_planned: AsPlanned = False, tunnel: TunnelKind = None,
    epsilon: Epsilon = None, clip: Clip = None, device: Device = None, tensorboard: Board = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run both parties in this process, on the rows that both files have."""
    from transom.vertical import run
    from transom.vertical.part import load_here
    from transom.vertical.plan import planned_job
    from transom.vertical.schedule import way_of

    jobs = jobs_of(label, feature, device, Tunnels(tunnel, epsilon, clip))
    with progress("reading", quiet=as_json):
        parts = load_here(jobs)
    if as_planned:
        jobs = planned_job(jobs[0], parts[0]), planned_job(jobs[1], parts[1])
    workers = "threads" if any(way_of(one).workers > 1 for one in jobs) else "here"
    with watched(f"training {jobs[0].name}", jobs[0].train.batch_rows, tensorboard, quiet=as_json) as tell:
        run.simulate(jobs, parts, tell, workers=workers)  # type: ignore[arg-type]
    _tell_end(list(jobs), as_json)


@app.command()
def predict(
    job: JobFile,
    partner: PartnerFile = None,
    rows: Annotated[Path | None, "Other rows than those trained on; the partner names its file, too."] = None,
    partner_rows: Annotated[Path | None, "The partner's other rows, where both parties run here."] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Only of this ID; of several.")] = None,
    out: Annotated[Path | None, "Where the scores go: CSV, or JSON if it ends in .json."] = None,
    tunnel: TunnelKind = None,
    epsilon: Epsilon = None,
    clip: Clip = None,
    partner_tunnel: PartnerKind = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score rows with the trained model. Both parties run this; the label party gets the scores."""
    tunnels = Tunnels(tunnel, epsilon, clip, partner_tunnel)
    read = job_of(job, device, Tunnels() if partner is not None else tunnels)
    if read.role == "feature" and (out is not None or ids):
        raise MisconfiguredError("the label party gets the scores; --out and --id are its options")
    found: Predicted | int
    if partner is not None:
        found = _predict_here(jobs_of(job, partner, device, tunnels), rows, partner_rows, ids, quiet=as_json)
    elif partner_rows is not None:
        raise MisconfiguredError("--partner-rows goes with the partner's job, to run both parties here")
    else:
        found = _predict(read, rows, ids, quiet=as_json)
    if isinstance(found, int):
        answer({"party": "feature", "rows": found}, f"{found} embeddings sent", as_json=as_json)
        return
    if out is not None:
        found.write(out)
    _tell_scores(found, out, as_json)


def _predict(job: VerticalJob, path: Path | None, ids: list[str] | None, *, quiet: bool) -> Predicted | int:
    """With the partner; the feature party counts what it answered."""
    from transom.vertical import run
    from transom.vertical.part import load_new
    from transom.vertical.party import make_party

    if path is None:
        part = part_of(job, table_of(job, quiet=quiet), quiet=quiet, aligned=True)
    else:
        with progress("comparing IDs", 1.0, quiet=quiet) as bar:
            part = load_new(job, path, lambda done, total: bar.reach(done / total))
    numbers = _numbers(part, ids)
    with (
        progress("asking" if job.role == "label" else "answering", quiet=quiet),
        run.way(job) as broker,
        closing(
            make_party(job, part, lambda told: None, purpose="predict", new_rows=path is not None)
        ) as party,
    ):
        if job.role == "feature":
            return run.answer(party, broker)
        return _predicted(job, part, numbers, run.predict(party, broker, numbers))


def _predict_here(
    jobs: tuple[VerticalJob, VerticalJob], path: Path | None, partners: Path | None,
    ids: list[str] | None, *, quiet: bool,
) -> Predicted:  # fmt: skip
    from transom.vertical import run
    from transom.vertical.part import load_here

    if (path is None) != (partners is None):
        raise MisconfiguredError("--rows and --partner-rows go together: other rows of both parties")
    paths = None if path is None or partners is None else (path, partners)
    with progress("scoring", quiet=quiet):
        parts = load_here(jobs, paths)
        numbers = _numbers(parts[0], ids)
        scores = run.predict_here(jobs, parts, numbers, new_rows=paths is not None)
    return _predicted(jobs[0], parts[0], numbers, scores)


def _numbers(part: Part, ids: list[str] | None) -> list[int]:
    """Of all common rows, or of those with these IDs. Raises MisconfiguredError."""
    from transom.vertical.ids import canonical

    if not ids:
        return list(range(len(part)))
    places = {one: place for place, one in enumerate(part.ids)}
    wanted = [canonical(one) for one in ids]
    if gone := sum(one not in places for one in wanted):
        raise MisconfiguredError(f"{gone} of {len(wanted)} IDs are not among the {len(part)} common rows")
    return [places[one] for one in wanted]


def _predicted(job: VerticalJob, part: Part, numbers: list[int], scores: Any) -> Predicted:
    from transom.vertical.predicted import Predicted

    labels_R = None if part.labels_M is None else part.labels_M[numbers]
    return Predicted(job, tuple(part.ids[one] for one in numbers), scores, labels_R)


def _tell_end(jobs: list[VerticalJob], as_json: bool) -> None:
    """The first party's report, in short for people; each one's page beside it."""
    from transom.config import load_json
    from transom.vertical.page import write_page

    reports = [load_json((job.folder / "report.json").read_bytes()) for job in jobs]
    pages = [write_page(job, report) for job, report in zip(jobs, reports, strict=True)]
    report, score = reports[0], reports[0].get("score")
    text = f"trained in {report['steps']} steps on {report['rows_of_training']} rows"
    if score:
        text += f", {score['name']} {score['value']:.4f}"
        text += f" ({score['low']:.4f} to {score['high']:.4f})" if score["low"] is not None else ""
    text += "".join(f"\n{page}" for page in pages)
    answer({"folder": str(jobs[0].folder), "page": str(pages[0]), **report}, text, as_json=as_json)


def _tell_scores(found: Predicted, out: Path | None, as_json: bool) -> None:
    """How many and how good; and the scores themselves where they go to no file."""
    metrics, scored = dict(found.metrics()), found.rows()
    record: dict[str, Any] = {"party": "label", "rows": len(scored), "metrics": metrics}
    record |= {"scores": scored} if out is None else {"out": str(out)}
    said = "".join(f", {name} {value:.4g}" for name, value in metrics.items())
    lines = [f"{len(scored)} rows scored{said}{'' if out is None else f'; {out}'}"]
    if out is None:
        lines += [
            "\t".join(f"{one:.6g}" if isinstance(one, float) else str(one) for one in row.values())
            for row in scored
        ]
    answer(record, "\n".join(lines), as_json=as_json)


def _tell(found: Aligned, table: Table, record: dict[str, Any], as_json: bool) -> None:
    record |= {
        "common": len(found), "rows": len(table), "partner_rows": found.partner_count, "merged": table.merged,
        "join": found.join, "order_hash": found.order_hash, "discloses": list(found.discloses),
    }  # fmt: skip
    merged = f", after {table.merged} that stood twice" if table.merged else ""
    text = (
        f"{len(found)} rows in common, of {len(table)} here{merged} and {found.partner_count} there; "
        f"order hash {found.order_hash[:16]}\n"
        f"the partner has learnt {', and '.join(found.discloses)}\n{record['file']}"
    )
    answer(record, text, as_json=as_json)
