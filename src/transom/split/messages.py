"""What the parties of a split tuning send each other: states without their padding, and what goes with them.

Every message has the same tensors, so that their names, types and widths are checked before they are read.
To the vendor: `rows` [N, D] states or gradients of real tokens, `lengths` [B], `labels` [B] of classes or
[N] of tokens, `counts` [2] the targets of the whole batch and its micro-batches. To the customer: `rows`
[N, D] top states or gradients, `tallies` [K, 3], `scores` [B, C]. What is not said is empty.
Threat model: a partner that sends other numbers of rows than it was asked for, or than it says.
Does not protect: values that are finite and wrong.
Source: own. Shapes: B batch, T tokens, N real tokens of a batch, D model width, C classes, K tallies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from transom.checkpoint.finite import is_finite
from transom.errors import LinkRefusedError
from transom.link.codec import Limits, Wire
from transom.split.job import Task
from transom.split.metrics import Tally, text_labels

Tensors = Mapping[str, Tensor]
TRAIN: Final = "train"
GRADIENT: Final = "gradient"
EVALUATE: Final = "evaluate"
PREDICT: Final = "predict"
BEGIN: Final = "begin"
END: Final = "end"
_NO_ROWS = torch.zeros(0, 0)
_NO_NUMBERS = torch.zeros(0, dtype=torch.int64)


def vendor_limits(width: int, wire: Wire, max_bytes: int) -> Limits:
    """What the vendor takes."""
    shapes = {"rows": (None, width), "lengths": (None,), "labels": (None,), "counts": (2,)}
    integers = dict.fromkeys(("lengths", "labels", "counts"), torch.int64)
    return Limits(max_bytes=max_bytes, tensors=shapes, integers=integers, wire=wire)


def customer_limits(width: int, wire: Wire, max_bytes: int) -> Limits:
    """What the customer takes."""
    shapes = {"rows": (None, width), "tallies": (None, 3), "scores": (None, None)}
    return Limits(max_bytes=max_bytes, tensors=shapes, integers={"tallies": torch.int64}, wire=wire)


def request(
    rows_ND: Tensor,
    lengths_B: Tensor = _NO_NUMBERS,
    labels: Tensor = _NO_NUMBERS,
    counts: Sequence[int] = (0, 0),
) -> Tensors:
    """A message to the vendor."""
    return {"rows": rows_ND, "lengths": lengths_B, "labels": labels, "counts": torch.tensor(counts)}


def reply(
    width: int,
    rows_ND: Tensor | None = None,
    tallies: Sequence[Tally] = (),
    scores_BC: Tensor | None = None,
) -> Tensors:
    """A message to the customer."""
    return {
        "rows": torch.zeros(0, width) if rows_ND is None else rows_ND,
        "tallies": torch.tensor([_plain(tally) for tally in tallies], dtype=torch.int64).reshape(-1, 3),
        "scores": _NO_ROWS if scores_BC is None else scores_BC,
    }


def tallies(message: Tensors, count: int) -> list[Tally]:
    """The tallies of a message. Raises LinkRefusedError unless there are so many and each is possible."""
    found = message["tallies"]
    sums = found[:, 0].contiguous().view(torch.float64)
    if len(found) != count or not is_finite(sums) or bool((found[:, 1:] < 0).any()):
        raise LinkRefusedError(
            f"the vendor's reply has {len(found)} tallies, or impossible ones; want {count}"
        )
    return [Tally(float(sums[i]), int(found[i, 1]), int(found[i, 2])) for i in range(count)]


def require_shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """The tensor. Raises LinkRefusedError unless it has the shape."""
    if tuple(tensor.shape) != shape:
        raise LinkRefusedError(
            f"{what}: the partner sent {tuple(tensor.shape)}, and {shape} is what fits; both parties need "
            "the same version"
        )
    return tensor


def packed(padded: Tensor, mask_BT: Tensor) -> Tensor:
    """What stands at real tokens [N, ...], of [B, T, ...]."""
    return padded[mask_BT != 0]


def unpacked(real: Tensor, mask_BT: Tensor) -> Tensor:
    """The reverse of `packed`, with zeros at padding."""
    padded = torch.zeros((*mask_BT.shape, *real.shape[1:]), dtype=real.dtype, device=mask_BT.device)
    padded[mask_BT != 0] = real.to(mask_BT.device)
    return padded


@dataclass(frozen=True)
class Asked:
    """A batch as the vendor got it: states [B, T, D], their mask, labels as `parts.Head` wants them."""

    hidden_BTD: Tensor
    mask_BT: Tensor
    labels: Tensor
    targets: int
    parts: int


@dataclass(frozen=True)
class Bounds:
    """The most rows of a batch, tokens of a row, micro-batches of a batch."""

    rows: int
    tokens: int
    parts: int


def asked(message: Tensors, bounds: Bounds, task: Task, device: str) -> Asked:
    """A batch out of a message. Raises LinkRefusedError."""
    lengths_B, rows_ND = message["lengths"], message["rows"]
    targets, parts = (int(count) for count in message["counts"])
    longest = int(lengths_B.max()) if len(lengths_B) else 0
    if not (
        0 < len(lengths_B) <= bounds.rows
        and int(lengths_B.min()) > 0
        and longest <= bounds.tokens
        and int(lengths_B.sum()) == len(rows_ND)
        and 0 < parts <= bounds.parts
        and targets >= 0
    ):
        raise LinkRefusedError(
            f"a batch of {len(lengths_B)} rows with {len(rows_ND)} states and {parts} parts cannot be; at "
            f"most {bounds.rows} rows of 1 to {bounds.tokens} tokens in {bounds.parts} parts fit"
        )
    mask_BT = (torch.arange(longest)[None] < lengths_B[:, None]).long().to(device)
    labels = message["labels"].to(device)
    if len(labels) not in (0, len(rows_ND) if task == "causal" else len(lengths_B)):
        raise LinkRefusedError(
            f"{len(labels)} labels came for {len(lengths_B)} rows of {len(rows_ND)} tokens"
        )
    if task == "causal" and len(labels):
        labels = text_labels(unpacked(labels, mask_BT), mask_BT)
    return Asked(unpacked(rows_ND, mask_BT), mask_BT, labels, targets, parts)


def _plain(tally: Tally) -> tuple[int, int, int]:
    """The sum's bits, so that no wire type rounds it."""
    bits = torch.tensor([tally.loss_sum], dtype=torch.float64).view(torch.int64)
    return int(bits), tally.right, tally.count
