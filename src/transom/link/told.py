"""What a run tells whoever watches it: a bar, a board, a test.

Threat model: none; it holds counts, names of weights and metrics, no content.
Does not protect: a loss tells something of the rows. Source: own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["ready", "step", "evaluated", "done"]


@dataclass(frozen=True)
class Told:
    """After `step` of `total` steps this was found: a step's loss, an evaluation's metrics. `trains` are the
    weights that a party which is ready will train."""

    kind: Kind
    step: int
    total: int
    found: Mapping[str, float] = field(default_factory=dict)
    trains: tuple[str, ...] = ()


Listener = Callable[[Told], None]
