"""What a decoder's configuration may say: sizes that are sizes, and no value that its class would drop.

transformers sets every value that it is given, and computes with those that the model's class knows. A
scaling of logits or a window in the configuration of a Llama is therefore kept, shown and not computed with.
Threat model: broken configurations; a model that another library computes otherwise.
Does not protect against: values of names that no library has yet.
Source: the configuration and model classes of transformers, and what vLLM and llama.cpp read beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from transom.checkpoint.families import Rules, family_of
from transom.checkpoint.source import damaged
from transom.errors import NotYetError

_SIZES = (  # integers from 1
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "qk_rope_head_dim", "qk_nope_head_dim",
    "v_head_dim", "decoder_sparse_step",
)  # fmt: skip
_PARTS = (  # 0 says that a model has no such part; the decoders of `FAMILIES` whose class knows one have it
    "moe_intermediate_size", "sliding_window", "num_local_experts", "num_experts", "n_routed_experts",
    "num_experts_per_tok", "n_group", "topk_group", "kv_lora_rank", "q_lora_rank",
)  # fmt: skip
_COUNTS = (
    *_PARTS, "first_k_dense_replace", "n_shared_experts", "num_nextn_predict_layers", "max_window_layers",
    "type_vocab_size",
)  # fmt: skip
_FLAGS = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob",
    "rope_interleave",
)  # fmt: skip
_NUMBERS = ("rms_norm_eps", "routed_scaling_factor", "rope_theta", "partial_rotary_factor")
_MOST = 2**31 - 1
_KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_SIZES, lambda value: type(value) is int and 1 <= value <= _MOST, f"an integer from 1 to {_MOST}"),
    (_COUNTS, lambda value: type(value) is int and 0 <= value <= _MOST, f"an integer from 0 to {_MOST}"),
    (_FLAGS, lambda value: type(value) is bool, "true or false"),
    (_NUMBERS, lambda value: type(value) in (int, float) and value >= 0, "a number that is not negative"),
    (("architectures",), lambda value: type(value) is list and list(map(type, value)) == [str],
     "a list of one name"),
)  # fmt: skip
_BESIDE = ("quantization_config",)  # says how weights are stored, which whoever reads them checks
# Values of names outside a class that change nothing. Any other value would have to be computed with.
_NONE, _NO, _ONE = (None,), (None, False), (None, 1, 1.0)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale", "scale_emb"), _ONE
    ),
    **dict.fromkeys(("output_multiplier", "lm_head_multiplier", "key_multiplier", "embedding_scale"), _ONE),
    **dict.fromkeys(("routed_scaling_factor", "moe_layer_freq", "partial_rotary_factor"), _ONE),
    **dict.fromkeys(("attention_multiplier", "attn_scale", "query_pre_attn_scalar", "scale_depth"), _NONE),
    **dict.fromkeys(("attention_chunk_size", "per_layer_config", "transformers_weights"), (None, {})),
    **dict.fromkeys(("clip_qkv", "swiglu_limit", "final_logit_softcapping"), (None, 0, 0.0, False)),
    **dict.fromkeys(("attn_logit_softcapping", "logits_soft_cap"), (None, 0, 0.0, False)),
    **dict.fromkeys(("alibi", "use_alibi", "parallel_attn", "use_parallel_residual"), _NO),
    **dict.fromkeys(("scale_embedding", "attn_temperature_tuning", "use_bidirectional_attention"), _NO),
    **dict.fromkeys(("add_cross_attention", "is_encoder_decoder", "compression_config"), _NO),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval"), (None, [])),
    "is_causal": (None, True),
    "sliding_window": (None, 0),
    "norm_topk_prob": (None, True),  # what Mixtral does
}


def quantised_by(raw: Mapping[str, Any]) -> str | None:
    """The method by which a configuration says its weights are quantised; None where they are not."""
    record = raw.get("quantization_config")
    if record is None or record == {}:
        return None
    return str(record.get("quant_method", "an unnamed method"))[:40] if isinstance(record, dict) else "?"


def check_values(file: Path, raw: Mapping[str, Any]) -> None:
    """The types and bounds of sizes, before a class is given them. Raises CheckpointError."""
    if not _is_finite(raw):
        raise damaged(f"{file} holds a number that is not finite")
    for names, is_right, wanted in _KINDS:
        for name in names:
            if raw.get(name) is not None and not is_right(raw[name]):
                _refuse(file, name, raw[name], wanted)


def check_structure(file: Path, raw: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Nothing in `raw` changes the model beyond `config`, which its class made of it, and that one is sound.

    Only for families whose record knows their values. Raises CheckpointError, NotYetError.
    """
    family = family_of(config)
    if family is None or family.values is None:
        return
    for name, value in raw.items():
        if not _is_understood(name, value, config, family.values) and not _is_unused(name, raw, config):
            raise NotYetError(
                f"{file}: {name} is {str(value)[:80]!r}, which {family.kind} models are not "
                "computed with here: answers would be another model's"
            )
    for name in _PARTS:
        if config.get(name) == 0:
            _refuse(file, name, 0, f"1 or more in a {config['model_type']} model, or null")
    _check_norm(file, raw, config)
    _check_heads(file, config)
    _check_windows(file, raw, config)
    _check_rotary(file, config)
    for name in sorted(name for name in config if name.endswith("_token_id")):
        check_ids(file, name, config[name], config["vocab_size"])


