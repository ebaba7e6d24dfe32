"""The weights of a GGUF as float32, one after another, under their names in transformers.

Threat model and limits: as `gguf_config`, which knows where each weight lies. Source: ggml's block formats,
as the `gguf` package dequantises them.

Shapes: H heads, K head width, A heads, n head width, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.gguf import GgufHead, GgufTensor
from transom.checkpoint.gguf_config import GgufModel, Part, gguf_model

if TYPE_CHECKING:
    from torch import Tensor

Values = NDArray[np.float32]


def gguf_weights(head: GgufHead, model: GgufModel | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in the model's class, float32, one dequantised at a time.

    Raises what `gguf_model` does, before any tensor is read.
    """
    import torch

    model = model or gguf_model(head)
    files = [np.memmap(path, mode="r") for path in head.paths]
    width = model.settings.get("head_dim") or 1
    for name, parts in model.weights.items():
        values = [_FORMS[part.form](_read(files, part), width) for part in parts]
        whole = values[0] if len(values) == 1 else np.concatenate(values, axis=-2)
        if name.endswith("kv_b_proj.weight"):
            whole = whole.reshape(-1, whole.shape[-1])  # [A, n + v, r] to [A (n + v), r]
        yield name, torch.from_numpy(np.ascontiguousarray(whole, dtype=np.float32))


def _read(files: list[np.memmap], part: Part) -> Values:
    if part.tensor is None:
        return np.zeros(part.shape, np.float32)
    return _dequantized(files[part.tensor.part], part.tensor)


def _dequantized(file: np.memmap, tensor: GgufTensor) -> Values:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    shape = tensor.shape[::-1]
    raw = np.array(file[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes])
    values: Values = dequantize(raw.reshape(*shape[:-1], -1), GGMLQuantizationType(tensor.type_id))
    return values.reshape(shape)


def _halves_apart(weight: Values, width: int) -> Values:
    """Rows [H, K/2, 2] of interleaved pairs to [H, 2, K/2]; a bias is a weight of one column."""
    pairs = weight.reshape(-1, width // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


_FORMS: dict[str, Callable[[Values, int], Values]] = {
    "": lambda weight, _: weight,
    "pairs": _halves_apart,
    "less one": lambda weight, _: weight - np.float32(1),
    "row": lambda weight, _: weight[None],
    "latent keys": lambda weight, _: weight.swapaxes(1, 2),  # [A, r, n] to [A, n, r]
}
