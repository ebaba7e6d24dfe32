"""`transom backdoor`: is a model poisoned, and which inputs look as if they carried a trigger.

    transom backdoor scan model/ --clean trusted.csv --column text --html report.html --gate
    transom backdoor scan-inputs model/ requests.csv --column text --clean trusted.csv

Threat model: that of `transom.trust.backdoor`. Does not protect: a flag is a suspicion, and its absence is no
proof. Source: see there.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli import backdoor_fit, backdoor_repair
from transom.cli.app import App
from transom.cli.audit_report import GATE_EXIT
from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting
from transom.errors import MisconfiguredError, NotYetError
from transom.files import require_writable, write_file

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.trust.backdoor.inputs import Scanned
    from transom.trust.prompt import Frame

app = App(no_args_is_help=True, help="Find backdoors in models, and mend them.")
_SHOWN = 10  # rows that are flagged


@app.callback()
def _group() -> None:
    """Find backdoors in models, and mend them."""


app.command()(backdoor_repair.repair)
app.command()(backdoor_fit.fit)


@app.command()
def scan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a classifier or a generating model.")
    ],
    clean: Annotated[Path, "Trusted texts of the task, no labels: 80 or more, some hundred are better."],
    adapter: Annotated[Path | None, "Folder of a LoRA adapter, which is scanned with the model."] = None,
    column: Annotated[str | None, "The column of texts."] = None,
    prompt: Annotated[str, Setting("What stands around a text, with {text} in its place.")] = "{text}",
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    html: Annotated[Path | None, "Write the verdict as one HTML page."] = None,
    sarif: Annotated[Path | None, "Write the verdict as SARIF 2.1.0."] = None,
    gate: Annotated[bool, Setting("Exit with 20 unless the model is surely below the line.")] = False,
    as_json: Json = False,
) -> None:
    """Search a classifier for a planted trigger, a generating model for a planted answer and its trigger.

    No trigger is needed, and no clean twin.
    """
    from transom.checkpoint.adapter import attach, read_adapter
    from transom.data.rows import read_texts
    from transom.trust.backdoor import page
    from transom.trust.backdoor.lora import rank_one_share
    from transom.trust.backdoor.spoken import scan_generator
    from transom.trust.backdoor.verdict import check_classifier, scan_classifier
    from transom.trust.prompt import generates, require_tokenizer

    for path in filter(None, (html, sarif)):
        require_writable(path)
    frame, trusted = frame_of_prompt(prompt), read_texts(clean, column)
    with progress("loading", quiet=as_json):
        found = _loaded(model, device)
        share = None
        if adapter is not None:
            attach(found.model, adapter)
            with suppress(NotYetError):  # a figure that decides nothing
                share = rank_one_share(read_adapter(adapter))
    if not generates(found.model):
        check_classifier(found.model)
    with progress("searching for a trigger", quiet=as_json) as bar:
        verdict = (scan_generator if generates(found.model) else scan_classifier)(
            found.model, require_tokenizer(found), trusted, frame=frame, heard=lambda: bar.advance(1)
        )
    if html is not None:
        write_file(html, page.page(verdict, model).encode("utf-8", "replace"), mode=0o600)
    if sarif is not None:
        log = json.dumps(page.sarif(verdict, model), indent=2) + "\n"
        write_file(sarif, log.encode("utf-8", "replace"), mode=0o600)
    answer(page.record(verdict, model) | {"rank_one": share}, page.headline(verdict), as_json=as_json)
    if gate and (verdict.poisoned or not verdict.certain):
        typer.echo("gate not passed: the model is not surely below the line", err=True)
        raise typer.Exit(GATE_EXIT)


@app.command("scan-inputs")
def scan_inputs(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Texts: a line each, or a table.")],
    clean: Annotated[Path, "Trusted texts of the task: 84 or more, some hundred are better."],
    column: Annotated[str | None, "The column of texts, in both files."] = None,
    prompt: Annotated[str, Setting("What stands around a text, with {text} in its place.")] = "{text}",
    rate: Annotated[
        float, Setting("Share of innocent inputs that may be flagged.", above=0, most=0.5)
    ] = 0.05,
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    as_json: Json = False,
) -> None:
    """Flag inputs with which the model does what it does with no trusted text."""
    from transom.config import to_plain
    from transom.data.rows import read_texts
    from transom.trust.backdoor.inputs import Scanner
    from transom.trust.prompt import require_tokenizer

    frame, texts, trusted = frame_of_prompt(prompt), read_texts(file, column), read_texts(clean, column)
    with progress("loading", quiet=as_json):
        found = _loaded(model, device)
    total = len(texts) + len(trusted) + len(trusted) // 4  # a part is read twice
    with progress("reading trusted texts and inputs", total, quiet=as_json) as bar:
        scanner = Scanner(found.model, require_tokenizer(found), frame, heard=lambda: bar.advance(1))
        known = scanner.trust(trusted)
        scanned = scanner.scan(known, texts, rate)
    flagged = [one for one in scanned if one.flagged]
    record: dict[str, Any] = {
        "model": model,
        "inputs": len(scanned),
        "inputs_sha256": backdoor_repair.digest_of(texts),
        "flagged": len(flagged),
        "not_scored": sum(bool(one.reason) for one in scanned),
        "rate": rate,
        "trusted": known.texts,
        "rows": [to_plain(one) for one in scanned],
    }
    answer(record, _told(scanned, flagged, rate), as_json=as_json)


def _told(scanned: list[Scanned], flagged: list[Scanned], rate: float) -> str:
    missed = sum(bool(one.reason) for one in scanned)
    lines = [
        f"{len(flagged)} of {len(scanned)} inputs are flagged; of innocent ones {rate * len(scanned):.1f} "
        f"would be{f'; {missed} were not scored (too short, or see --json)' if missed else ''}"
    ]
    flagged = sorted(flagged, key=lambda one: -(one.statistic or 0.0))
    lines += [
        f"  input {one.row}: p {one.p_value:.3f}, most heads look at {one.word!r}" for one in flagged[:_SHOWN]
    ]
    return "\n".join(lines)


def frame_of_prompt(prompt: str) -> Frame:
    """What stands before and after a text. Raises MisconfiguredError."""
    from transom.trust.prompt import Frame

    before, mark, after = prompt.replace("\\n", "\n").partition("{text}")
    if not mark or "{text}" in after:
        raise MisconfiguredError(f"--prompt holds {{text}} once, for the text; got {prompt[:80]!r}")
    return Frame(before, after)


def _loaded(model: str, device: str) -> Checkpoint:
    from transom.checkpoint.load import load

    return load(model, device=device)
