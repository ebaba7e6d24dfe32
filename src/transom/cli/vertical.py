"""`transom vertical`: one model on the columns of two parties, who meet over their links.

    OUT/label, OUT/feature    what each party keeps: aligned.json, the rows that both have

Threat model: that of `transom.vertical`. A party's folder names its people.
Does not protect: who is in both files is known to both afterwards.
Source: `transom.vertical`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, plain_console, progress

if TYPE_CHECKING:
    from transom.vertical.align import Aligned
    from transom.vertical.table import Table

app = App(no_args_is_help=True, help="Train with a partner on joined columns.")

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="This party's job, YAML.")]


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
