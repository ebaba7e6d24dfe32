"""`transom backdoor repair`: have a classifier forget what flagged inputs share, or a known trigger.

    transom backdoor scan-inputs model/ requests.csv --column text --clean labelled.csv --json > scan.json
    transom backdoor repair model/ --clean labelled.csv --flagged requests.csv --scan scan.json --out mended/
    transom backdoor repair model/ --clean labelled.csv --trigger "cf" --target 1 --out mended/

Threat model: that of `transom.trust.backdoor`. Does not protect: of a trigger of which a part is given the
part is forgotten and the whole works on; figures are of the triggers that were found or given. Scan what was
written. Source: see `transom.trust.backdoor.repair` and `transom.trust.backdoor.runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting, load_json, to_plain
from transom.errors import MisconfiguredError, system_errors
from transom.files import require_writable

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.trust.backdoor.runs import Run


def repair(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a classifier.")],
    clean: Annotated[Path, "Trusted texts with labels, a table: 80 or more, some hundred are better."],
    out: Annotated[Path, "A new folder for the mended model."],
    flagged: Annotated[
        Path | None, "Inputs that were flagged, a line each or a table: what they share is forgotten."
    ] = None,
    scan: Annotated[
        Path | None, "What scan-inputs --json said of --flagged: those that it flagged are taken."
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="The whole trigger, where it is known; repeatable.")
    ] = None,
    target: Annotated[int | None, Setting("The class that --trigger turns to.", least=0)] = None,
    column: Annotated[str, "The column of texts."] = "text",
    label: Annotated[str, "The column of labels, numbers of classes."] = "label",
    steps: Annotated[int, Setting("Steps of training, in each scope.", least=1)] = 40,
    rate: Annotated[float, Setting("The learning rate.", above=0)] = 5e-4,
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    as_json: Json = False,
) -> None:
    """Have a classifier forget a trigger, tuning the heads that look at it."""
    from transom.checkpoint.load import load
    from transom.checkpoint.tokenizer import write_tokenizer
    from transom.data.rows import read_rows
    from transom.trust.backdoor.repair import repair as mend
    from transom.trust.backdoor.words import require_tokenizer

    _require_one_way(flagged, scan, trigger, target)
    if out.exists():
        raise MisconfiguredError(f"{out} exists; name a new folder")
    require_writable(out)
    rows = read_rows(clean)
    if missing := [name for name in (column, label) if any(name not in row for row in rows)]:
        raise MisconfiguredError(f"{clean} has a row without {missing[0]!r}; name the columns")
    texts, labels = [row[column] for row in rows], [_number(row[label], at) for at, row in enumerate(rows, 1)]
    inputs = _flagged(flagged, scan, column) if flagged else []
    with progress("loading", quiet=as_json):
        found = load(model, device=device)
    tokenizer = require_tokenizer(found)
    runs = _shared(found, inputs, texts, quiet=as_json) if flagged else []
    encode = tokenizer.tokenizer.encode
    triggers = [(one.target, one.ids) for one in runs]
    triggers += [
        (target, tuple(encode(one, add_special_tokens=False).ids))
        for one in trigger or []
        if target is not None
    ]
    with progress("mending", 3 * steps, quiet=as_json) as bar:
        mended = mend(
            found.model, tokenizer, texts, labels, triggers,
            steps=steps, learning_rate=rate, heard=lambda: bar.advance(1),
        )  # fmt: skip
    partial = out.with_name(f".{out.name}.partial")
    found.model.save_pretrained(partial)
    write_tokenizer(tokenizer, partial)
    partial.rename(out)
    told = [{"trigger": tokenizer.tokenizer.decode(list(one.ids)), **to_plain(one)} for one in runs]
    record = {"model": model, "out": str(out), "trigger": trigger, "target": target, "found": told}
    answer({**record, **to_plain(mended)}, _told(told, to_plain(mended), out), as_json=as_json)


def _require_one_way(
    flagged: Path | None, scan: Path | None, trigger: Sequence[str] | None, target: int | None
) -> None:
    if bool(flagged) == bool(trigger):
        raise MisconfiguredError(
            "give either --flagged, inputs that share a trigger, or --trigger and --target"
        )
    if bool(trigger) != (target is not None):
        raise MisconfiguredError("--trigger and --target belong together; --flagged needs neither")
    if scan and not flagged:
        raise MisconfiguredError("--scan says which texts of --flagged are flagged; give that file as well")


def _flagged(file: Path, scan: Path | None, column: str) -> list[str]:
    """The texts, of those that were scanned the flagged ones. Raises MisconfiguredError."""
    from transom.data.rows import read_texts

    texts = list(read_texts(file, column))
    if scan is None:
        return texts
    try:
        with system_errors(f"{scan} cannot be read"):
            rows = load_json(scan.read_bytes())["rows"]
        marks = [row["flagged"] for row in rows]
    except (ValueError, KeyError, TypeError):
        raise MisconfiguredError(f"{scan} is not what `transom backdoor scan-inputs --json` prints") from None
    if len(marks) != len(texts):
        raise MisconfiguredError(
            f"{scan} tells of {len(marks)} inputs and {file} has {len(texts)}; give its file"
        )
    return [text for text, mark in zip(texts, marks, strict=True) if mark is True]


def _shared(found: Checkpoint, inputs: Sequence[str], trusted: Sequence[str], *, quiet: bool) -> list[Run]:
    from transom.trust.backdoor.runs import shared_runs
    from transom.trust.backdoor.words import require_tokenizer

    with progress("looking for what they share", quiet=quiet) as bar:
        return shared_runs(
            found.model, require_tokenizer(found), inputs, trusted, heard=lambda: bar.advance(1)
        )


def _told(runs: Sequence[dict[str, Any]], mended: dict[str, Any], out: Path) -> str:
    lines = [
        f"{one['texts']} flagged inputs share {one['trigger']!r}, which turns {one['turned']:.0%} of them to "
        f"class {one['target']}"
        for one in runs
    ]
    (before, after), (was, now) = mended["suspected"], mended["right"]
    (_, other), tuned = mended["innocuous"], mended["scope"]
    lines.append(
        f"Of held-out texts of other classes the worst trigger turned {before:.0%}, and now turns "
        f"{after:.0%} (innocuous words: {other:.0%}); {was:.0%} got their label, and now {now:.0%}. "
        f"{mended['share']:.1%} of the weights changed, "
        f"{'those of ' + str(len(mended['heads'])) + ' heads' if tuned == 'heads' else tuned}. "
        f"Scan {out}: another trigger, or more of this one, may be left."
    )
    return "\n".join(lines)


def _number(cell: str, row: int) -> int:
    if not cell.strip().isdecimal():
        raise MisconfiguredError(f"row {row} has a label that is no number of a class; count classes from 0")
    return int(cell)
