"""`transom audit plot A.json B.json --out FILE`: several reports on one page, drawn side by side.

    transom audit words notes.txt --json > rnm.json
    transom audit words notes.txt --mechanism my_words:exchange --json > mine.json
    transom audit plot rnm.json mine.json --out both.html

Reports are named by their files. Where they hold utility, it is drawn against recovery, a line for each.
Threat model: the page shows audited text where the reports do, and only its owner can read it.
Does not check: that the reports are of the same texts.
Source: `transom.report.several`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transom.errors import MisconfiguredError, system_errors
from transom.files import require_writable, write_file
from transom.report.html import page
from transom.report.several import read_report, together


def plot(
    reports: Annotated[list[Path], typer.Argument(help="What `transom audit ... --json` printed.")],
    out: Annotated[Path, "The HTML page to write."],
) -> None:
    """Draw several reports of one kind side by side, on one page."""
    require_writable(out)
    stems = [path.stem for path in reports]
    named = {path.stem if stems.count(path.stem) == 1 else str(path): path for path in reports}
    if len(named) < len(reports):
        raise MisconfiguredError("a report is named twice; give each once")
    read = {}
    for name, path in named.items():
        with system_errors(f"{path} cannot be read"):
            read[name] = read_report(path.read_bytes(), str(path))
    report = together(read)
    write_file(out, page(report).encode("utf-8", "replace"), mode=0o600)
    typer.echo(report.headline)
    for line in report.details:
        typer.echo(line)
