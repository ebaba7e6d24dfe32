"""Read the keys of a GGUF head one by one, and know at the end which of them nobody read.

Threat model: a head that says something about the model in a key that this reader does not know, which would
make another model of it in silence. Such a key is an error by name. Values out of range are errors, too.
Does not protect against: a value that is possible and wrong.
Source: the keys that llama.cpp reads (src/llama-arch.cpp) and its writer's names (gguf-py, constants.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from transom.checkpoint.gguf import GgufHead, broken
from transom.errors import CheckpointError, NotYetError

MOST = 2**31 - 1
_READ_ELSEWHERE = {
    f"general.{word}" for word in ("architecture", "alignment", "type", "quantization_version")
}
# The rest of a key by which a model is described, whatever namespace a mangled or mislabelled head has it in.
# Anything else outside the architecture's describes the file, its making, or how to sample.
_MODEL_WORDS = (
    "alignment", "architecture", "attention", "block_count", "context_length", "embedding_length",
    "feed_forward_length", "rope", "vocab_size", "logit_scale", "final_logit_softcapping", "residual_scale",
    "embedding_scale", "attn_logit_softcapping", "leading_dense_block_count", "ssm", "pooling_type",
    "quantization_version", "ggml", "no", "count", "tensors", "tensor_extra",
    "expert_count", "expert_used_count", "expert_gating_func", "expert_weights_scale", "expert_weights_norm",
)  # fmt: skip


class Keys:
    """The keys under the architecture's prefix; each must be asked for before `finish`."""

    def __init__(self, head: GgufHead, architecture: str) -> None:
        self._data, self._prefix = head.metadata, f"{architecture}."
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value as stored."""
        self._read.add(name)
        return self._data.get(self._prefix + name, default)

    def whole(self, name: str, default: int | None = None, low: int = 1, high: int = MOST) -> int:
        """A whole number. One for each layer is that number where they are equal (NotYetError otherwise)."""
        value = self.get(name, default)
        if isinstance(value, list) and value:
            if len(set(value)) != 1 or len(value) != self._data.get(f"{self._prefix}block_count"):
                raise NotYetError(f"{self._prefix}{name} differs from layer to layer, which is not read")
            value = value[0]
        if value is None:
            raise broken(f"the GGUF lacks the key {self._prefix}{name}")
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._impossible(name, value)
        return value

    def real(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number above `low`, as the shortest decimal that is the stored float32."""
        value = self.get(name, default)
        if value is None:
            raise broken(f"the GGUF lacks the key {self._prefix}{name}")
        if not isinstance(value, float) or not math.isfinite(value) or value <= low:
            raise self._impossible(name, value)
        return float(str(np.float32(value)))

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._impossible(name, value)
        return value

    def require(self, name: str, *allowed: Any) -> None:
        """Raises NotYetError unless the key is absent or has one of the values that change nothing."""
        value = self.get(name)
        if value is not None and value not in allowed:
            raise NotYetError(f"{self._prefix}{name} is {_shown(value)}, which is not read")

    def finish(self) -> None:
        """Raises NotYetError for a key about the model that was not read."""
        for key in self._data:
            space, _, rest = key.partition(".")
            word = rest.partition(".")[0]
            if key.startswith(self._prefix):
                known = key[len(self._prefix) :] in self._read
            else:
                known = space in ("tokenizer", "split", "quantize") or key in _READ_ELSEWHERE
                known = known or word not in _MODEL_WORDS
            if not known:
                raise NotYetError(
                    f"the GGUF has the key {key[:96]!r}, which is not read; give its source model"
                )

    def _impossible(self, name: str, value: Any) -> CheckpointError:
        return broken(f"{self._prefix}{name} is {_shown(value)}, which no model has")


def _shown(value: Any) -> str:
    return (
        repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__} ({str(value)[:24]!r})"
    )


def check_general(head: GgufHead) -> None:
    """Raises NotYetError when the file is no model, or its quantisation is of another version."""
    kind = head.metadata.get("general.type", "model")
    if kind != "model":
        raise NotYetError(f"the GGUF is of type {str(kind)[:24]!r}, not a model; give the model's own file")
    version = head.metadata.get("general.quantization_version", 2)
    if version != 2:
        raise NotYetError(f"the GGUF has weights of quantisation version {str(version)[:24]}; known is 2")


def token_ids(head: GgufHead, vocabulary: int) -> dict[str, Any]:
    """The ids that begin, end and pad a text. One outside the vocabulary never occurs; llama.cpp drops it."""
    data = head.metadata
    tokens = data.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != vocabulary:
        raise broken(f"the GGUF has {len(tokens)} tokens and an embedding of {vocabulary} rows")

    def known(role: str) -> int | None:
        value = data.get(f"tokenizer.ggml.{role}_token_id")
        is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocabulary
        return value if is_id else None

    ends = list(dict.fromkeys(i for i in map(known, ("eos", "eot", "eom")) if i is not None))
    return {
        "bos_token_id": known("bos"),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": known("padding"),
    }
