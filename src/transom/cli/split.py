"""`transom split`: tune a vendor's model on private text, and use what was tuned.

Threat model: that of `transom.split`. Does not protect: see there.
Source: `transom.split`.
"""

from __future__ import annotations

from transom.cli import split_serve
from transom.cli.app import App

app = App(no_args_is_help=True, help="Tune a vendor's model on private text.")
app.command()(split_serve.serve)


@app.callback()
def split() -> None:
    """Tune a vendor's model on private text."""
