"""Linear layers whose weights lie as the processor multiplies them fastest, for models that only run.

Weights are put once into oneDNN's blocked layout: one token takes two thirds of the time, eight together or a
prompt less than half. Values stay the same; a product may differ in the last bits, as sums are taken in
another order.
Threat model: none. Does not protect anything. There are no gradients, and no weight to change.
Source: oneDNN's developer guide, "Understanding memory formats"; torch's own compiler packs so.

Shapes: D in, O out.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MULTIPLY: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # None where torch was built without
_ROWS = 8  # of a product that the layout is chosen for; larger ones lose nothing by it


class PackedLinear(nn.Module):
    """In place of a linear layer of a model on the CPU, of float32 or bfloat16."""

    def __init__(self, linear: nn.Linear, *, plain: bool = False) -> None:
        """`plain`: the weight is kept as it was, too."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._plain = (linear.weight,) if plain else ()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), _ROWS)

    @property
    def weight(self) -> Tensor:
        """The plain weight [O, D], a copy where it was not kept."""
        return self._plain[0] if self._plain else self._packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer's."""
        made: Tensor = _MULTIPLY(x, self._packed, self.bias, "none", [], "")
        return made

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)


def pack(model: PreTrainedModel) -> None:
    """Replace the linear layers of a model in place, where processor and type allow it, and compute its norms
    by one operation each.

    Plain weights are let go, but that of the head, which an embedding may share and of which rows are read.
    """
    if _MULTIPLY is None or model.device.type != "cpu":
        return
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and _fits(module):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, PackedLinear(module, plain=module is head))
        elif type(module).__name__.endswith("RMSNorm"):
            _in_one(module)


def _in_one(norm: Any) -> None:
    """Compute a norm by one operation where that gives the same."""
    weight, epsilon = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
    if weight is None or epsilon is None:
        return
    quick = partial(functional.rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
    x = torch.randn(4, *weight.shape, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with torch.no_grad():
        if torch.allclose(quick(x).float(), norm(x).float(), rtol=torch.finfo(weight.dtype).eps * 8):
            norm.forward = quick


def _fits(linear: nn.Linear) -> bool:
    if linear.weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return linear.weight.dtype == torch.float32
