"""What the parties of a vertical training send each other.

Every message has the same tensors, so that names, types and widths are checked before they are read: `rows`
[B, W], embeddings to the label party and their gradients back, and `counts`, of whole numbers: which rows are
asked for (PREDICT), or what is said beside (SAID).
Threat model: a partner that sends other numbers of rows than it was asked for, or than a batch has.
Does not protect: values that are finite and wrong.
Source: own. Shapes: B rows of a batch, W width of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from transom.errors import LinkRefusedError
from transom.link.codec import Limits, Wire
from transom.link.talk import Tensors

TRAIN: Final = "train"
DROP: Final = "drop"
EVALUATE: Final = "evaluate"
PREDICT: Final = "predict"
END: Final = "end"
GO, DROPPED, OVER = 0, 1, 2  # said: go on; the embedding was dropped, send it again; there is no more to gain


def limits(width: int, wire: Wire, max_bytes: int) -> Limits:
    """What either party takes."""
    shapes = {"rows": (None, width), "counts": (None,)}
    return Limits(max_bytes=max_bytes, tensors=shapes, integers={"counts": torch.int64}, wire=wire)


def message(width: int, rows_BW: Tensor | None = None, counts: Iterable[int] = ()) -> Tensors:
    """A message's tensors."""
    numbers = torch.tensor(list(counts), dtype=torch.int64)
    return {"rows": torch.zeros(0, width) if rows_BW is None else rows_BW, "counts": numbers}


def rows_of(tensors: Tensors, count: int, what: str) -> Tensor:
    """The rows of a message. Raises LinkRefusedError unless they are so many."""
    if len(tensors["rows"]) != count:
        raise LinkRefusedError(
            f"{what}: the partner sent {len(tensors['rows'])} rows, and the batch has {count}; both parties "
            "need the same version and the same rows"
        )
    return tensors["rows"]


def said(tensors: Tensors) -> int:
    """What a reply says. Raises LinkRefusedError for what none says."""
    found = [int(count) for count in tensors["counts"]]
    if len(found) != 1 or found[0] not in (GO, DROPPED, OVER):
        raise LinkRefusedError("a reply of the partner says nothing that is known; it is of another version")
    return found[0]
