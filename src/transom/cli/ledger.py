"""`transom ledger show`: what each account has spent.

Threat model: the ledger holds account names, times and amounts, never content; whoever may read the file
may see them, and the kinds of noise. Does not protect: nothing is changed here, and nothing can be refunded.
Source: `transom.privacy.ledger`.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from transom.cli.app import App
from transom.cli.options import Json, default_ledger
from transom.config import Setting
from transom.errors import LedgerError
from transom.privacy.ledger import Charge, Ledger

app = App(help="Look into the privacy ledger.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Look into the privacy ledger."""


@app.command()
def show(
    path: Annotated[Path | None, typer.Argument(help="The ledger file; by default the user's.")] = None,
    account: Annotated[str | None, "Also list this account's latest charges."] = None,
    limit: Annotated[int, Setting("How many charges to list.", least=1)] = 20,
    delta: Annotated[float, "Price noisy releases at this delta."] = 0.0,
    as_json: Json = False,
) -> None:
    """Print every account's total and, for one account, its latest charges."""
    path = path or default_ledger()
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}; check the path")
    with Ledger(path, cap_epsilon=math.inf, delta=delta) as ledger:
        totals = ledger.accounts()
        charges = ledger.history(account, limit) if account is not None else []
    if as_json:
        typer.echo(json.dumps({"accounts": totals, "charges": list(map(_record, charges))}))
        return
    console = Console()
    table = Table("account", "epsilon spent")
    for name, spent in totals.items():
        table.add_row(name, f"{spent:g}")
    console.print(table)
    for charge in charges:
        when = datetime.fromtimestamp(charge.at_s, UTC).isoformat(timespec="seconds")
        console.print(f"{when}  {_told(charge)}", highlight=False)


def _record(charge: Charge) -> dict[str, Any]:
    record = {"at_s": charge.at_s, "account": charge.account, "epsilon": charge.epsilon}
    return record | ({"events": [event.to_dict() for event in charge.events]} if charge.events else {})


def _told(charge: Charge) -> str:
    """The pure epsilon, and each kind of noise."""
    parts = [] if charge.epsilon is None else [f"{charge.epsilon:g}"]
    for event in charge.events:
        described = ", ".join(f"{name} {value:g}" for name, value in event.parameters().items())
        parts.append(f"{event.count} x {event.name} ({described})")
    return " + ".join(parts)
