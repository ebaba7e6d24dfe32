"""What a GGUF says of multi-head latent attention (DeepSeek-V2, -V3), and the form of its tensors there.

llama.cpp runs it as attention with one key-value head of the latent width, so keys and values that are made
from the latent vector are stored apart, the keys transposed.
Threat model and limits: as `gguf_writer`. Source: llama.cpp's conversion of DeepSeek.

Shapes: A heads, n head width without position, r rank of the latent vector, v value width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transom.checkpoint.families import FAMILIES


def describe(gguf: Any, writer: Any, config: Mapping[str, Any]) -> None:
    """The settings that other models lack, or have otherwise."""
    rank, rotary = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    kind = gguf.ExpertGatingFuncType
    writer.add_head_count_kv(1)
    writer.add_key_length(rank + rotary)
    writer.add_value_length(rank)
    writer.add_key_length_mla(int(config["qk_nope_head_dim"]) + rotary)
    writer.add_value_length_mla(int(config["v_head_dim"]))
    writer.add_rope_dimension_count(rotary)
    if config["q_lora_rank"] is not None:
        writer.add_q_lora_rank(int(config["q_lora_rank"]))
    writer.add_kv_lora_rank(rank)
    writer.add_leading_dense_block_count(int(config["first_k_dense_replace"]))
    writer.add_expert_shared_count(int(config["n_shared_experts"]))
    writer.add_expert_weights_scale(float(config["routed_scaling_factor"]))
    experts = FAMILIES[config["model_type"]].experts
    third = experts is not None and experts.correction
    writer.add_expert_weights_norm(bool(config["norm_topk_prob"]))
    writer.add_expert_gating_func(kind.SIGMOID if third else kind.SOFTMAX)
    if third and config["n_group"] > 1:
        writer.add_expert_group_count(int(config["n_group"]))
        writer.add_expert_group_used_count(int(config["topk_group"]))


def halves(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The two tensors in place of `attn_kv_b`, with their shapes."""
    heads, rank = int(config["num_attention_heads"]), int(config["kv_lora_rank"])
    return {
        "attn_k_b": (heads, rank, int(config["qk_nope_head_dim"])),
        "attn_v_b": (heads, int(config["v_head_dim"]), rank),
    }


def half_of(weight: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The keys [A, r, n] or the values [A, v, r] of a weight [A (n + v), r]."""
    by_head = weight.reshape(shape[0], -1, weight.shape[-1])
    if ".attn_k_b." in name:
        return by_head[:, : shape[2]].swapaxes(1, 2)
    return by_head[:, -shape[1] :]
