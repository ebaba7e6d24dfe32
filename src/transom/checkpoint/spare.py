"""Tensors of a file that its model leaves unread because they take no part in what it computes.

Files hold more than one class reads: the head of the task they were trained for, a pooler, the causal mask
that older classes kept with their weights. transformers drops them, and answers are the same without them.
Threat model: a tensor that another engine, or the model's authors, would compute with, dropped in silence.
Only what is known by name, and for masks by shape, is spare; a decoder of `CHECKED` has none of these.
Does not protect against: a head of one of these names that is meant to be used beside the model.
Source: transformers' classes and the files that its older versions wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection

from transom.checkpoint.families import CHECKED

_RECOMPUTED = ("rotary_emb.inv_freq", ".position_ids")
_HEADS = {
    "cls", "cls.predictions", "cls.seq_relationship", "classifier", "discriminator_predictions",
    "generator_lm_head", "generator_predictions", "lm_head", "lm_predictions", "mask_predictions", "pooler",
    "pre_classifier", "predictions", "qa_outputs", "score", "sop_classifier", "vocab_layer_norm",
    "vocab_projector", "vocab_transform",
}  # fmt: skip
_MASK = re.compile(r"(?:^|\.)(?:attn|attention)\.(?:bias|causal_mask)$")
_MASKED = re.compile(r"(?:^|\.)(?:attn|attention)\.masked_bias$")


def is_spare(name: str, shape: tuple[int, ...], *, kind: str, trunk: str, modules: Collection[str]) -> bool:
    """Whether a tensor that a class does not read is spare.

    `kind` is the model_type, `trunk` the name of the class's base model in it, `modules` the class's parts.
    """
    if name.endswith(_RECOMPUTED):
        return True
    return kind not in CHECKED and (_is_mask(name, shape) or _is_head(name, trunk, modules))


def _is_mask(name: str, shape: tuple[int, ...]) -> bool:
    if _MASKED.search(name):
        return math.prod(shape) == 1
    return _MASK.search(name) is not None and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _is_head(name: str, trunk: str, modules: Collection[str]) -> bool:
    """Whether it lies in a head that this class has not, beside the trunk or at its end."""
    local = name.removeprefix(f"{trunk}.")
    parts = local.split(".")
    heads = _HEADS & {".".join(parts[:count]) for count in range(1, len(parts))}
    return any(head not in modules and f"{trunk}.{head}" not in modules for head in heads)
