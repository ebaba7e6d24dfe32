"""Attention, one set of secrets per group of query heads and their key-value head.

    k' = Q W_k R H^-1 Zb    q' = Q W_q R H Zb    v' = Q W_v U    o' = U^-1 W_o P

R turns each RoPE pair by its own angle and H scales it, both of which commute with the rotary embedding. Zb
permutes pairs of nearly equal frequency: the method's only deliberately inexact step. Key-value heads change
places together with their query heads, and query heads within their group. Biases get the same, without Q.
Where weights of a norm over each head (Qwen3) stand in between, only what is common to all heads and permutes
those weights commutes: turns by quarters for all heads, by halves per group, and Zb for all heads.

Threat model: the host knows the plain weights and sees the obfuscated ones, and all states.
Does not protect attention scores: the host's are the true ones, in another order of heads.
Source: Lin et al., arXiv 2603.01499, Algorithm 2; the transpose printed on K's permutation is a misprint, and
U is orthogonal + 0.3 Gaussian (a plain Gaussian is conditioned too badly for 16 bits and below).

Legend: d plain width, w obfuscated width, G key-value heads, A query heads, k head width, m = k / 2 pairs.
Hugging Face's layout pairs (i, i + m) and stores [out, in].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.families import FAMILIES
from transom.obfuscation.keys import Settings, Space
from transom.obfuscation.norms import reads, wide, writes
from transom.obfuscation.task import Config, Context, Made, Task, attention_label, linear_task
from transom.privacy.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

WORST_CONDITION = 4.0
Change = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class HeadKeys:
    """A layer's secrets: matrices [G, k, k] in the groups' plain order, and the plain head at each place."""

    query_Gkk: NDArray[np.float64]
    key_Gkk: NDArray[np.float64]
    group_order_G: NDArray[np.int64]
    head_order_A: NDArray[np.int64]
    norm_order_k: NDArray[np.int64]


def head_width(config: Config) -> int:
    """`head_dim`, or what its absence means."""
    explicit = config.get("head_dim")
    if explicit is None:
        explicit = FAMILIES[config["model_type"]].head_width
    return int(explicit or config["hidden_size"] // config["num_attention_heads"])


def groups(config: Config) -> tuple[int, int]:
    """Key-value heads, and query heads for each of them."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return kv_heads, heads // kv_heads


def head_keys(space: Space, config: Config, layer: int, *, head_norms: bool = False) -> HeadKeys:
    """The secrets of one layer's heads; `head_norms` restricts them to what a norm over each head allows."""
    label = attention_label(layer)
    (n_groups, per_group), m = groups(config), head_width(config) // 2
    order_Gm = pair_orders(space, config, label, 1 if head_norms else n_groups, m)
    angle_Gm, scale_Gm = _turns(space, label, n_groups, m, head_norms=head_norms)
    query_Gkk = pair_matrices(angle_Gm, scale_Gm, order_Gm)
    inner = space.stream(f"{label}/query order")
    group_order_G = space.stream(f"{label}/group order").permutation(n_groups)
    inner_GA = np.stack([inner.permutation(per_group) for _ in range(n_groups)])
    return HeadKeys(
        query_Gkk=query_Gkk,
        key_Gkk=pair_matrices(angle_Gm, 1 / scale_Gm, order_Gm),
        group_order_G=group_order_G,
        head_order_A=(group_order_G[:, None] * per_group + inner_GA[group_order_G]).reshape(-1),
        norm_order_k=np.abs(query_Gkk[0]).argmax(axis=0),
    )


def value_matrices(space: Space, config: Config, layer: int) -> NDArray[np.float64]:
    """U of each group of a layer, [G, k, k] in the groups' plain order."""
    return mild_matrices(space.stream(f"{attention_label(layer)}/U"), groups(config)[0], head_width(config))


