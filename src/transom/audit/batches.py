"""Rows of ids of unlike lengths, side by side: rows of about one length together, and padding behind.

Threat model: none of its own.
Source: own design.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def by_length(rows: Sequence[Any], size: int) -> Iterator[list[int]]:
    """The places of `size` rows at a time, the shortest first, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    return (order[start : start + size] for start in range(0, len(order), size))


def padded(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [B, T], 1 where they are real [B, T]); what stands behind a row is never attended to."""
    import torch

    longest = max(map(len, rows))
    ids_BT = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.long)
    return ids_BT, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
