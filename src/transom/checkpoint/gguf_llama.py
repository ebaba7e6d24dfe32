"""Turn a GGUF of the Llama architecture into configuration and float weights for transformers.

The general reader in transformers does this too, but takes several times as long, mostly over names; it stays
in use for the other architectures.
Threat model and limits: as `gguf`. Source: the tensor names of llama.cpp, which stores query and key rows in
the order of its rotary embedding (pairs interleaved) where transformers keeps the halves apart.

Shapes: H heads, K head width, D model width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from transom.checkpoint.gguf import GgufHead, GgufTensor, read_gguf_head

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def is_plain_llama(head: GgufHead) -> bool:
    """Whether every tensor has a place in transformers' Llama, and positions are not rescaled."""
    if head.metadata.get("general.architecture") != "llama" or "llama.rope.scaling.type" in head.metadata:
        return False
    return all(_name(tensor.name) for tensor in head.tensors)


def read_llama(path: Path, transformers: Any, torch: Any) -> tuple[Any, dict[str, Any]]:
    """A LlamaConfig, and float32 weights named as in LlamaForCausalLM. The file must have been checked."""
    head = read_gguf_head(path)
    config = transformers.LlamaConfig(**_settings(head))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    data = np.memmap(path, mode="r")
    weights: dict[str, Any] = {}
    for tensor in head.tensors:
        values = _dequantized(data, tensor)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _halves_apart(values, heads[part])
        weights[_name(tensor.name) or tensor.name] = torch.from_numpy(
            np.ascontiguousarray(values, dtype=np.float32)
        )
    if config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return config, weights


def _settings(head: GgufHead) -> dict[str, Any]:
    data, names = head.metadata, {tensor.name: tensor for tensor in head.tensors}
    heads, width = data["llama.attention.head_count"], data["llama.embedding_length"]
    ids = {role: data.get(f"tokenizer.ggml.{key}_token_id") for role, key in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
    return {
        "vocab_size": names["token_embd.weight"].shape[1],
        "hidden_size": width,
        "intermediate_size": data["llama.feed_forward_length"],
        "num_hidden_layers": data["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": data.get("llama.attention.head_count_kv", heads),
        "head_dim": data.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": data["llama.context_length"],
        "rms_norm_eps": data["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": data.get("llama.rope.freq_base", 10_000.0)},
        "tie_word_embeddings": "output.weight" not in names,
        **{f"{role}_token_id": token_id for role, token_id in ids.items()},
    }


def _name(name: str) -> str | None:
    """The tensor's name in transformers, None where it has none there."""
    if name in _OUTER:
        return _OUTER[name]
    pieces = name.split(".")
    if len(pieces) != 4 or pieces[0] != "blk" or pieces[2] not in _INNER or pieces[3] != "weight":
        return None
    return f"model.layers.{int(pieces[1])}.{_INNER[pieces[2]]}.weight"


def _dequantized(data: np.ndarray, tensor: GgufTensor) -> np.ndarray:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(tensor.type_id)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    shape = tensor.shape[::-1]
    row_bytes = shape[-1] // block * block_bytes
    size_bytes = int(np.prod(shape[:-1], dtype=np.int64)) * row_bytes
    raw = np.array(data[tensor.offset_bytes : tensor.offset_bytes + size_bytes])
    values: np.ndarray = dequantize(raw.reshape(*shape[:-1], row_bytes), kind)
    return values.reshape(shape)


def _halves_apart(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [H, K/2, 2] of interleaved pairs to [H, 2, K/2]."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
