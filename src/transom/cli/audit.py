"""`transom audit ...`: one command for each kind of target; what a command is, its own module says.

Threat model: run by the one who is to be protected, on its own machine, with the adversary's part played by
the attacks. Does not prove privacy: only that these attacks, within these budgets, found no more.
Source: own design.
"""

from __future__ import annotations

from transom.cli import (
    audit_adapter,
    audit_checkpoint,
    audit_embeddings,
    audit_epsilon,
    audit_plot,
    audit_split,
    audit_text,
    audit_traffic,
    audit_tunnel,
    audit_vertical,
    audit_words,
)
from transom.cli.app import App

app = App(no_args_is_help=True, help="Attack what a host would see, and report how much is recovered.")
app.command()(audit_text.text)
app.command()(audit_words.words)
app.command()(audit_embeddings.embeddings)
app.command()(audit_checkpoint.checkpoint)
app.command()(audit_traffic.traffic)
app.command()(audit_adapter.adapter)
app.command()(audit_epsilon.epsilon)
app.command()(audit_split.split)
app.command()(audit_tunnel.tunnel)
app.command()(audit_vertical.vertical)
app.command()(audit_plot.plot)
