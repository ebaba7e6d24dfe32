"""Multi-head latent attention (DeepSeek-V2, -V3): low-rank queries and keys-values, one shared rotary key.

    q_a' = Q W_qa O_q            q_b' = O_q^T diag(w_q) W_qb (M_i | R H Zb)   for each head i
    kv_a' = Q W_kva (O_k | R H^-1 Zb)   kv_b' = O_k^T diag(w_k) W_kvb (M_i^-T | U_i)   o' = U_i^-1 W_o P

The inner norms see the latent vectors: only an orthogonal O leaves their lengths alone, so their weights are
folded into what follows and become ones, an exact step. M and U are invertible, each head its own. The rotary
key is one for all heads, so R (one angle a pair), H and Zb are too. Heads change places. Models without a
latent query have q' = Q W_q (M_i | R H Zb).

Threat model: the host knows the plain weights and sees the obfuscated ones, and all states.
Does not protect attention scores (the host's are the true ones, in another order of heads), the length of a
latent vector, or products such as q_b' kv_b'^T over a head, in which M cancels.
Source: Lin et al., arXiv 2603.01499, Algorithm 2, which only says that the low-rank factors get invertible
transforms; that the inner norms ask for orthogonal ones is ours.

Legend: d plain width, w obfuscated width, A heads, n head width without position, p rotary width, v value
width, r rank of a latent vector, o a projection's outputs. DeepSeek pairs rotary dimensions (2i, 2i + 1).
Hugging Face stores [out, in].
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transom.obfuscation.attention import mild_matrices, mix, pair_matrices, pair_orders, reading, writing
from transom.obfuscation.norms import reads, wide
from transom.obfuscation.task import Config, Context, Made, Task, Transform, attention_label, linear_task
from transom.privacy.stream import Stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rotary_keys(context: Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """R H Zb for queries, R H^-1 Zb for the key [p, p], for rows x M, in the checkpoint's layout of pairs."""
    config, m = context.config, context.config["qk_rope_head_dim"] // 2
    angle_1m = 2 * np.pi * _stream(context, "R").uniform((1, m))
    scale_1m = 4.0 ** (_stream(context, "H").uniform((1, m)) - 0.5)
    order_1m = pair_orders(context.space, config, attention_label(context.task.layer), 1, m)
    place_p = np.arange(2 * m)
    if config["model_type"] == "deepseek_v2" or config.get("rope_interleave", True):
        place_p = place_p.reshape(2, m).T.reshape(-1)
    query_pp, key_pp = (
        pair_matrices(angle_1m, scale, order_1m)[0][place_p][:, place_p] for scale in (scale_1m, 1 / scale_1m)
    )
    return query_pp, key_pp


def head_order(context: Context) -> NDArray[np.int64]:
    """The plain head at each place [A]."""
    return _stream(context, "head order").permutation(_heads(context))


def nope_keys(context: Context) -> NDArray[np.float64]:
    """M [A, n, n], heads in the plain order."""
    return mild_matrices(_stream(context, "M"), _heads(context), context.config["qk_nope_head_dim"])


def value_keys(context: Context) -> NDArray[np.float64]:
    """U [A, v, v], heads in the plain order."""
    return mild_matrices(_stream(context, "U"), _heads(context), context.config["v_head_dim"])


def latent_tasks(config: Config, layer: int) -> tuple[Task, ...]:
    """The projections and inner norms of a layer's latent attention."""
    own, before = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.input_layernorm.weight"
    with_bias = bool(config.get("attention_bias"))

    def task(name: str, transform: Transform, *norm: str, bias: bool = False) -> Task:
        return linear_task(f"{own}.{name}", transform, layer, *norm, bias=bias)

    inner = {part: f"{own}.{part}_a_layernorm.weight" for part in ("q", "kv")}
    tasks = [
        task("kv_a_proj_with_mqa", latent, before, bias=with_bias),
        task("kv_a_layernorm", inner_norm),
        task("kv_b_proj", expand, inner["kv"]),
        task("o_proj", output, bias=with_bias),
    ]
    if config.get("q_lora_rank") is None:
        return (task("q_proj", query, before), *tasks)
    tasks += [
        task("q_a_proj", query_latent, before, bias=with_bias),
        task("q_a_layernorm", inner_norm),
        task("q_b_proj", query_expand, inner["q"]),
    ]
    return tuple(tasks)


