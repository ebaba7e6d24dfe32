"""Which configurations llama.cpp computes as transformers does: each key is written, idle, or refused.

llama.cpp has one graph an architecture. What it fixes (the activation, how experts are weighed) and what it
has no key for is refused here, and so is a key that is not in these lists: a value left out in silence would
be another model.
Threat model: none; the folder is the user's own. Does not protect against: other engines, which may honour
keys that transformers ignores (those of DeepSeek's routing are refused where readings differ).
Source: llama.cpp's graphs, and its answers beside transformers' (tests/obfuscation/test_gguf_writer.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transom.errors import NotYetError

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
MOST_ENDS = 6  # ids that end an answer: llama.cpp has that many keys which do so
_MOST_LAYERS = _MOST_EXPERTS = 512
# llama.cpp knows a DeepSeek without a latent query by the number of its layers (and ids), not by a key.
_LITE_LAYERS, _LITE = (26, 27), (48, 128_256)
_YARN = {
    "attention_factor": (None,),
    "beta_fast": (None, 32),
    "beta_slow": (None, 1),
    "truncate": (None, True),
}
_ROPES: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "default": {},
    "linear": {"factor": None},
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
    "yarn": _YARN | dict.fromkeys(("factor", "original_max_position_embeddings", "mscale", "mscale_all_dim")),
}
_IDLE = (
    "architectures", "attention_dropout", "dtype", "initializer_range", "max_window_layers",
    "num_mtp_layers", "num_nextn_predict_layers", "output_router_logits", "pretraining_tp", "qk_head_dim",
    "router_aux_loss_coef", "router_jitter_noise", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
_WRITTEN = (
    "bos_token_id", "eos_token_id", "head_dim", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "model_type", "moe_intermediate_size", "n_routed_experts",
    "num_attention_heads", "num_experts", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads",
    "num_local_experts", "pad_token_id", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "sliding_window", "tie_word_embeddings", "use_sliding_window", "vocab_size",
)  # fmt: skip
_LATENT_WRITTEN = (
    "first_k_dense_replace", "kv_lora_rank", "n_group", "n_shared_experts", "q_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "routed_scaling_factor", "topk_group", "v_head_dim",
)  # fmt: skip
# Values that are allowed, None for any: those of a key that is written, or without influence.
_Rules = Mapping[str, tuple[Any, ...] | None]
_ALL: _Rules = {
    **dict.fromkeys([*_IDLE, *_WRITTEN]),
    "hidden_act": ("silu", "swish"),
    "is_encoder_decoder": (False,),
}
_LATENT: _Rules = {
    **dict.fromkeys(_LATENT_WRITTEN),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "rms_norm_eps": (1e-6,),  # transformers has the inner norms at that, whatever the configuration says
}
_KEYS: dict[str, _Rules] = {
    "llama": {"attention_bias": (False, True), "mlp_bias": (False, True)},
    "mistral": {},
    "mixtral": {},
    "qwen3": {"attention_bias": (False,)},
    "qwen3_moe": {
        "attention_bias": (False,),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    "deepseek_v2": {
        **_LATENT,
        "norm_topk_prob": (False,),  # transformers never normalises here, others do when it says so
        "topk_method": ("greedy", "group_limited_greedy"),
        "scoring_func": ("softmax",),
    },
    "deepseek_v3": {
        **_LATENT,
        "norm_topk_prob": (False, True),
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
    },
}


def require_known(config: Mapping[str, Any]) -> None:
    """Raise NotYetError, with every problem, unless llama.cpp computes what the configuration says.

    `config` is `resolved_config`'s: sound, and with the defaults of its class.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise NotYetError(
            f"no GGUF for the model type {kind!r}; it can be written for {', '.join(ARCHITECTURES)}"
        )
    problems = [*_by_key(config, {**_ALL, **_KEYS[kind]}), *_bounds(config), *_rope(config)]
    if ARCHITECTURES[kind] == "deepseek2":
        problems += _latent(config)
    if problems:
        raise NotYetError(
            f"no GGUF for this {kind}, because llama.cpp would run another model: {'; '.join(problems)}. "
            "Serve the folder with vLLM"
        )


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings."""
    rope: Mapping[str, Any] = config["rope_parameters"]
    return rope


def context_tokens(config: Mapping[str, Any]) -> int:
    """How long a prompt may be: no longer than the window, which llama.cpp does not apply to these models."""
    longest, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    return min(longest, int(window)) if window else longest


def _by_key(config: Mapping[str, Any], rules: _Rules) -> Iterator[str]:
    for name, value in config.items():
        if name not in rules:
            if value is not None:
                yield f"{name} is not known for this architecture"
            continue
        allowed = rules[name]
        if allowed is not None and value not in allowed:
            yield f"{name} is {_shown(value)}, and llama.cpp has {' or '.join(map(_shown, allowed))}"


def _bounds(config: Mapping[str, Any]) -> Iterator[str]:
    if not _positive(config["rms_norm_eps"]):
        yield f"rms_norm_eps is {_shown(config['rms_norm_eps'])}"
    if config["num_hidden_layers"] > _MOST_LAYERS or (experts_of(config) or 0) > _MOST_EXPERTS:
        yield f"it has more than {_MOST_LAYERS} layers or {_MOST_EXPERTS} experts"
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds or ("sliding_attention" in (config.get("layer_types") or ()) and not config["sliding_window"]):
        yield "layer_types has layers without full attention or a window"


def experts_of(config: Mapping[str, Any]) -> int | None:
    """How many experts a layer has, None in a dense model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(config[name]) for name in names if config.get(name)), None)


