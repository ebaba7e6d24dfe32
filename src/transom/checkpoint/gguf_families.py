"""From the keys of a GGUF to the settings of a class in transformers, one function an architecture.

Threat model and limits: as `gguf_config`. Source: llama.cpp's loaders (src/models/), for what each
architecture reads, what it takes where a key is absent, and what it ignores; tried against it in the tests.

A key that llama.cpp ignores is allowed only with the value that the architecture has anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from transom.checkpoint.families import FAMILIES
from transom.checkpoint.gguf import GgufHead, broken
from transom.checkpoint.gguf_keys import Keys
from transom.checkpoint.gguf_rope import rope_parameters
from transom.errors import NotYetError

Settings = dict[str, Any]
_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")
Described = tuple[Settings, dict[str, int]]  # of a class, and sizes by the letters of `gguf_models`
_SQUARE = ("qwen2", "qwen2_moe", "phi3")  # classes that have no width of their own for heads


def _base(keys: Keys, head: GgufHead, *, some: bool = False) -> tuple[Settings, dict[str, int]]:
    """What all with heads of one width have, and sizes. With `some`, a part of a head may be rotated."""
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count", high=2**16)
    groups = keys.whole("attention.head_count_kv", heads, high=2**16)
    head_width = keys.whole("attention.key_length", width // heads, high=2**16)
    rotated = keys.whole("rope.dimension_count", head_width, high=2**16)
    value_width = keys.whole("attention.value_length", width // heads, high=2**16)
    if value_width != head_width:
        raise NotYetError(f"keys of width {head_width} with values of width {value_width} are not read")
    if heads % groups or rotated % 2 or rotated > head_width or (rotated != head_width and not some):
        raise broken(
            f"the GGUF has {heads} heads of {head_width}, {rotated} of them rotated, on {groups} key-value "
            "heads, which no model of its architecture has"
        )
    settings, sizes = _outer(keys, head, width)
    settings |= {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_width,
        "rope_parameters": rope_parameters(keys, head, rotated, settings["max_position_embeddings"]),
    }
    query, key = heads * head_width, groups * head_width
    return settings, sizes | {"K": head_width, "Q": query, "G": key, "P": query + 2 * key}


def _outer(keys: Keys, head: GgufHead, width: int) -> tuple[Settings, dict[str, int]]:
    """What has nothing to do with heads."""
    names = {tensor.name: tensor.shape for tensor in head.tensors}
    if "token_embd.weight" not in names:
        raise broken("the GGUF lacks the tensor 'token_embd.weight'")
    rows = names["token_embd.weight"][-1]
    if keys.get("vocab_size", rows) != rows:
        raise broken(f"the GGUF says another vocab_size than its {rows} rows")
    keys.require("attention.causal", True)
    keys.require("pooling_type", 0)
    keys.require("tensor_data_layout", "Meta AI original pth")  # a remark of old converters
    feed_forward = keys.whole("feed_forward_length", 0, low=0)
    return {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": keys.whole("block_count", high=len(head.tensors)),
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
    }, {"V": rows, "D": width, "F": feed_forward, "W": 2 * feed_forward}


def _window(keys: Keys, context: int) -> int | None:
    """How far attention sees, None where that is everything that the model was trained for."""
    window = keys.whole("attention.sliding_window", 0, low=0)
    return window if 0 < window < context else None


def _no_window(keys: Keys, settings: Settings) -> None:
    # llama.cpp ignores the window of these architectures; their layers are not known to use it.
    if _window(keys, settings["max_position_embeddings"]) is not None:
        raise NotYetError("a sliding window is not read for this architecture of GGUF; give its source model")


def _no_experts(keys: Keys) -> None:
    for name in ("expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count"):
        keys.require(name, 0)


def _experts(keys: Keys, width: int) -> tuple[int, int, dict[str, int]]:
    """Their count, how many a token uses, and the sizes."""
    count = keys.whole("expert_count", high=2**12)
    keys.require("expert_weights_scale", 0.0, 1.0)
    keys.require("expert_gating_func", 1)
    for name in ("expert_group_count", "expert_group_used_count"):
        keys.require(name, 0, 1)
    return count, keys.whole("expert_used_count", high=count), {"E": count, "I": width}


def _described(kind: str, settings: Settings, sizes: dict[str, int]) -> Described:
    """With what the class takes, and files of the architecture cannot say otherwise. Raises NotYetError."""
    heads, width = settings["num_attention_heads"], settings["hidden_size"]
    if kind in _SQUARE and settings.pop("head_dim") * heads != width:
        raise NotYetError(
            "heads that do not make the width of the model together are not read for this architecture"
        )
    return settings | {"model_type": kind, **FAMILIES[kind].gguf_fixed}, sizes


def _has(head: GgufHead, pattern: str) -> bool:
    return any(re.fullmatch(rf"blk\.\d+\.({pattern})", tensor.name) for tensor in head.tensors)


def _llama(keys: Keys, head: GgufHead) -> Described:
    settings, sizes = _base(keys, head)
    _no_window(keys, settings)
    explicit = keys.get("rope.scaling.type") == "longrope"
    sizes |= dict.fromkeys(_FACTORS, 1) if explicit else {"rope_freqs.weight": 1}
    if keys.get("expert_count"):
        return _mixtral(keys, settings, sizes)
    _no_experts(keys)
    settings["attention_bias"] = _has(head, r"attn_(q|k|v|output)\.bias")
    settings["mlp_bias"] = _has(head, r"ffn_(gate|up|down)\.bias")
    return _described("llama", settings, sizes)


def _mixtral(keys: Keys, settings: Settings, sizes: dict[str, int]) -> Described:
    keys.require("expert_feed_forward_length", settings["intermediate_size"])
    keys.require("expert_weights_norm", True)
    count, used, further = _experts(keys, settings["intermediate_size"])
    settings |= {"num_local_experts": count, "num_experts_per_tok": used}
    return _described("mixtral", settings, sizes | further)


def _dense(keys: Keys, head: GgufHead, kind: str) -> Described:
    settings, sizes = _base(keys, head)
    _no_window(keys, settings)
    _no_experts(keys)
    return _described(kind, settings, sizes)


def _qwen_mixture(keys: Keys, head: GgufHead, kind: str) -> Described:
    settings, sizes = _base(keys, head)
    _no_window(keys, settings)
    keys.require("expert_weights_norm", FAMILIES[kind].gguf_fixed["norm_topk_prob"])
    count, used, further = _experts(keys, keys.whole("expert_feed_forward_length"))
    settings |= {"num_experts": count, "num_experts_per_tok": used, "moe_intermediate_size": further["I"]}
    if kind == "qwen2_moe":
        further["S"] = keys.whole("expert_shared_feed_forward_length")
        settings["shared_expert_intermediate_size"] = further["S"]
    return _described(kind, settings, sizes | further)


def _query_scale(settings: Settings, largest: int) -> int:
    """What queries are divided by the root of: a head's width, but in the largest model of the family."""
    if settings["num_hidden_layers"] == largest:
        return int(settings["hidden_size"] // settings["num_attention_heads"])
    return int(settings["head_dim"])


def _gemma2(keys: Keys, head: GgufHead) -> Described:
    settings, sizes = _base(keys, head)
    _no_experts(keys)
    keys.require("attention.sliding_window_pattern", 2)
    settings |= {
        "tie_word_embeddings": True,
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scale(settings, 46),
    }
    return _described("gemma2", settings, sizes)


def _gemma3(keys: Keys, head: GgufHead) -> Described:
    settings, sizes = _base(keys, head)
    _no_experts(keys)
    period = keys.whole("attention.sliding_window_pattern", 6, low=2)
    local = {"rope_type": "default", "rope_theta": keys.real("rope.freq_base_swa", 10_000.0)}
    window = keys.whole("attention.sliding_window", 0, low=0)
    layers = range(1, settings["num_hidden_layers"] + 1)
    settings |= {
        "sliding_window": window or 4096,
        "layer_types": ["sliding_attention" if window and i % period else "full_attention" for i in layers],
        "rope_parameters": {"full_attention": settings["rope_parameters"], "sliding_attention": local},
        "final_logit_softcapping": keys.real("final_logit_softcapping") if keys.get("final_logit_softcapping")
        else None,
        "query_pre_attn_scalar": _query_scale(settings, 62),
    }  # fmt: skip
    return _described("gemma3_text", settings, sizes)


def _phi3(keys: Keys, head: GgufHead) -> Described:
    settings, sizes = _base(keys, head, some=True)
    _no_experts(keys)
    rope = settings["rope_parameters"]
    rotated = keys.whole("rope.dimension_count", settings["head_dim"])
    rope["partial_rotary_factor"] = rotated / settings["head_dim"]
    context = settings["max_position_embeddings"]
    settings |= {
        # llama.cpp has switched the window off for now; within it the answers are the same.
        "sliding_window": _window(keys, context),
        "original_max_position_embeddings": rope.get("original_max_position_embeddings", context),
    }
    return _described("phi3", settings, sizes | dict.fromkeys(_FACTORS, 1))


def _deepseek(keys: Keys, head: GgufHead) -> Described:
    """Latent attention: version 2 with softmax gating, 3 with sigmoid."""
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count", high=2**16)
    settings, sizes = _outer(keys, head, width)
    attention, further = _latent_attention(keys, head, width, heads)
    sigmoid = keys.whole("expert_gating_func", 1, low=0, high=4)
    if sigmoid not in (0, 1, 2) or keys.get("nextn_predict_layers"):
        raise NotYetError("this gating of experts, or layers that predict further tokens, are not read")
    context = settings["max_position_embeddings"]
    settings |= attention | _latent_experts(keys, sigmoid == 2, settings["num_hidden_layers"])
    settings["rope_parameters"] = _latent_rope(keys, head, further["p"], context)
    sizes |= further | {"E": settings["n_routed_experts"], "I": settings["moe_intermediate_size"]}
    sizes |= {"S": sizes["I"] * settings["n_shared_experts"], "sigmoid": int(sigmoid == 2)}
    return _described(f"deepseek_v{3 if sigmoid == 2 else 2}", settings, sizes)


def _latent_attention(keys: Keys, head: GgufHead, width: int, heads: int) -> tuple[Settings, dict[str, int]]:
    """Widths of the latent attention, in either form that files have it: as latent, or as made from it."""
    parted = _has(head, r"attn_k_b\.weight")
    rank, position = keys.whole("attention.kv_lora_rank"), keys.whole("rope.dimension_count", high=2**16)
    suffix = "_mla" if parted else ""
    key = keys.whole(f"attention.key_length{suffix}", low=position + 1, high=2**16)
    value = keys.whole(f"attention.value_length{suffix}", high=2**16)
    stored = [keys.whole("attention.head_count_kv", heads)]
    stored += [keys.whole(f"attention.{x}_length", width // heads) for x in ("key", "value")]
    if stored != ([1, rank + position, rank] if parted else [heads, key, value]):
        raise broken(f"the GGUF has the latent sizes {stored}, which do not fit")
    query_rank = keys.whole("attention.q_lora_rank") if _has(head, r"attn_q_a\.weight") else 0
    keys.require("attention.q_lora_rank", query_rank)
    plain = key - position
    settings = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": query_rank or None,
        "kv_lora_rank": rank,
        "qk_rope_head_dim": position,
        "qk_nope_head_dim": plain,
        "v_head_dim": value,
    }
    return settings, {
        "A": heads, "q": query_rank, "r": rank, "n": plain, "k": key, "p": position, "v": value,
        "J": heads * key, "R": rank + position, "B": heads * (plain + value), "O": heads * value,
        "parted": int(parted),
    }  # fmt: skip


def _latent_experts(keys: Keys, sigmoid: bool, layers: int) -> Settings:
    count = keys.whole("expert_count", high=2**12)
    groups = keys.whole("expert_group_count", 1, low=0) or 1
    settings: Settings = {
        "n_routed_experts": count,
        "num_experts_per_tok": keys.whole("expert_used_count", high=count),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"),
        "n_shared_experts": keys.whole("expert_shared_count", high=2**12),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
        "first_k_dense_replace": keys.whole("leading_dense_block_count", 0, low=0, high=layers),
    }
    if sigmoid:
        used = keys.whole("expert_group_used_count", 0, low=0) or int(groups == 1)
        if count % groups or not 1 <= used <= groups:
            raise broken(f"the GGUF has {count} experts in {groups} groups")
        return settings | {"n_group": groups, "topk_group": used, "num_nextn_predict_layers": 0}
    keys.require("expert_group_used_count", 0, 1)
    if groups != 1 or settings["norm_topk_prob"]:
        # transformers' class takes the best of a group where llama.cpp adds two, and never normalises.
        raise NotYetError("DeepSeek-V2 with groups of experts or normalised weights is not read")
    return settings | {"topk_method": "greedy"}


def _latent_rope(keys: Keys, head: GgufHead, width: int, context: int) -> Settings:
    rope = rope_parameters(keys, head, width, context)
    multiplier = keys.get("rope.scaling.yarn_log_multiplier")
    if rope["rope_type"] == "default":
        return rope
    if rope["rope_type"] != "yarn" or multiplier is None:
        # llama.cpp scales these scores as if for YaRN under any scaling, which transformers' classes do not.
        raise NotYetError(
            "DeepSeek with positions rescaled other than by YaRN with its multiplier is not read"
        )
    keys.require("rope.scaling.attn_factor", 1.0)
    # The file has a tenth of the factor that scores are scaled by; the waves themselves keep their size.
    scale = round(10 * keys.real("rope.scaling.yarn_log_multiplier"), 6)
    return rope | {"mscale": scale, "mscale_all_dim": scale, "attention_factor": 1.0}


ARCHITECTURES: dict[str, Callable[[Keys, GgufHead], Described]] = {
    "llama": _llama,
    "qwen2": partial(_dense, kind="qwen2"),
    "qwen2moe": partial(_qwen_mixture, kind="qwen2_moe"),
    "qwen3": partial(_dense, kind="qwen3"),
    "qwen3moe": partial(_qwen_mixture, kind="qwen3_moe"),
    "gemma": partial(_dense, kind="gemma"),
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "deepseek2": _deepseek,
}
