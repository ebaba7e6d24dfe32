"""A gated feed-forward: the inner neurons permuted (Zf) and the linear branch rescaled (Hf).

    gate' = Q W_gate Zf      up' = Q W_up Hf Zf      down' = Zf^-1 Hf^-1 W_down P

Threat model: the host knows the plain weights and sees the obfuscated ones.
Does not protect a neuron's identity: each survives as a column, and its distribution over the vocabulary
betrays which one it is (the column-first attack).
Source: Lin et al., arXiv 2603.01499, feed-forward. Hf carries random signs too, which cost nothing.

Legend: d plain width, w obfuscated width, n inner neurons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transom.obfuscation.keys import Space
from transom.obfuscation.norms import reads, wide, writes
from transom.obfuscation.task import Config, Context, Made, Task, feedforward_label, linear_task

if TYPE_CHECKING:
    from torch import Tensor

Label = Callable[[Context], str]


def inner_keys(space: Space, label: str, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Zf as the plain neuron at each new place, and Hf in the new order: scales in [0.5, 2] with signs."""
    import torch

    order_n = torch.from_numpy(space.stream(f"{label}/Zf").permutation(n)).to(like.device)
    stream = space.stream(f"{label}/Hf")
    scale_n = torch.from_numpy(4.0 ** (stream.uniform(n) - 0.5) * stream.signs(n))
    return order_n, scale_n.to(like.device)


def feedforward_tasks(config: Config, layer: int) -> tuple[Task, ...]:
    """The three projections of a layer's gated feed-forward."""
    own, bias = f"model.layers.{layer}.mlp", bool(config.get("mlp_bias"))
    before = f"model.layers.{layer}.post_attention_layernorm.weight"
    return (
        linear_task(f"{own}.gate_proj", inwards, layer, before, bias=bias),
        linear_task(f"{own}.up_proj", up, layer, before, bias=bias),
        linear_task(f"{own}.down_proj", outwards, layer, bias=bias),
    )


def own_label(context: Context) -> str:
    """The label of a layer's inner keys."""
    return feedforward_label(context.task.layer)


def inwards(context: Context, *sources: Tensor, label: Label = own_label, scaled: bool = False) -> Made:
    """What reads the stream [n, w], its neurons under the keys of `label`; and its bias if it has one."""
    weight_nd, norm_d, *biases_n = sources
    like = wide(weight_nd[:0])
    order_n, scale_n = inner_keys(context.space, label(context), weight_nd.shape[0], like)
    if not scaled:
        scale_n = scale_n.new_ones(scale_n.shape)
    inverse_wd = context.space.inverse(own_label(context), like)
    made = reads(weight_nd, inverse_wd, norm_d=norm_d, order_n=order_n, scale_n=scale_n)
    biases = ((wide(bias_n)[order_n] * scale_n.to(like)).to(bias_n.dtype) for bias_n in biases_n)
    return (made, *biases)


def outwards(context: Context, weight_dn: Tensor, *biases_d: Tensor, label: Label = own_label) -> Made:
    """What writes to the stream [w, n], its neurons under the keys of `label`; and its bias if it has one."""
    like = wide(weight_dn[:0])
    order_n, scale_n = inner_keys(context.space, label(context), weight_dn.shape[1], like)
    key_dw = context.space.key(own_label(context), like)
    made = writes(weight_dn, key_dw, order_n=order_n, scale_n=1 / scale_n)
    return (made, *((wide(bias_d) @ key_dw).to(bias_d.dtype) for bias_d in biases_d))


def up(context: Context, *sources: Tensor) -> Made:
    """The linear branch [n, w], and its bias if it has one."""
    return inwards(context, *sources, scaled=True)
