"""`transom backdoor`: is a model poisoned, and which inputs look as if they carried a trigger.

    transom backdoor scan-inputs model/ requests.csv --column text --clean trusted.csv

Threat model: that of `transom.trust.backdoor`. Does not protect: a flag is a suspicion, and its absence is no
proof. Source: see there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.trust.backdoor.inputs import Scanned

app = App(no_args_is_help=True, help="Find backdoors in models.")
_SHOWN = 10  # rows that are flagged


@app.callback()
def _group() -> None:
    """Find backdoors in models."""


@app.command("scan-inputs")
def scan_inputs(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Texts: a line each, or a table.")],
    clean: Annotated[Path, "Trusted texts of the task: 80 or more, some hundred are better."],
    column: Annotated[str | None, "The column of texts, in both files."] = None,
    rate: Annotated[
        float, Setting("Share of innocent inputs that may be flagged.", above=0, most=0.5)
    ] = 0.05,
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    as_json: Json = False,
) -> None:
    """Flag inputs on which the model's heads agree as they do on no trusted text."""
    from transom.config import to_plain
    from transom.data.rows import read_texts
    from transom.trust.backdoor.inputs import Scanner
    from transom.trust.backdoor.words import require_tokenizer

    texts, trusted = read_texts(file, column), read_texts(clean, column)
    with progress("loading", quiet=as_json):
        found = _loaded(model, device)
    with progress("reading trusted texts and inputs", len(texts) + len(trusted), quiet=as_json) as bar:
        count = iter(range(1, len(texts) + len(trusted) + 1))
        scanner = Scanner(found.model, require_tokenizer(found), heard=lambda: bar.reach(next(count)))
        normal = scanner.normal(trusted)
        scanned = scanner.scan(normal, texts, rate)
    flagged = [one for one in scanned if one.flagged]
    record: dict[str, Any] = {
        "model": model,
        "inputs": len(scanned),
        "flagged": len(flagged),
        "not_scored": sum(bool(one.reason) for one in scanned),
        "rate": rate,
        "trusted": normal.texts,
        "rows": [to_plain(one) for one in scanned],
    }
    answer(record, _told(scanned, flagged, rate), as_json=as_json)


def _told(scanned: list[Scanned], flagged: list[Scanned], rate: float) -> str:
    missed = sum(bool(one.reason) for one in scanned)
    lines = [
        f"{len(flagged)} of {len(scanned)} inputs are flagged; of innocent ones {rate * len(scanned):.1f} "
        f"would be{f'; {missed} are too short to be scored' if missed else ''}"
    ]
    flagged = sorted(flagged, key=lambda one: -(one.statistic or 0.0))
    lines += [
        f"  input {one.row}: p {one.p_value:.3f}, most heads look at {one.word!r}" for one in flagged[:_SHOWN]
    ]
    return "\n".join(lines)


def _loaded(model: str, device: str) -> Checkpoint:
    from transom.checkpoint.load import load

    return load(model, device=device)
