"""Norms and the two kinds of linear layer: those that read the residual stream, and those that write to it.

A norm's weight vector cannot stay where it is (it would stand between Q and P), so it is folded into the
linear layers that follow; what stays is one number, kappa = E[|xP| / |x|] sqrt(d / (d + 2h)). To take that
ratio for constant is an inexact step: 1.1 % at d = 576, 4 % at d = 64.

Threat model: as the room's. Does not protect the ratio of norms, which the host sees for each position.
Source: Lin et al., arXiv 2603.01499, section on RMSNorm; the printed kappa lacks the square root.

Legend: d plain width, w obfuscated width, n the other dimension of a weight. Hugging Face stores [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from transom.errors import MisconfiguredError
from transom.obfuscation.task import Context, Made, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Rows (or columns) multiplied at once: large enough for full speed, small enough that the float32 copies of a
# piece do not count beside the tensor itself.
PIECE = 256


def wide(tensor: Tensor, *, own: bool = False) -> Tensor:
    """The tensor in the dtype products run in: float64 stays, everything else becomes float32. In memory of
    its `own` it can be scaled in place."""
    import torch

    return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32, copy=own)


def reads(
    weight_nd: Tensor,
    inverse_wd: Tensor,
    *,
    norm_d: Tensor | None = None,
    order_n: Tensor | None = None,
    scale_n: Tensor | None = None,
    noise: Iterator[Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A layer [n, d] that reads the stream, as [n, w]: rows reordered (row k is the plain row order_n[k]),
    the next noise [PIECE, d] added, scaled (in the new order), the norm's weight folded in, then Q."""
    n = weight_nd.shape[0]
    output_nw = weight_nd.new_empty((n, inverse_wd.shape[0]), dtype=dtype or weight_nd.dtype)
    for start in range(0, n, PIECE):
        rows = slice(start, start + PIECE)
        piece = wide(weight_nd[rows if order_n is None else order_n[rows]], own=True)
        if noise is not None:
            piece += next(noise)
        if scale_n is not None:
            piece *= scale_n[rows, None].to(piece)
        if norm_d is not None:
            piece *= norm_d.to(piece)
        output_nw[rows] = piece @ inverse_wd.T
    return output_nw


def writes(
    weight_dn: Tensor,
    key_dw: Tensor,
    *,
    order_n: Tensor | None = None,
    scale_n: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A layer [d, n] that writes to the stream, as [w, n]: columns reordered and scaled, then P."""
    n = weight_dn.shape[1]
    output_wn = weight_dn.new_empty((key_dw.shape[1], n), dtype=dtype or weight_dn.dtype)
    for start in range(0, n, PIECE):
        columns = slice(start, start + PIECE)
        piece = wide(weight_dn[:, columns if order_n is None else order_n[columns]], own=True)
        if scale_n is not None:
            piece *= scale_n[columns].to(piece)
        output_wn[:, columns] = key_dw.T @ piece
    return output_wn


def not_finite(tensor: Tensor) -> tuple[int, ...] | None:
    """Where the first infinite or missing number is, if there is one; without a copy of the tensor."""
    import torch

    for start in range(0, tensor.shape[0] if tensor.ndim else 0, PIECE):
        piece = tensor[start : start + PIECE]
        if not torch.isfinite(piece).all():
            first, *others = (~torch.isfinite(piece)).nonzero()[0].tolist()
            return (start + first, *others)
    return None


def norm_tasks(layer: int) -> tuple[Task, ...]:
    """The two norms of a layer."""
    names = [f"model.layers.{layer}.{name}_layernorm.weight" for name in ("input", "post_attention")]
    return tuple(Task((name,), (name,), norm, layer) for name in names)


def norm(context: Context, weight_d: Tensor) -> Made:
    """The norm's weight [w]: kappa everywhere. Raises MisconfiguredError without a usable kappa."""
    (name,) = context.task.outputs
    kappa = context.kappas.get(name, 0.0)
    if not 0 < kappa < float("inf"):
        raise MisconfiguredError(f"{name} has no positive kappa; calibrate on this checkpoint")
    return (weight_d.new_full((context.space.width,), kappa),)
