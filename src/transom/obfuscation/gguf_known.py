"""Which configurations llama.cpp computes as transformers does: each key is written, idle, or refused.

llama.cpp has one graph an architecture. What it fixes (the activation, how experts are weighed) and what it
has no key for is refused here, and so is a key that the family's record lacks: a value left out in silence
would be another model.
Threat model: none; the folder is the user's own. Does not protect against: other engines, which may honour
keys that transformers ignores (those of DeepSeek's routing are refused where readings differ).
Source: llama.cpp's graphs, and its answers beside transformers' (tests/obfuscation/test_gguf_writer.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transom.checkpoint.families import FAMILIES, Family, Rules, family_of
from transom.errors import NotYetError
from transom.obfuscation.moe import expert_count

_FIXED: Rules = {"hidden_act": ("silu", "swish"), "is_encoder_decoder": (False,)}
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
_ROPES: dict[str, Rules] = {
    "default": {},
    "linear": {"factor": None},
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
    "yarn": _YARN | dict.fromkeys(("factor", "original_max_position_embeddings", "mscale", "mscale_all_dim")),
}


def require_known(config: Mapping[str, Any]) -> None:
    """Raise NotYetError, with every problem, unless llama.cpp computes what the configuration says.

    `config` is `resolved_config`'s: sound, and with the defaults of its class.
    """
    family = family_of(config)
    if family is None or family.values is None or family.llama_cpp is None:
        known = ", ".join(other.kind for other in FAMILIES.values() if other.llama_cpp is not None)
        raise NotYetError(
            f"no GGUF for the model type {config.get('model_type')!r}; it can be written for {known}"
        )
    rules = family.values | _FIXED | family.llama_cpp
    problems = [*_by_key(config, rules), *_bounds(config, family), *_rope(config, family)]
    if family.attention == "latent":
        problems += _latent(config)
    if problems:
        raise NotYetError(
            f"no GGUF for this {family.kind}, because llama.cpp would run another model: "
            f"{'; '.join(problems)}. Serve the folder with vLLM"
        )


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary settings."""
    rope: Mapping[str, Any] = config["rope_parameters"]
    return rope


def context_tokens(config: Mapping[str, Any]) -> int:
    """How long a prompt may be: no longer than the window, which llama.cpp does not apply to these models."""
    longest, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    return min(longest, int(window)) if window else longest


def _by_key(config: Mapping[str, Any], rules: Rules) -> Iterator[str]:
    for name, value in config.items():
        if name not in rules:
            if value is not None:
                yield f"{name} is not known for this architecture"
            continue
        allowed = rules[name]
        if allowed is not None and value not in allowed:
            yield f"{name} is {_shown(value)}, and llama.cpp has {' or '.join(map(_shown, allowed))}"


def _bounds(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    if not _positive(config["rms_norm_eps"]):
        yield f"rms_norm_eps is {_shown(config['rms_norm_eps'])}"
    if config["num_hidden_layers"] > _MOST_LAYERS or (
        family.experts and expert_count(config) > _MOST_EXPERTS
    ):
        yield f"it has more than {_MOST_LAYERS} layers or {_MOST_EXPERTS} experts"
    kinds = set(config.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    if kinds or ("sliding_attention" in (config.get("layer_types") or ()) and not config["sliding_window"]):
        yield "layer_types has layers without full attention or a window"


def _rope(config: Mapping[str, Any], family: Family) -> Iterator[str]:
    rope, latent = rope_of(config), family.attention == "latent"
    kind = rope.get("rope_type")
    if kind not in _ROPES:
        yield f"positions are rescaled by {_shown(kind)}"
        return
    if kind == "llama3" and family.gguf != "llama":
        yield "positions are rescaled by 'llama3', for which this architecture has no tensor"
    if kind == "linear" and latent:
        yield "positions are rescaled by 'linear' before latent attention"
    rules: Rules = dict.fromkeys(("rope_type", "type", "rope_theta"))
    rules |= {"partial_rotary_factor": (1.0,), **_ROPES[kind]}
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
