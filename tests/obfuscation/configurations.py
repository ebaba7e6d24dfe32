"""Tiny checkpoints whose configurations vary, one flag at a time and in pairs, and their obfuscated copies.

Models are random, norms and biases not trivial; sequences are longer than windows and original contexts, so
that every flag shows in the answers.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from transom.checkpoint.load import load
from transom.obfuscation.calibrate import isotropic
from transom.obfuscation.keyfile import KeyFile, new_key
from transom.obfuscation.keys import Space, preset, token_map
from transom.obfuscation.plain import Plain, open_source
from transom.obfuscation.plan import norm_names, plan
from transom.obfuscation.writer import obfuscate

LENGTH = 24
_HEADS = 4
_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXTURE = {"moe_intermediate_size": 20, "num_experts_per_tok": 2}
_LATENT = _MIXTURE | {
    "num_key_value_heads": _HEADS,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
_ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "default", "rope_theta": 100.0},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    _YARN,
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 16, "rope_theta": 500.0},
]
_ACTS = ["silu", "gelu", "relu", "gelu_pytorch_tanh"]
_COMMON: dict[str, list[Any]] = {
    "tie_word_embeddings": [False, True],
    "hidden_act": _ACTS,
    "rope_parameters": _ROPES,
    "rms_norm_eps": [1e-6, 1e-2],
    "vocab_size": [61, 64, 7],
    "eos_token_id": [2, [2, 3], None],
    "pad_token_id": [None, 0],
}
_GROUPED = {"num_key_value_heads": [2, _HEADS, 1], "head_dim": [8, 12, 6]}
_LONG: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": 8, "rope_theta": 100.0}
_LATENT_FLAGS: dict[str, list[Any]] = _COMMON | {
    "rope_parameters": [*_ROPES[:4], _YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}],
    "q_lora_rank": [12, None],
    "attention_bias": [False, True],
    "n_shared_experts": [1, 2],
    "first_k_dense_replace": [1, 0, 2],
    "n_group": [2, 1],
    "num_experts_per_tok": [2, 1],
    "routed_scaling_factor": [1.0, 2.5],
}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "Llama": (
        _SIZES,
        _COMMON
        | _GROUPED
        | {
            "attention_bias": [False, True],
            "mlp_bias": [False, True],
            "rope_parameters": [*_ROPES, _LONG],
        },
    ),
    "Mistral": (_SIZES, _COMMON | _GROUPED | {"sliding_window": [None, 5, 4096]}),
    "Qwen2": (
        _SIZES,
        _COMMON | _GROUPED | {"use_sliding_window": [False, True], "max_window_layers": [28, 1]},
    ),
    "Qwen3": (
        _SIZES | {"sliding_window": 5},
        _COMMON
        | _GROUPED
        | {
            "attention_bias": [False, True],
            "use_sliding_window": [False, True],
            "max_window_layers": [1, 0, 28],
        },
    ),
    "Mixtral": (
        _SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2},
        _COMMON
        | _GROUPED
        | {"sliding_window": [None, 5], "num_local_experts": [3, 5], "num_experts_per_tok": [2, 1]},
    ),
    "Qwen3Moe": (
        _SIZES | _MIXTURE | {"num_experts": 3, "sliding_window": 5},
        _COMMON
        | {name: [one for one in values if one] for name, values in _GROUPED.items()}
        | {
            "attention_bias": [False, True],
            "use_sliding_window": [False, True],
            "norm_topk_prob": [False, True],
            "mlp_only_layers": [[], [1]],
            "decoder_sparse_step": [1, 2],
            "num_experts_per_tok": [2, 1],
        },
    ),
    "DeepseekV2": (_SIZES | _LATENT, _LATENT_FLAGS | {"topk_method": ["greedy", "group_limited_greedy"]}),
    "DeepseekV3": (
        _SIZES | _LATENT,
        _LATENT_FLAGS | {"norm_topk_prob": [True, False], "rope_interleave": [True, False]},
    ),
}


def covering(flags: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Few settings in which every pair of values of two flags occurs; the first values are the base."""
    names = list(flags)
    index = {name: range(len(values)) for name, values in flags.items()}
    left = {(a, i, b, j) for a, b in itertools.combinations(names, 2) for i in index[a] for j in index[b]}
    rows = []
    while left:
        row: dict[str, int] = {}
        first = min(left, key=lambda pair: (names.index(pair[0]), names.index(pair[2]), pair[1], pair[3]))
        row[first[0]], row[first[2]] = first[1], first[3]
        for name in names:
            if name not in row:
                row[name] = max(index[name], key=lambda value: _covered(name, value, row, left, names))
        left -= {pair for pair in left if row[pair[0]] == pair[1] and row[pair[2]] == pair[3]}
        rows.append({name: flags[name][value] for name, value in row.items()})
    return rows


