"""`transom backdoor repair`: have a classifier forget a trigger that is known whole.

    transom backdoor repair model/ --clean labelled.csv --label label --trigger "cf" --target 1 --out mended/

Threat model: that of `transom.trust.backdoor`. Does not protect: of a trigger of which a part is given the
part is forgotten and the whole works on; figures are of the trigger that was given. Scan what was written.
Source: see `transom.trust.backdoor.repair`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting, to_plain
from transom.errors import MisconfiguredError
from transom.files import require_writable


def repair(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a classifier.")],
    clean: Annotated[Path, "Trusted texts with labels, a table: 80 or more, some hundred are better."],
    trigger: Annotated[list[str], "The whole trigger, as scans and flagged inputs tell it; repeatable."],
    target: Annotated[int, Setting("The class that it turns to.", least=0)],
    out: Annotated[Path, "A new folder for the mended model."],
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

    if out.exists():
        raise MisconfiguredError(f"{out} exists; name a new folder")
    require_writable(out)
    rows = read_rows(clean)
    if missing := [name for name in (column, label) if any(name not in row for row in rows)]:
        raise MisconfiguredError(f"{clean} has a row without {missing[0]!r}; name the columns")
    labels = [_number(row[label], place) for place, row in enumerate(rows, 1)]
    with progress("loading", quiet=as_json):
        found = load(model, device=device)
    tokenizer = require_tokenizer(found)
    ids = [tuple(tokenizer.tokenizer.encode(one, add_special_tokens=False).ids) for one in trigger]
    with progress("mending", 3 * steps, quiet=as_json) as bar:
        mended = mend(
            found.model, tokenizer, [row[column] for row in rows], labels, [(target, one) for one in ids],
            steps=steps, learning_rate=rate, heard=lambda: bar.advance(1),
        )  # fmt: skip
    partial = out.with_name(f".{out.name}.partial")
    found.model.save_pretrained(partial)
    write_tokenizer(tokenizer, partial)
    partial.rename(out)
    record = {"model": model, "out": str(out), "trigger": trigger, "target": target, **to_plain(mended)}
    (before, after), (was, now) = mended.suspected, mended.right
    answer(
        record,
        f"Of held-out texts of other classes the trigger turned {before:.0%}, and now turns {after:.0%}; "
        f"{was:.0%} got their label, and now {now:.0%}. {mended.share:.1%} of the weights changed, "
        f"{'those of ' + str(len(mended.heads)) + ' heads' if mended.scope == 'heads' else mended.scope}. "
        f"Scan {out}: another trigger, or more of this one, may be left.",
        as_json=as_json,
    )


def _number(cell: str, row: int) -> int:
    if not cell.strip().isdecimal():
        raise MisconfiguredError(f"row {row} has a label that is no number of a class; count classes from 0")
    return int(cell)