def _is_understood(name: str, value: Any, config: Mapping[str, Any], values: Rules) -> bool:
    """Whether the record knows the value, or it changes nothing: a foreign one that is neutral, or of a name
    that neither the class nor any library here has."""
    allowed = values.get(name, NEUTRAL.get(name))
    if allowed is None:
        known = name in values or name in _BESIDE or name not in config
        return known or value is None
    return value in allowed


def _is_unused(name: str, raw: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether it is a window that is switched off, or not shorter than any text."""
    if name != "sliding_window" or raw.get("use_sliding_window") is False:
        return name == "sliding_window"
    rope, longest = config.get("rope_parameters"), config["max_position_embeddings"]
    stretched = isinstance(rope, dict) and rope.get("rope_type", "default") not in ("default", "llama3")
    return not stretched and type(raw[name]) is int and raw[name] >= longest


def _check_norm(file: Path, raw: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    others = [name for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_eps") if raw.get(name)]
    if others and raw.get("rms_norm_eps") is None:
        raise NotYetError(
            f"{file} names {others[0]} and no rms_norm_eps, which would then be {config['rms_norm_eps']}; "
            "write rms_norm_eps into it"
        )
    other = raw.get("hidden_activation")
    if other is not None and other != config["hidden_act"]:
        raise NotYetError(
            f"{file}: hidden_activation is {str(other)[:80]!r} and hidden_act {config['hidden_act']!r}; "
            "write the right one into hidden_act"
        )


def _check_heads(file: Path, config: Mapping[str, Any]) -> None:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    latent = "kv_lora_rank" in config
    if heads % groups or (latent and groups != heads):
        divides = "equal" if latent else "divide"
        _refuse(file, "num_key_value_heads", groups, f"a number to {divides} the {heads} attention heads")
    width = config["qk_rope_head_dim"] if latent else config["head_dim"]
    if width % 2:
        _refuse(file, "qk_rope_head_dim" if latent else "head_dim", width, "an even number, for pairs")
    chosen = config.get("num_experts_per_tok")
    experts = config.get("num_local_experts", config.get("n_routed_experts"))
    if experts is not None and (type(chosen) is not int or chosen > experts):
        _refuse(file, "num_experts_per_tok", chosen, f"an integer up to the {experts} experts")
    if latent and not config.get("n_shared_experts"):
        _refuse(file, "n_shared_experts", config.get("n_shared_experts"), "1 or more")
    if latent and config.get("topk_method") != "greedy":
        _check_groups(file, config, experts)


def _check_groups(file: Path, config: Mapping[str, Any], experts: Any) -> None:
    groups, chosen = config.get("n_group"), config.get("topk_group")
    if type(groups) is not int or experts % groups:
        _refuse(file, "n_group", groups, f"an integer that divides the {experts} experts")
    elif type(chosen) is not int or chosen > groups:
        _refuse(file, "topk_group", chosen, f"an integer up to n_group, {groups}")


def _check_windows(file: Path, raw: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Which layers see a window: as the class takes it, or all alike where it knows no kinds of layers."""
    kind, window = config["model_type"], config.get("sliding_window")
    layers = raw.get("layer_types")
    if layers is not None:
        alike = "sliding_attention" if window else "full_attention"
        both = ("full_attention", "sliding_attention") if window else ("full_attention",)
        allowed = both if "layer_types" in config else (alike,)
        if not isinstance(layers, list) or any(one not in allowed for one in layers):
            raise NotYetError(
                f"{file}: layer_types asks for other attention than {kind} models with sliding_window "
                f"{window} are computed with here; answers would be another model's"
            )
    if kind in ("mixtral", "mistral") and raw.get("use_sliding_window") is False and window:
        raise NotYetError(
            f"{file}: use_sliding_window is false and sliding_window is {window}: engines differ in which "
            "they follow; set sliding_window to null if the model has none"
        )
    if kind == "qwen3_moe" and window and raw.get("max_window_layers"):
        raise NotYetError(
            f"{file}: max_window_layers is {raw['max_window_layers']}, and here each layer of a qwen3_moe "
            "model sees its window; answers would be another model's"
        )


def _check_rotary(file: Path, config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    theta = rope.get("rope_theta")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        _refuse(file, "rope_theta", theta, "a number above 0, one for all layers")
    partial = rope.get("partial_rotary_factor")
    if partial not in _ONE:
        raise NotYetError(f"{file}: a partial rotary embedding (factor {partial}) is not computed with yet")


def check_ids(file: Path, name: str, value: Any, vocabulary: int) -> None:
    """Raises CheckpointError unless a special id, or each of a list, is one of the vocabulary's."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for one in ids:
        if type(one) is not int or not 0 <= one < vocabulary:
            raise damaged(f"{file}: {name} is {str(value)[:80]}; the vocabulary has {vocabulary} ids")


def _refuse(file: Path, name: str, value: Any, wanted: str) -> NoReturn:
    raise damaged(f"{file}: {name} is {str(value)[:80]!r}; it must be {wanted}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)
