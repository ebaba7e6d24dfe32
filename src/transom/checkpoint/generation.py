"""A checkpoint's generation settings, read in one way by all who load, obfuscate or serve it.

Threat model: broken files. transformers takes an unreadable one for none and a text for a number, other
engines fail on them or read them otherwise; such a file is refused, whoever reads it.
Does not protect against: settings that are possible and wrong.
Source: generation_config.json as transformers writes it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import damaged, read_json
from transom.checkpoint.structure import check_ids

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint

GENERATION_FILE = "generation_config.json"
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_length")
GGUF_SAMPLING = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
}  # llama.cpp's, as no file says
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_k": (0, 2**31 - 1), "top_p": (1e-6, 1), "min_p": (0, 1),
    "repetition_penalty": (0.01, 2),
}  # fmt: skip
SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id")


def usual_sampling(checkpoint: Checkpoint) -> dict[str, float]:
    """How tokens are drawn where nobody says: as a checkpoint's settings have it, a GGUF's as by llama.cpp.
    A setting that no engine could follow (a `top_p` of 7) is left out."""
    if checkpoint.source.kind == "gguf":
        return dict(GGUF_SAMPLING)
    found = {name: getattr(checkpoint.model.generation_config, name, None) for name in _RANGES}
    return {
        name: int(value) if name == "top_k" else float(value)
        for name, value in found.items()
        if value is not None and _RANGES[name][0] <= value <= _RANGES[name][1]
    }


def generation_settings(folder: Path, vocabulary: int | None) -> dict[str, Any]:
    """The settings of a folder; none if it has no such file. Raises CheckpointError.

    Special ids are of the vocabulary, where it is known. A padding id outside it is left out: no model is
    given one, and some checkpoints say so (-1, or the vocabulary's size) that they have none.
    """
    file = folder / GENERATION_FILE
    settings = read_json(file) if file.is_file() else {}
    for name in SAMPLING:
        value = settings.get(name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise damaged(f"{file}: {name} is {str(value)[:80]!r}; it must be a number")
    if vocabulary is None:
        return settings
    pad = settings.get("pad_token_id")
    if type(pad) is int and (pad == -1 or pad >= vocabulary):
        del settings["pad_token_id"]
    for name in SPECIALS:
        check_ids(file, name, settings.get(name), vocabulary)
    return settings
