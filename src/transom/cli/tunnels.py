"""`--tunnel`, `--epsilon` and `--clip`: what rows pass, in the place of a job's own tunnel.

Threat model: a strength that was meant for another tunnel; what is not said is the job's only where the kind
is. Does not protect: see `transom.link.tunnels`. Source: own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    from transom.link.tunnels import TunnelSettings

TunnelKind = Annotated[
    str | None,
    typer.Option("--tunnel", help="What this party's rows pass, in place of the job's: see docs/tunnel.md."),
]
Epsilon = Annotated[float | None, "Of a row in the whole run, at the job's delta; with --tunnel."]
Clip = Annotated[float | None, "Longest row or largest value, in place of the job's or 1; with --tunnel."]


def said(
    before: TunnelSettings, kind: str | None, epsilon: float | None, clip: float | None
) -> dict[str, Any] | None:
    """The settings that the options make of the job's, as they stand in a file; None where no kind is named.

    Raises MisconfiguredError for a strength without a kind.
    """
    from transom.config import to_plain

    if kind is None:
        if epsilon is not None or clip is not None:
            raise MisconfiguredError("--epsilon and --clip go with --tunnel, which says of what")
        return None
    kept = to_plain(before) if kind == before.kind else {"delta": before.delta, "spare": before.spare}
    ways = {} if epsilon is None else {"epsilon": epsilon, "sigma": None, "mu": None}
    return {**kept, "kind": kind, "clip": _clip(before, kind, clip), **ways}


def _clip(before: TunnelSettings, kind: str, clip: float | None) -> float | None:
    if kind == "none":
        return None
    return clip if clip is not None else before.clip or 1.0
