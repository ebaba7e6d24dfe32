"""Tiny random Mixtral, Qwen3-MoE and DeepSeek checkpoints, plain and obfuscated, loaded by transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from transom.obfuscation.calibrate import measure
from transom.obfuscation.keys import Settings, Space, token_map
from transom.obfuscation.moe import expert_order, place_experts
from transom.obfuscation.plan import check_names, plan, run, target_config

SECRET = bytes(range(32))
VOCABULARY = 64
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "moe_intermediate_size": 24,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 10,
    "v_head_dim": 12,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("Mixtral", {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}),
    "Qwen3-MoE": (
        "Qwen3Moe",
        {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2}
        | {"mlp_only_layers": [0], "norm_topk_prob": True},
    ),
    "Qwen3-MoE, every second layer": (
        "Qwen3Moe",
        {"num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}
        | {"decoder_sparse_step": 2},
    ),
    "DeepSeek-V3": ("DeepseekV3", _LATENT),
    "DeepSeek-V3, biases, halves": (
        "DeepseekV3",
        _LATENT | {"attention_bias": True, "rope_interleave": False},
    ),
    "DeepSeek-V2": ("DeepseekV2", _LATENT | {"topk_method": "group_limited_greedy"}),
    "DeepSeek-V2-Lite": ("DeepseekV2", _LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1}),
}


@dataclass(frozen=True)
class Pair:
    """A model and its obfuscation on the same text: logits [T, V] in plain order, experts chosen [T, K] per
    sparse layer under their plain numbers; `spread` of the ratio that kappa takes for constant."""

    logits: tuple[Tensor, Tensor]
    experts: tuple[dict[int, Tensor], dict[int, Tensor]]
    spread: float

    @property
    def error(self) -> float:
        """The logits' error, relative to their size, both root mean squares."""
        plain, wide = self.logits
        return float((plain - wide).square().mean().sqrt() / plain.square().mean().sqrt())

    @property
    def same_experts(self) -> float:
        """The share of tokens and sparse layers for which the same set of experts is chosen."""
        plain, wide = self.experts
        assert plain.keys() == wide.keys()
        same = [(plain[i].sort().values == wide[i].sort().values).all(-1).float().mean() for i in plain]
        return float(torch.stack(same).mean())


def save_plain(variant: str, folder: Path) -> Path:
    """Write a random checkpoint; norms, biases and the correction of scores are not what they start as."""
    name, options = VARIANTS[variant]
    config = getattr(transformers, f"{name}Config")(**(_SIZES | options))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in key:
                tensor.uniform_(0.5, 1.5)
            elif "e_score_correction_bias" in key or key.endswith(".bias"):
                tensor.uniform_(-0.2, 0.2)
            elif tensor.dim() > 1:
                tensor.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def obfuscated_pair(variant: str, settings: Settings, folder: Path) -> Pair:
    """Obfuscate a variant by plan() and run() on its files, load both and run both."""
    plain_folder, out = save_plain(variant, folder / "plain"), folder / "out"
    config = json.loads((plain_folder / "config.json").read_text())
    state = load_file(plain_folder / "model.safetensors")
    model = _load(plain_folder)
    ids_BT = torch.randint(0, VOCABULARY, (4, 24))
    space, tau = Space(SECRET, config["hidden_size"], settings), token_map(SECRET, VOCABULARY)
    ratios = measure(model, ids_BT, space)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(target_config(config, settings, tau)))
    kappas = {name: ratio.mean for name, ratio in ratios.items()}
    save_file(transformed(state, config, space, kappas), out / "model.safetensors", {"format": "pt"})
    tau_V = torch.from_numpy(tau)
    plain_logits, plain_experts = _answers(model, ids_BT)
    wide_logits, wide_experts = _answers(_load(out), tau_V[ids_BT])
    numbered = {
        layer: torch.from_numpy(expert_order(SECRET, config, layer))[chosen]
        for layer, chosen in wide_experts.items()
    }
    return Pair(
        (plain_logits, wide_logits[..., tau_V]),
        (plain_experts, numbered),
        max(ratio.spread for ratio in ratios.values()),
    )


def transformed(
    state: Mapping[str, Tensor], config: Mapping[str, Any], space: Space, kappas: Mapping[str, float]
) -> dict[str, Tensor]:
    """A whole state dictionary, task by task, each task given its sources alone."""
    tasks = place_experts(plan(config, space.settings), config, space.secret)
    check_names(tasks, state, config)
    made: dict[str, Tensor] = {}
    for task in tasks:
        outputs = run(task, {name: state[name] for name in task.sources}, space, config, kappas)
        assert tuple(outputs) == task.outputs
        made |= outputs
    return made


def _load(folder: Path) -> Any:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def _answers(model: Any, ids_BT: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits [T, V], and the experts [T, K] that each sparse layer's router chose."""
    chosen: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        if hasattr(block.mlp, "experts"):
            block.mlp.gate.register_forward_hook(
                lambda module, inputs, output, layer=layer: chosen.update({layer: output[2]})
            )
    with torch.no_grad():
        return model(input_ids=ids_BT, use_cache=False).logits.flatten(0, 1), chosen
