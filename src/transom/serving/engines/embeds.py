"""Embeddings as the two dialects want them in JSON: base64 of safetensors, or of `torch.save` for vLLM.

Both carry float32, which every engine takes and casts to the type its model runs in.
Threat model: none; encoding hides nothing. A pickle is written here for vLLM and never read anywhere.
Does not protect: whoever has the model's table maps each row back to its token.
Source: vLLM, `vllm/renderers/embed_utils.py` (a dense floating tensor [tokens, hidden size]).

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import base64
import io

import numpy as np

from transom.errors import extra


def as_safetensors(embeds_TD: np.ndarray) -> str:
    """Base64 of safetensors bytes that hold one tensor, `prompt_embeds`, float32 [T, D]."""
    from safetensors.numpy import save

    return base64.b64encode(save({"prompt_embeds": _float32(embeds_TD)})).decode()


def as_torch_save(embeds_TD: np.ndarray) -> str:
    """Base64 of `torch.save` of a dense float32 tensor [T, D]. Raises MissingExtraError without torch."""
    with extra("models", "torch"):
        import torch
    buffer = io.BytesIO()
    torch.save(torch.from_numpy(_float32(embeds_TD)), buffer)
    return base64.b64encode(buffer.getbuffer()).decode()


def packed_floats(values: np.ndarray) -> str:
    """Base64 of the numbers as float32, as features of states are sent."""
    return base64.b64encode(_float32(values).tobytes()).decode()


def _float32(embeds_TD: np.ndarray) -> np.ndarray:
    """Contiguous, little-endian and with memory of its own: a view would carry its whole base along."""
    return np.array(embeds_TD, dtype="<f4", order="C")