def _turns(
    space: Space, label: str, n_groups: int, m: int, *, head_norms: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Angles and scales [G, m] of the pairs."""
    if not head_norms:
        scale_Gm = 4.0 ** (space.stream(f"{label}/H").uniform((n_groups, m)) - 0.5)
        return 2 * np.pi * space.stream(f"{label}/R").uniform((n_groups, m)), scale_Gm
    stream = space.stream(f"{label}/R")
    quarter_m = (stream.signs(m) + 1) / 2
    half_Gm = (stream.signs(n_groups * m).reshape(n_groups, m) + 1) / 2
    return np.pi * (quarter_m / 2 + half_Gm), np.ones((n_groups, m))


def pair_orders(space: Space, config: Config, label: str, n: int, m: int) -> NDArray[np.int64]:
    """Zb for each of n groups: the plain pair at each place, [n, m]; the identity when switched off."""
    settings = space.settings
    if not settings.block_permutation:
        return np.tile(np.arange(m), (n, 1))
    stream = space.stream(f"{label}/Zb")
    frequency_m = rope_theta(config) ** (-np.arange(m) / m)
    return np.stack([_windows(stream, settings, frequency_m) for _ in range(n)])


def rope_theta(config: Config) -> float:
    """The base of RoPE's frequencies, where either generation of configurations keeps it."""
    inner = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return float(config.get("rope_theta") or inner.get("rope_theta") or 10000.0)


def _windows(stream: Stream, settings: Settings, frequency_m: NDArray[np.float64]) -> NDArray[np.int64]:
    """Window after window of 1 to beta pairs, long ones likely where frequencies lie close, each shuffled."""
    order: list[int] = []
    while len(order) < len(frequency_m):
        start = len(order)
        reach = frequency_m[start : start + int(settings.beta)]
        weight = np.exp(-settings.gamma * (reach[0] - reach))
        drawn = np.searchsorted(np.cumsum(weight) / weight.sum(), stream.uniform(1)[0])
        window = min(int(drawn) + 1, len(reach))
        order.extend(start + stream.permutation(window))
    return np.array(order)


def pair_matrices(
    angle_Gm: NDArray[np.float64], scale_Gm: NDArray[np.float64], order_Gm: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[G, k, k], for rows x M: pair order[j] turned and scaled, put in place j; one order may serve all G."""
    n, m = angle_Gm.shape
    order_Gm = np.broadcast_to(order_Gm, (n, m))
    cos_Gm, sin_Gm = np.cos(angle_Gm) * scale_Gm, np.sin(angle_Gm) * scale_Gm
    matrices_Gkk = np.zeros((n, 2 * m, 2 * m))
    group_G1, place_1m = np.arange(n)[:, None], np.arange(m)[None]
    cos, sin = cos_Gm[group_G1, order_Gm], sin_Gm[group_G1, order_Gm]
    matrices_Gkk[group_G1, order_Gm, place_1m] = cos
    matrices_Gkk[group_G1, order_Gm + m, place_1m] = -sin
    matrices_Gkk[group_G1, order_Gm, place_1m + m] = sin
    matrices_Gkk[group_G1, order_Gm + m, place_1m + m] = cos
    return matrices_Gkk


def mild_matrices(stream: Stream, n: int, k: int) -> NDArray[np.float64]:
    """[n, k, k], each orthogonal + 0.3 Gaussian, drawn again while its condition number is above 4."""
    return np.stack([_mild(stream, k) for _ in range(n)])


def _mild(stream: Stream, k: int) -> NDArray[np.float64]:
    import torch

    while True:
        matrix_kk: NDArray[np.float64] = stream.orthogonal(k) + 0.3 * k**-0.5 * stream.normal((k, k))
        if torch.linalg.cond(torch.from_numpy(matrix_kk)) <= WORST_CONDITION:
            return matrix_kk


def mix(weight: Tensor, matrices_Gkk: NDArray[np.float64], order: NDArray[np.int64]) -> Tensor:
    """Rows [heads * k, ...] of a weight or bias: head order[j] at place j, mixed by its group's matrix."""
    import torch

    heads_per_group = len(order) // len(matrices_Gkk)
    columns = weight[..., None] if weight.ndim == 1 else weight
    heads = columns.view(len(order), -1, columns.shape[1])  # of a transposed weight too, without a copy
    mixed = torch.empty_like(heads, dtype=wide(weight[:0]).dtype, memory_format=torch.contiguous_format)
    for place, head in enumerate(order.tolist()):
        chosen = torch.from_numpy(matrices_Gkk[head // heads_per_group]).to(mixed)
        torch.mm(chosen.T, wide(heads[head]), out=mixed[place])
    return mixed.reshape(weight.shape)


def attention_tasks(config: Config, layer: int) -> tuple[Task, ...]:
    """The four projections of a layer's attention, and its norms over heads."""
    family = FAMILIES[config["model_type"]]
    into_bias = family.projection_biases or bool(config.get("attention_bias"))
    own = f"model.layers.{layer}.self_attn"
    before = f"model.layers.{layer}.input_layernorm.weight"
    tasks = [
        linear_task(f"{own}.{letter}_proj", transform, layer, before, bias=into_bias)
        for letter, transform in (("q", query), ("k", key), ("v", value))
    ]
    out = linear_task(f"{own}.o_proj", output, layer, bias=into_bias)
    tasks.append(replace(out, sources=out.outputs[:1]) if family.projection_biases else out)
    if family.head_norms:
        names = [f"{own}.{letter}_norm.weight" for letter in "qk"]
        tasks += [Task((name,), (name,), head_norm, layer) for name in names]
    return tuple(tasks)


def query(context: Context, *sources: Tensor) -> Made:
    """The queries' projection [A * k, w], and its bias."""
    keys = _keys(context)
    return reading(context, lambda rows: mix(rows, keys.query_Gkk, keys.head_order_A), *sources)


def key(context: Context, *sources: Tensor) -> Made:
    """The keys' projection [G * k, w], and its bias."""
    keys = _keys(context)
    return reading(context, lambda rows: mix(rows, keys.key_Gkk, keys.group_order_G), *sources)


def value(context: Context, *sources: Tensor) -> Made:
    """The values' projection [G * k, w], and its bias."""
    matrices_Gkk = value_matrices(context.space, context.config, context.task.layer)
    return reading(context, lambda rows: mix(rows, matrices_Gkk, _keys(context).group_order_G), *sources)


def output(context: Context, weight_dn: Tensor, *biases_d: Tensor) -> Made:
    """The projection back [w, A * k]; its bias, or zeros where only the obfuscated model has one."""
    import torch

    matrices_Gkk = torch.from_numpy(value_matrices(context.space, context.config, context.task.layer))
    undo_Gkk = torch.linalg.inv(matrices_Gkk).transpose(1, 2).numpy()
    order_A = _keys(context).head_order_A
    if len(context.task.outputs) > 1 and not biases_d:
        biases_d = (weight_dn.new_zeros(context.space.d),)
    return writing(context, lambda weight_nd: mix(weight_nd, undo_Gkk, order_A), weight_dn, *biases_d)


def head_norm(context: Context, weight_k: Tensor) -> Made:
    """The weight [k] of a norm over each head, in the heads' new order of dimensions."""
    import torch

    return (weight_k[torch.from_numpy(_keys(context).norm_order_k)],)


def reading(context: Context, change: Change, *sources: Tensor) -> Made:
    """A projection that reads the stream as [n, w], its rows and its bias changed first."""
    weight_nd, norm_d, *biases_n = sources
    inverse_wd = context.space.inverse(attention_label(context.task.layer), wide(weight_nd[:0]))
    made = reads(change(weight_nd), inverse_wd, norm_d=norm_d, dtype=weight_nd.dtype)
    return (made, *(change(bias_n).to(bias_n.dtype) for bias_n in biases_n))


def writing(context: Context, change: Change, weight_dn: Tensor, *biases_d: Tensor) -> Made:
    """A projection that writes to the stream as [w, n], its columns changed first; and its bias."""
    key_dw = context.space.key(attention_label(context.task.layer), wide(weight_dn[:0]))
    made = writes(change(weight_dn.T).T, key_dw, dtype=weight_dn.dtype)
    return (made, *((wide(bias_d) @ key_dw).to(bias_d.dtype) for bias_d in biases_d))


def _keys(context: Context) -> HeadKeys:
    head_norms = FAMILIES[context.config["model_type"]].head_norms
    return head_keys(context.space, context.config, context.task.layer, head_norms=head_norms)