def _rope(config: Mapping[str, Any]) -> Iterator[str]:
    rope, latent = rope_of(config), ARCHITECTURES[config["model_type"]] == "deepseek2"
    kind = rope.get("rope_type")
    if kind not in _ROPES:
        yield f"positions are rescaled by {_shown(kind)}"
        return
    if kind == "llama3" and ARCHITECTURES[config["model_type"]] != "llama":
        yield "positions are rescaled by 'llama3', for which this architecture has no tensor"
    if kind == "linear" and latent:
        yield "positions are rescaled by 'linear' before latent attention"
    rules = {
        "rope_type": None,
        "type": None,
        "rope_theta": None,
        "partial_rotary_factor": (1.0,),
        **_ROPES[kind],
    }
    yield from (f"of rope_parameters {problem}" for problem in _by_key(rope, rules))
    for name in ("rope_theta", *(name for name, rule in _ROPES[kind].items() if rule is None)):
        if "mscale" not in name and not _positive(rope.get(name)):
            yield f"of rope_parameters {name} is {_shown(rope.get(name))}, not a positive number"
    scales = (rope.get("mscale"), rope.get("mscale_all_dim"))
    if kind == "yarn" and (scales[0] != scales[1] or not _positive(scales[0]) if latent else any(scales)):
        yield f"of rope_parameters mscale and mscale_all_dim are {_shown(scales)}"


def _latent(config: Mapping[str, Any]) -> Iterator[str]:
    layers, rank = config["num_hidden_layers"], config.get("q_lora_rank")
    if (rank is None) != (layers in _LITE_LAYERS or (layers, config["vocab_size"]) == _LITE):
        yield (
            f"q_lora_rank is {_shown(rank)} with {layers} layers, and llama.cpp has a latent query unless "
            f"there are {' or '.join(map(str, _LITE_LAYERS))}, or {_LITE[0]} and {_LITE[1]} ids"
        )
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        yield "num_key_value_heads is not num_attention_heads"
    if not _positive(config["routed_scaling_factor"]):
        yield f"routed_scaling_factor is {_shown(config['routed_scaling_factor'])}"
    limited = config.get("topk_method") == "group_limited_greedy"
    if config["model_type"] == "deepseek_v2" and limited and config.get("n_group") != 1:
        yield f"n_group is {_shown(config.get('n_group'))} with topk_method 'group_limited_greedy'"


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _shown(value: object) -> str:
    return repr(value) if len(repr(value)) <= 40 else f"a long {type(value).__name__}"
