"""GGUF files of tiny models with random weights, written the way that llama.cpp's conversion writes them.

A draft has the keys and tensors of a file, so that tests can change them. Nothing here is Transom's: names
are the `gguf` package's, and what conversion does to values is said in `_converted`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
V, D, H, G, K, F = 128, 64, 4, 2, 16, 96
SHAPE: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": 3,
    "num_attention_heads": H, "num_key_value_heads": G, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
LATENT: dict[str, Any] = SHAPE | {
    "num_key_value_heads": H, "moe_intermediate_size": 32, "n_routed_experts": 6, "num_experts_per_tok": 2,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 32,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "topk_group": 1, "n_group": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": K},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": K},
    "qwen2": {},
    "qwen2_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32,
        "norm_topk_prob": True,
    },
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {},
    "deepseek_v2": LATENT | {"topk_method": "greedy", "routed_scaling_factor": 1.5},
    "deepseek_v3": LATENT | {"routed_scaling_factor": 1.5, "norm_topk_prob": True},
}  # fmt: skip
NAMES = {
    "llama": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen2_moe": "qwen2moe", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "phi3": "phi3",
    "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
}  # fmt: skip


@dataclass
class Draft:
    """What a GGUF is to hold: the architecture, its keys without and others with prefix, tensors by name."""

    name: str
    keys: dict[str, Any]
    tensors: dict[str, Array]
    others: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path, kind: str = "F32", **kinds: str) -> Path:
        """Write it; matrices as `kind`, those whose name holds one of `kinds` as that says."""
        writer = gguf.GGUFWriter(path, self.name)
        self.describe(writer)
        for name, values in self.tensors.items():
            wanted = next((k for part, k in kinds.items() if part in name), kind)
            if values.ndim == 1 or "ffn_gate_inp" in name:  # llama.cpp wants these in float32
                wanted = "F32"
            form = gguf.GGMLQuantizationType[wanted]
            raw = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), form)
            writer.add_tensor(name, raw, raw_dtype=form)
        return self.finish(writer, path)

    def describe(self, writer: Any) -> None:
        """Add the keys."""
        prefixed = {f"{self.name}.{key}": value for key, value in self.keys.items()}
        for key, value in (prefixed | self.others).items():
            _add(writer, key, value)

    @staticmethod
    def finish(writer: Any, path: Path) -> Path:
        """Write what was added."""
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def _add(writer: Any, key: str, value: Any) -> None:
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])


def model_of(kind: str, seed: int = 0, **settings: Any) -> Any:
    """A tiny model of a type, its weights random and large enough that each has a say in every answer."""
    import transformers

    config = transformers.CONFIG_MAPPING[kind](**SHAPE | CONFIGS[kind] | settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    torch.manual_seed(seed)
    norm = 0.0 if kind.startswith("gemma") else 1.0
    for name, weight in model.state_dict().items():
        noise = torch.randn_like(weight)
        if "norm" in name:
            weight.copy_(norm + 0.3 * noise)
        elif "embed_tokens" in name:
            weight.copy_(noise * (0.3 if model.config.tie_word_embeddings else 1.0))
        elif weight.dim() == 1:
            weight.copy_((1.0 if "correction" in name else 0.3) * noise)
        else:
            # As many layers as there are, they add up to no more than three would.
            branch = (3 / config.num_hidden_layers) ** 0.5 if "o_proj" in name or "down" in name else 1.0
            scale = 2.0 if "lm_head" in name else 1.1 * branch
            weight.copy_(noise * scale / weight.shape[-1] ** 0.5)
    return model


def draft_of(model: Any) -> Draft:
    """The model as conversion would write it, with a vocabulary of placeholders."""
    config = model.config
    name = NAMES[config.model_type]
    tensors: dict[str, Array] = {}
    arch = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for source, weight in model.state_dict().items():
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for spelled, values in _converted(source, weight.numpy(), config):
            tensors[_target(names, spelled)] = values
    return Draft(name, _keys(config), tensors, _vocabulary(config))


def _target(names: Any, spelled: str) -> str:
    if spelled.startswith("blk."):
        return spelled
    if spelled.endswith(("_proj", "e_score_correction_bias")):  # stacked experts; the router's correction
        bias = spelled.endswith("_bias")
        return str(names.get_name(spelled.replace("_bias", "")) + (".bias" if bias else ".weight"))
    return str(names.get_name(spelled, (".weight", ".bias")))


def _converted(name: str, values: Array, config: Any) -> list[tuple[str, Array]]:
    """Where a weight goes, in the order of the file's rows."""
    kind, part = config.model_type, name.split(".")[-2]
    if name.endswith("gate_up_proj"):
        gate, up = np.split(values, 2, axis=1)
        return [(name.replace("gate_up_proj", "gate_proj"), gate), (name.replace("gate_up", "up"), up)]
    if kind.startswith("gemma") and "norm" in name:
        return [(name, values + 1)]
    if NAMES[kind] == "llama" and part in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
        return [(name, interleaved(values, heads))]
    if part == "kv_b_proj":
        block, heads = name.split(".")[2], config.num_attention_heads
        by_head = values.reshape(heads, -1, values.shape[-1])
        key, value = np.split(by_head, [config.qk_nope_head_dim], axis=1)
        return [(f"blk.{block}.attn_k_b.weight", key.swapaxes(1, 2)), (f"blk.{block}.attn_v_b.weight", value)]
    if part == "shared_expert_gate":
        return [(name, values[0])]
    return [(name, values)]


def interleaved(values: Array, heads: int) -> Array:
    """Rows of halves apart to rows of neighbouring pairs."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _keys(config: Any) -> dict[str, Any]:
    kind, rope = config.model_type, config.rope_parameters
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float((rope.get("full_attention") or rope)["rope_theta"]),
    }
    if getattr(config, "head_dim", None) and not kind.startswith("deepseek"):
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    for key, name in (
        ("expert_count", "num_local_experts"), ("expert_count", "num_experts"),
        ("expert_used_count", "num_experts_per_tok"), ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):  # fmt: skip
        if getattr(config, name, None) is not None:
            keys[key] = getattr(config, name)
    if kind.startswith("gemma") and kind != "gemma":
        keys["attention.sliding_window"] = config.sliding_window
    if kind == "gemma3_text":
        keys["attention.sliding_window_pattern"] = 2
    if kind == "phi3":
        keys["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    return keys | (_latent(config) if kind.startswith("deepseek") else {})


def _latent(config: Any) -> dict[str, Any]:
    rank, position = config.kv_lora_rank, config.qk_rope_head_dim
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": rank + position,
        "attention.value_length": rank,
        "attention.key_length_mla": config.qk_nope_head_dim + position,
        "attention.value_length_mla": config.v_head_dim,
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": position,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": bool(config.norm_topk_prob),
        "expert_gating_func": 2 if config.model_type == "deepseek_v3" else 1,
    }
    if config.q_lora_rank:
        keys["attention.q_lora_rank"] = config.q_lora_rank
    if (config.n_group or 1) > 1:
        keys |= {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}
    return keys


def _vocabulary(config: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": ["a", "b", "ab", *(f"<{i}>" for i in range(3, config.vocab_size))],
        "tokenizer.ggml.token_type": [1] * config.vocab_size,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }
