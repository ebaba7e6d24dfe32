"""How a GGUF head rescales positions, as transformers' `rope_parameters`.

Threat model and limits: as `gguf_keys`.
Source: llama.cpp (load_hparams, llama_context, ggml_rope_ext): an unnamed scaling is linear; YaRN brings its
own magnitude, which `attn_factor` multiplies; a tensor of divisors, one for each pair of a head, is how
Llama 3's scaling is stored.

Shapes: K rotated width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transom.checkpoint.gguf import GgufHead
from transom.checkpoint.gguf_keys import Keys
from transom.errors import CheckpointError, NotYetError

Settings = dict[str, Any]
_DIVISORS, _LONG, _SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# Every Llama 3 was trained with the first; only the length divided by the bounds has an influence.
_LENGTHS = (8192, *(2**n for n in range(4, 21) if n != 13))
_LOW, _HIGH = 1.0, 4.0


def rope_parameters(keys: Keys, head: GgufHead, width: int, context: int) -> Settings:
    """The rotary settings. `width` is the rotated width of a head, `context` the length trained for."""
    theta = keys.real("rope.freq_base", 10_000.0)
    kind = keys.get("rope.scaling.type", "linear")
    factor = _factor(keys)
    original = keys.whole("rope.scaling.original_context_length", context)
    magnitude = keys.real("rope.scaling.attn_factor", 1.0)
    keys.flag("rope.scaling.finetuned", True)  # says how it was made; nothing reads it
    keys.require("rope.scaling.alpha", 0.0, 1.0)
    for name, default in (("ext", 1.0), ("attn", 1.0), ("beta_fast", 32.0), ("beta_slow", 1.0)):
        # llama.cpp leaves these to its command line for most architectures.
        keys.require(f"rope.scaling.yarn_{name}{'' if 'beta' in name else '_factor'}", default)
    tensors = {name for name in (_DIVISORS, _LONG, _SHORT) if any(t.name == name for t in head.tensors)}
    plain = {"rope_type": "default", "rope_theta": theta}
    if kind == "yarn" and not tensors:
        yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        scale = magnitude * (1.0 + 0.1 * math.log(factor))
        return plain | yarn | {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": scale}
    if kind not in ("none", "linear", "longrope") or (tensors and kind == "none"):
        raise NotYetError(f"positions rescaled by {str(kind)[:24]!r} and {len(tensors)} tensors are not read")
    if kind != "none" and factor != 1.0:
        if tensors or magnitude != 1.0 or kind == "longrope":
            raise NotYetError("positions rescaled in several ways at once are not read")
        return plain | {"rope_type": "linear", "factor": factor}
    if tensors == {_LONG, _SHORT}:
        short, long = (_values(head, name, width) for name in (_SHORT, _LONG))
        return _explicit(theta, short, long, magnitude, original)
    if magnitude != 1.0 or kind == "longrope" or tensors not in (set(), {_DIVISORS}):
        raise NotYetError("positions rescaled by a magnitude, or with half of their tensors, are not read")
    return _from_divisors(theta, _values(head, _DIVISORS, width), context) if tensors else plain


def _factor(keys: Keys) -> float:
    """By what positions are divided; 0 and nothing mean 1. The old key counts where the new one is absent."""
    new, old = keys.get("rope.scaling.factor"), keys.get("rope.scale_linear")
    name = "rope.scale_linear" if new is None and old is not None else "rope.scaling.factor"
    if keys.get(name) == 0.0:
        return 1.0
    factor = keys.real(name, 1.0)
    if factor < 1.0:
        raise NotYetError(f"positions stretched by {factor} are not read")
    return factor


def _values(head: GgufHead, name: str, width: int) -> list[float]:
    values = head.rope.get(name, ())
    if len(values) != width // 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise CheckpointError(
            f"{name} must hold {width // 2} positive float32 values; download the GGUF again"
        )
    return [float(str(np.float32(value))) for value in values]


def _explicit(
    theta: float, short: list[float], long: list[float], magnitude: float, original: int
) -> Settings:
    """Divisors given one by one, which transformers calls longrope."""
    return {
        "rope_type": "longrope", "rope_theta": theta, "short_factor": short, "long_factor": long,
        "attention_factor": magnitude, "original_max_position_embeddings": original,
    }  # fmt: skip


def _from_divisors(theta: float, divisors: list[float], context: int) -> Settings:
    """Llama 3's scaling by its parameters where they give these very divisors, else the divisors."""
    factor, stored = max(divisors), np.asarray(divisors, np.float32)
    if factor == 1.0 == min(divisors):
        return {"rope_type": "default", "rope_theta": theta}
    for length in _LENGTHS:
        made = llama3_divisors(theta, 2 * len(divisors), factor, length)
        if np.allclose(made, stored, rtol=3e-7, atol=0):
            return {
                "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": _LOW,
                "high_freq_factor": _HIGH, "original_max_position_embeddings": length,
            }  # fmt: skip
    return _explicit(theta, divisors, divisors, 1.0, context)


def llama3_divisors(
    theta: float, width: int, factor: float, length: int, low: float = _LOW, high: float = _HIGH
) -> np.ndarray:
    """By how much Llama 3 slows each pair [K/2]: waves longer than the length by the factor, short not."""
    turns = theta ** -(np.arange(0, width, 2) / width) / (2 * np.pi) * length
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - share) / factor + share), np.float32)