def _covered(name: str, value: int, row: dict[str, int], left: set[Any], names: list[str]) -> int:
    pairs = 0
    for other, chosen in row.items():
        before = names.index(name) < names.index(other)
        pairs += ((name, value, other, chosen) if before else (other, chosen, name, value)) in left
    return pairs


def singles(flags: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The base, and each flag at each other value."""
    base = {name: values[0] for name, values in flags.items()}
    yield base
    for name, values in flags.items():
        yield from (base | {name: value} for value in values[1:])


def build(family: str, options: Mapping[str, Any], folder: Path, *, seed: int = 0) -> Any:
    """Save a random model of a family; returns the model."""
    options = _with_factors(options)
    config = getattr(transformers, f"{family}Config")(**copy.deepcopy(dict(options)))  # which it changes
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                tensor.uniform_(-0.3, 0.3)
            elif tensor.dim() > 1:
                tensor.normal_(std=0.2)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    return model.eval()


def _with_factors(options: Mapping[str, Any]) -> dict[str, Any]:
    """As given; the factors of "longrope" are as many as a head has pairs."""
    rope = dict(options.get("rope_parameters") or {})
    if rope.get("rope_type") == "longrope":
        pairs = (options.get("head_dim") or 8) // 2
        rope |= {"short_factor": [1.0] * pairs, "long_factor": [1.0 + pair for pair in range(pairs)]}
    return dict(options) | {"rope_parameters": rope}


def rewrite(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """Change `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in drop}
    (folder / "config.json").write_text(json.dumps(kept | changes))
    return folder


def answers(folder: Path, ids_BT: Tensor) -> Tensor:
    """Logits by transformers alone."""
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        result: Tensor = model.eval()(input_ids=ids_BT, use_cache=False).logits
    return result


def our_answers(folder: Path, ids_BT: Tensor) -> Tensor:
    """Logits by our engine's loader."""
    result: Tensor = load(folder).model(input_ids=ids_BT, use_cache=False).logits
    return result


def exactly(source: Path, out: Path) -> tuple[Plain, KeyFile]:
    """Obfuscate with keys that change nothing but the order and the basis."""
    plain = open_source(source)
    key = new_key(plain.fingerprint, plain.vocabulary, preset("exact", h=0, lam=0.0))
    space = Space(key.secret, int(plain.config["hidden_size"]), key.settings)
    names = norm_names(plan(plain.config, key.settings))
    obfuscate(plain, out, key, kappas=isotropic(space, names))
    return plain, key


def run(model: Any, ids_BT: Tensor) -> Tensor:
    """Logits of a model in memory."""
    with torch.no_grad():
        result: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    return result


def error(model: Any, source: Path, out: Path, key: KeyFile, *, both: bool = True) -> float:
    """The largest difference of logits between a model and what our engine reads of its folder and of the
    obfuscated copy; with `both` also what transformers reads of the copy."""
    tau_V = torch.from_numpy(token_map(key.secret, key.vocabulary))
    ids_BT = torch.randint(key.vocabulary, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    made = [our_answers(source, ids_BT), our_answers(out, tau_V[ids_BT])[..., tau_V]]
    if both:
        made.append(answers(out, tau_V[ids_BT])[..., tau_V])
    plain_BTV = run(model, ids_BT)
    return max(float((one - plain_BTV).abs().max()) for one in made)