def query(context: Context, *sources: Tensor) -> Made:
    """The queries straight from the stream [A * (n + p), w], in models without a latent query."""
    return reading(context, partial(_mixed_queries, context), *sources)


def query_latent(context: Context, *sources: Tensor) -> Made:
    """The latent query [r, w], and its bias."""
    return _into(context, _turn(context, "query", sources[0].shape[0]), *sources)


def latent(context: Context, *sources: Tensor) -> Made:
    """The latent key-value and the rotary key [r + p, w], and their bias."""
    turn_rr, (_, key_pp) = _turn(context, "key", context.config["kv_lora_rank"]), rotary_keys(context)
    return _into(context, _diagonal(turn_rr[None], key_pp[None])[0], *sources)


def query_expand(context: Context, weight_or: Tensor, norm_r: Tensor) -> Made:
    """The queries from their latent vector [A * (n + p), r]."""
    return _out_of(context, "query", _mixed_queries(context, weight_or), norm_r, weight_or.dtype)


def expand(context: Context, weight_or: Tensor, norm_r: Tensor) -> Made:
    """Keys without position and values from their latent vector [A * (n + v), r]."""
    both = _diagonal(_undone(nope_keys(context)), value_keys(context))
    mixed_or = mix(weight_or, both, head_order(context))
    return _out_of(context, "key", mixed_or, norm_r, weight_or.dtype)


def output(context: Context, *sources: Tensor) -> Made:
    """The projection back [w, A * v], and its bias."""
    undo_Avv = _undone(value_keys(context))
    return writing(context, lambda rows: mix(rows, undo_Avv, head_order(context)), *sources)


def inner_norm(context: Context, weight_r: Tensor) -> Made:
    """The weight [r] of a norm over a latent vector: ones."""
    del context
    return (weight_r.new_ones(weight_r.shape),)


def _stream(context: Context, use: str) -> Stream:
    return context.space.stream(f"{attention_label(context.task.layer)}/{use}")


def _heads(context: Context) -> int:
    return int(context.config["num_attention_heads"])


def _undone(matrices_Akk: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transposed inverses."""
    return np.asarray(np.linalg.inv(matrices_Akk).transpose(0, 2, 1), np.float64)


def _turn(context: Context, part: str, rank: int) -> NDArray[np.float64]:
    """The orthogonal matrix of a latent vector."""
    return _stream(context, f"{part} latent").orthogonal(rank)


def _diagonal(first_Aaa: NDArray[np.float64], second_Abb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Block diagonal matrices [A, a + b, a + b]."""
    a = first_Aaa.shape[1]
    both = np.zeros((len(first_Aaa), a + second_Abb.shape[1], a + second_Abb.shape[1]))
    both[:, :a, :a], both[:, a:, a:] = first_Aaa, second_Abb
    return both


def _mixed_queries(context: Context, weight: Tensor) -> Tensor:
    query_pp, _ = rotary_keys(context)
    rotary_App = np.broadcast_to(query_pp, (_heads(context), *query_pp.shape))
    return mix(weight, _diagonal(nope_keys(context), rotary_App), head_order(context))


def _into(context: Context, matrix_rr: NDArray[np.float64], *sources: Tensor) -> Made:
    import torch

    matrix = torch.from_numpy(matrix_rr.T)
    return reading(context, lambda rows: matrix.to(wide(rows)) @ wide(rows), *sources)


def _out_of(context: Context, part: str, mixed_or: Tensor, norm_r: Tensor, dtype: torch.dtype) -> Made:
    """A layer that reads a latent vector, whose norm's weight it takes in."""
    import torch

    turn_rr = torch.from_numpy(_turn(context, part, mixed_or.shape[1])).to(mixed_or)
    return (reads(mixed_or, turn_rr.T, norm_d=norm_r, dtype=dtype),)
