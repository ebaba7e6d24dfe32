"""A promise is a value: what a privatising operation guarantees, to whom, under which assumptions.

Threat model: none of its own; it states that of the operation which returns it.
Does not protect anything: a `Guarantee` is a claim, checked by the tests that `GUARANTEES.md` names for it.
Source: Dwork and Roth 2014 (pure DP); Chatzikokolakis et al. 2013 (metric DP).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["pure-dp", "metric-dp", "empirical"]


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What is promised.

    `unit` says what epsilon counts (one word, one prompt); `adjacency` which two inputs count as neighbours;
    `discloses` what is public by design. `empirical` ones carry no epsilon: only measurements back them.
    """

    kind: Kind
    unit: str
    adjacency: str
    epsilon: float | None
    delta: float = 0.0
    assumptions: tuple[str, ...] = ()
    discloses: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if (self.kind == "empirical") != (self.epsilon is None):
            raise ValueError("an empirical guarantee has no epsilon, every other kind has one")
        if self.epsilon is not None and (math.isnan(self.epsilon) or self.epsilon < 0):
            raise ValueError(f"epsilon must be non-negative, got {self.epsilon}")
        if not 0.0 <= self.delta < 1.0:
            raise ValueError(f"delta must lie in [0, 1), got {self.delta}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; an infinite epsilon becomes the string "inf"."""
        record = asdict(self)
        if self.epsilon is not None and math.isinf(self.epsilon):
            record["epsilon"] = "inf"
        return record
