"""What a run tells whoever watches it: a bar, a board, a test.

Threat model: none; it holds counts and metrics, no content. Does not protect: a loss tells something of the
rows. Source: own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Told:
    """`step` steps are done, and this was found: a step's loss, an evaluation's metrics."""

    kind: Literal["step", "evaluated", "done"]
    step: int
    found: Mapping[str, float] = field(default_factory=dict)


Listener = Callable[[Told], None]
