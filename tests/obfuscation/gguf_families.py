"""Small random models of each family that is written as GGUF, and the flags that their tests vary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

V = 64
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 1,
    "bos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False, "sliding_window": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 12, "q_lora_rank": 16,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "topk_group": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "mistral": {"head_dim": 16},
    "mixtral": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "deepseek_v2": LATENT | {"n_group": 1},
    "deepseek_v3": LATENT | {"n_group": 2},
}  # fmt: skip
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3")


@dataclass(frozen=True)
class Flag:
    """Changes of a configuration; `refused` is what the refusal must name, None where llama.cpp agrees."""

    name: str
    changes: dict[str, Any]
    refused: str | None = None


def rope(kind: str, refused: str | None = None, **settings: Any) -> Flag:
    parameters = {"rope_type": kind, "rope_theta": 100.0} | settings
    return Flag(f"{kind} {' '.join(settings)}", {"rope_parameters": parameters}, refused)


YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32}
WAVES: dict[str, Any] = YARN | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
EVERYWHERE = [
    rope("default", rope_theta=1e6),
    rope("dynamic", "dynamic", factor=2.0),
    rope("yarn", "attention_factor", **YARN, attention_factor=1.5),
    rope("yarn", "beta_fast", **YARN, beta_fast=16),
    rope("yarn", "truncate", **YARN, truncate=False),
    rope("yarn", "mscale", **YARN, mscale=1.0, mscale_all_dim=0.5),
    rope("default", "partial rotary", partial_rotary_factor=0.5),
    Flag("tied", {"tie_word_embeddings": True}),
    Flag("swish", {"hidden_act": "swish"}),
    Flag("relu", {"hidden_act": "relu"}, "hidden_act"),
    Flag("tanh gelu", {"hidden_act": "gelu_pytorch_tanh"}, "hidden_act"),
    Flag("ends", {"eos_token_id": [3, 4]}),
]
DENSE_HEADS = [
    rope("linear", factor=4.0),
    rope("yarn", **YARN),
    rope("longrope", "longrope", **FACTORS, factor=2.0, original_max_position_embeddings=32),
    Flag("eps", {"rms_norm_eps": 0.05}),
    Flag("narrow heads", {"head_dim": 6}),
    Flag("one key head", {"num_key_value_heads": 1}),
    Flag("all key heads", {"num_key_value_heads": 4}),
]
ROTATED = [rope("llama3", **WAVES)]
NOT_ROTATED = [rope("llama3", "llama3", **WAVES)]
BIAS = [Flag("bias", {"attention_bias": True}, "attention_bias")]
WINDOW = [Flag("window", {"sliding_window": 40})]
WINDOWS = {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 0}
SCALED = {"mscale": 0.707, "mscale_all_dim": 0.707}
DEEPSEEK = [
    *EVERYWHERE,
    *NOT_ROTATED,
    *BIAS,
    rope("linear", "linear", factor=4.0),
    rope("yarn", "mscale", **YARN),
    rope("yarn", **YARN, **SCALED),
    Flag("eps", {"rms_norm_eps": 0.05}, "rms_norm_eps"),
    Flag("no latent query", {"q_lora_rank": None}, "q_lora_rank"),
    Flag("26 layers", {"num_hidden_layers": 26}, "q_lora_rank"),
    Flag("lite", {"num_hidden_layers": 27, "q_lora_rank": None, "hidden_size": 16}),
    Flag("all sparse", {"first_k_dense_replace": 0}),
    Flag("two shared", {"n_shared_experts": 2}),
    Flag("one expert", {"num_experts_per_tok": 1}),
    Flag("scaled", {"routed_scaling_factor": 1.7}),
    Flag("not routed", {"routed_scaling_factor": 0.0}, "routed_scaling_factor"),
    Flag("spread", {"moe_layer_freq": 2}, "moe_layer_freq"),
]
FLAGS: dict[str, list[Flag]] = {
    "llama": [
        *EVERYWHERE,
        *DENSE_HEADS,
        *ROTATED,
        Flag("bias", {"attention_bias": True}),
        Flag("feed-forward bias", {"mlp_bias": True}),
    ],
    "mistral": [*EVERYWHERE, *DENSE_HEADS, *ROTATED, *WINDOW],
    "mixtral": [
        *EVERYWHERE,
        *DENSE_HEADS,
        *ROTATED,
        *WINDOW,
        Flag("one expert", {"num_experts_per_tok": 1}),
        Flag("all experts", {"num_experts_per_tok": 4}),
    ],
    "qwen3": [
        *EVERYWHERE,
        *DENSE_HEADS,
        *NOT_ROTATED,
        *BIAS,
        Flag("windows", WINDOWS),
        Flag("some windows", WINDOWS | {"max_window_layers": 1}),
    ],
    "qwen3_moe": [
        *EVERYWHERE,
        *DENSE_HEADS,
        *NOT_ROTATED,
        *BIAS,
        Flag("windows", WINDOWS),
        Flag("one expert", {"num_experts_per_tok": 1}),
        Flag("not normalised", {"norm_topk_prob": False}, "norm_topk_prob"),
        Flag("some dense", {"mlp_only_layers": [0]}, "mlp_only_layers is"),
        Flag("every second", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ],
    "deepseek_v2": [
        *DEEPSEEK,
        Flag("groups ignored", {"n_group": 4, "topk_group": 2, "topk_method": "greedy"}),
        Flag("one group", {"topk_method": "group_limited_greedy"}),
        Flag("groups", {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, "n_group"),
        Flag("normalised", {"norm_topk_prob": True}, "norm_topk_prob"),
        Flag("sigmoid", {"scoring_func": "sigmoid"}, "scoring_func"),
        Flag("feed-forward bias", {"mlp_bias": True}, "mlp_bias"),
    ],
    "deepseek_v3": [
        *DEEPSEEK,
        Flag("one group", {"n_group": 1}),
        Flag("two of four groups", {"n_group": 4, "topk_group": 2}),
        Flag("not normalised", {"norm_topk_prob": False}),
        Flag("halves apart", {"rope_interleave": False}, "rope_interleave"),
        Flag("softmax", {"scoring_func": "softmax"}, "scoring_func"),
        Flag("greedy", {"topk_method": "greedy"}, "topk_method"),
    ],
}


def settings(family: str, *flags: Flag) -> dict[str, Any]:
    """The configuration's keywords."""
    made = SMALL | FAMILIES[family]
    for flag in flags:
        made |= flag.changes
    return made


def save_model(folder: Path, family: str, keywords: dict[str, Any], seed: int = 0) -> Any:
    """A model with random weights, vectors and biases too, written to `folder`; returned for its answers."""
    config = transformers.AutoConfig.for_model(family, **keywords)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "inv_freq" not in name:
            noise = 0.25 * torch.randn(value.shape, generator=generator)
            value.data.copy_(1 + noise if "norm" in name else noise)
    model.save_pretrained(folder)
    return model


def next_logprobs(model: Any, ids: list[int]) -> np.ndarray:
    """transformers' log-probabilities of the next token, [V]."""
    with torch.no_grad():
        row: np.ndarray = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
    return row
