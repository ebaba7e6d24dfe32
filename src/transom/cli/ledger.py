"""`transom ledger show`: what each account has spent.

Threat model: the ledger holds account names, times and amounts, never content; whoever may read the file
may see them. Does not protect: nothing is changed here, and nothing can be refunded.
Source: `transom.privacy.ledger`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from transom.errors import LedgerError
from transom.privacy.ledger import Ledger

app = typer.Typer(help="Look into the privacy ledger.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Look into the privacy ledger."""


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="The ledger file.")],
    account: Annotated[str | None, typer.Option(help="Also list this account's latest charges.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many charges to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on one line.")] = False,
) -> None:
    """Print every account's total and, for one account, its latest charges."""
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; check the path")
    with Ledger(path, cap_epsilon=math.inf) as ledger:
        totals = ledger.accounts()
        charges = ledger.history(account, limit) if account is not None else []
    if as_json:
        typer.echo(json.dumps({"accounts": totals, "charges": [asdict(charge) for charge in charges]}))
        return
    console = Console()
    table = Table("account", "epsilon spent")
    for name, spent in totals.items():
        table.add_row(name, f"{spent:g}")
    console.print(table)
    for charge in charges:
        when = datetime.fromtimestamp(charge.at_s, UTC).isoformat(timespec="seconds")
        console.print(f"{when}  {charge.epsilon:g}", highlight=False)
