"""The plot of a plan: predicted seconds of an epoch over batch sizes, a line for each number of workers.

Threat model: none; numbers alone. Does not protect anything. Source: own.
"""

from __future__ import annotations

import io

from transom.errors import extra
from transom.vertical.epoch import Given
from transom.vertical.job import Role
from transom.vertical.planner import Plan, curves

_WORDS = {"avfl": "batches under way"}


def plot(given: Given, plan: Plan, role: Role) -> str:
    """An SVG, alike each time, of what `curves` has for this party. Raises MissingExtraError."""
    with extra("plot", "matplotlib"):
        import matplotlib as mpl
        from matplotlib.figure import Figure

    what, chosen = _WORDS.get(plan.schedule, "workers"), plan.chosen
    with mpl.rc_context({"svg.hashsalt": "transom", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for count, line in curves(given, plan, role).items():
            spots = [(one.batch_rows, one.epoch_s) for one in line]
            axes.plot(*zip(*spots, strict=True), marker="o", markersize=3, label=f"{count} {what}")
        axes.plot(chosen.batch_rows, chosen.epoch_s, "k*", markersize=12, label="chosen")
        axes.set(yscale="log", xlabel="rows of a batch", ylabel="seconds of an epoch, predicted")
        axes.set_xscale("log", base=2)
        axes.set_title(f"{plan.schedule}, {role} party")
        axes.legend()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
