"""`transom split`: tune a vendor's model on private text, use what was tuned, and take it out as an adapter.

    OUT/vendor, OUT/customer    what each party's run leaves, and its record, from which a killed run goes on

Threat model: that of `transom.split`. The customer's folder holds the secret of its noise.
Does not protect: what the noise leaves to read; see the report, and `transom audit`.
Source: `transom.split`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli import split_serve
from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, plain_console, progress
from transom.cli.tunnels import Clip, Epsilon, TunnelKind, said
from transom.cli.watched import board
from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    from transom.link.told import Listener, Told
    from transom.split.job import SplitJob

app = App(no_args_is_help=True, help="Tune a vendor's model on private text.")
app.command()(split_serve.serve)

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job, YAML.")]
Device = Annotated[str | None, "Where it computes, in place of the job's: cpu, cuda."]
Board = Annotated[Path | None, "Folder for TensorBoard."]
_SHOWN = 6  # names of weights


@app.command()
def simulate(
    job: JobFile, tunnel: TunnelKind = None, epsilon: Epsilon = None, clip: Clip = None,
    device: Device = None, tensorboard: Board = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run both parties in this process, each with a model of its own."""
    from transom.split import run

    read = _through(_read(job, device), tunnel, epsilon, clip)
    with _watched(f"tuning {read.name}", tensorboard, quiet=as_json) as tell:
        run.simulate(read, tell)
    _tell_end(read, as_json)


@app.command()
def vendor(
    job: JobFile,
    predict: Annotated[bool, "Answer one customer that predicts, with what was tuned."] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run the vendor's side: wait for the customer, and train with it to the end."""
    from transom.split import messages, party, run

    read, purpose = _read(job, device), messages.PREDICT if predict else messages.TRAIN
    with (
        _watched(f"serving {read.name}", quiet=as_json) as tell,
        run.way(read) as broker,
        closing(party.vendor(read, tell, purpose)) as made,
    ):
        work = run.answer if predict else run.tune
        work(made, broker)
    folder = str(read.out / "vendor")
    text = "answered" if predict else f"tuned in {made.side.steps} steps; {folder}"
    answer({"party": "vendor", "steps": made.side.steps, "folder": folder}, text, as_json=as_json)


@app.command()
def customer(
    job: JobFile, tunnel: TunnelKind = None, epsilon: Epsilon = None, clip: Clip = None,
    device: Device = None, tensorboard: Board = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run the customer's side: lead the training on its rows to the end."""
    from transom.split import party, run

    read = _through(_read(job, device), tunnel, epsilon, clip)
    with (
        _watched(f"tuning {read.name}", tensorboard, quiet=as_json) as tell,
        run.way(read) as broker,
        closing(party.customer(read, tell)) as made,
    ):
        run.tune(made, broker)
    _tell_end(read, as_json)


@app.command()
def predict(
    job: JobFile,
    out: Annotated[Path, "Where the scores go: CSV, or JSON if it ends in .json."],
    data: Annotated[Path | None, "Rows to score, in place of the job's rows to evaluate."] = None,
    tunnel: TunnelKind = None,
    epsilon: Epsilon = None,
    clip: Clip = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Score rows with what was tuned. With a link in the job the vendor runs `vendor JOB --predict`."""
    from transom.split import messages, party, run

    read = _through(_read(job, device), tunnel, epsilon, clip)
    texts = None
    if data is not None:
        texts = _texts(read, data)
        read = replace(read, data=replace(read.data, evaluate=None)) if read.data else read
    with progress("asking", quiet=as_json):
        if read.link is None:
            found = run.predict_here(read, texts)
        else:
            with (
                run.way(read) as broker,
                closing(party.customer(read, lambda told: None, messages.PREDICT)) as made,
            ):
                found = run.predict(made, broker, texts)
    found.write(out)
    metrics = dict(found.metrics())
    text = f"{len(found.rows())} rows scored, in {out}{_metrics(metrics)}"
    answer({"rows": len(found.rows()), "out": str(out), "metrics": metrics}, text, as_json=as_json)


@app.command()
def export(
    job: JobFile,
    out: Annotated[Path, "Folder for the adapter."],
    vendor_folder: Annotated[Path | None, "What the vendor's run left; OUT/vendor by default."] = None,
    customer_folder: Annotated[Path | None, "What the customer's run left; OUT/customer by default."] = None,
    as_json: Json = False,
) -> None:
    """Write what both parties trained as one adapter of PEFT, which others can read."""
    from transom.split.export import export_adapter
    from transom.split.folder import weights_left
    from transom.split.parts import load_model

    read = _read(job, None)
    folders = vendor_folder or read.out / "vendor", customer_folder or read.out / "customer"
    with progress("writing", quiet=as_json):
        weights = [weights_left(folder) for folder in folders]
        export_adapter(out, read, load_model(read).model, *weights, base=read.model)
    tensors = sum(map(len, weights))
    answer({"out": str(out), "tensors": tensors}, f"{tensors} tensors in {out}", as_json=as_json)


def _read(path: Path, device: str | None) -> SplitJob:
    from transom.split.job import read_job

    job = read_job(path)
    return job if device is None else replace(job, device=device)


def _through(job: SplitJob, kind: str | None, epsilon: float | None, clip: float | None) -> SplitJob:
    """The job, its rows passing what the options say."""
    from transom.config import from_plain, to_plain
    from transom.split.job import SplitJob

    tunnel = said(job.tunnel, kind, epsilon, clip)
    if tunnel is None:
        return job
    found: SplitJob = from_plain(SplitJob, {**to_plain(job), "tunnel": tunnel}, "--tunnel", folder=Path())
    return found


def _texts(job: SplitJob, path: Path) -> tuple[str, ...]:
    """The texts of a file: lines, or the cells of the job's text column."""
    from transom.data import rows

    if job.data is None:
        raise MisconfiguredError("the job has no data, so its text column is not known; set data")
    column = None if rows.form_of(path) is rows.Format.text else job.data.text_column
    return rows.read_texts(path, column)


@contextmanager
def _watched(text: str, folder: Path | None = None, *, quiet: bool) -> Iterator[Listener]:
    """A bar, what will be trained, and a board if one is named."""
    console = plain_console(stderr=True)
    with board(folder) as write, progress(text, 1.0, quiet=quiet) as bar:

        def tell(told: Told) -> None:
            if told.kind == "ready" and told.trains and not quiet:
                more = "" if len(told.trains) <= _SHOWN else f" and {len(told.trains) - _SHOWN} more"
                console.print(f"trains {', '.join(told.trains[:_SHOWN])}{more}")
            if told.total:
                bar.reach(told.step / told.total)
            write(told)

        yield tell


def _tell_end(job: SplitJob, as_json: bool) -> None:
    """The customer's report, in short for people."""
    from transom.config import load_json

    folder = job.out / "customer"
    report = load_json((folder / "report.json").read_bytes())
    last = report["history"][-1]["metrics"] if report["history"] else {}
    passed = report["noise"]["tunnel"]
    through = "" if passed is None else f", through {passed['kind']}{_price(passed)}"
    text = f"tuned in {report['steps']} steps on {report['rows']} rows{_metrics(last)}{through}; {folder}"
    answer({"party": "customer", "folder": str(folder), **report}, text, as_json=as_json)


def _price(passed: dict[str, Any]) -> str:
    return f" (epsilon {passed['spent']:.4g} at delta {passed['delta']:g})" if "spent" in passed else ""


def _metrics(metrics: dict[str, float]) -> str:
    return "".join(f", {name} {value:.4g}" for name, value in metrics.items())
