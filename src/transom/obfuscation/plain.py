"""A plain checkpoint that can be obfuscated: checked, hashed, and known to have transforms.

Threat model: as `checkpoint.source`: broken files, and pickles, which are refused.
Does not protect against: well-formed weights that are malicious. A fingerprint says which checkpoint this is;
it is in the card, so the host learns which public model was obfuscated, as it may from the sizes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.source import Source, check, find, read_json, weight_files
from transom.errors import CheckpointError, ReplaceableError
from transom.files import file_sha256
from transom.obfuscation.keys import Settings
from transom.obfuscation.plan import further_tokens, plan
from transom.obfuscation.shards import locate


@dataclass(frozen=True)
class Plain:
    """A source that can be obfuscated: where it is, its configuration, its fingerprint.

    `loaded` is a GGUF's model, which has no other form that could be read tensor by tensor. `left_out` are
    tensors that the output does without.
    """

    found: Source
    config: Mapping[str, Any]
    fingerprint: str
    loaded: Checkpoint | None = dataclasses.field(default=None, repr=False)
    left_out: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """The number of ids: rows of the embedding, which may exceed the tokenizer's."""
        return int(self.config["vocab_size"])


def open_source(source: str | Path) -> Plain:
    """Check a checkpoint and hash it.

    Raises CheckpointError (absent, broken, truncated), NotYetError (an architecture without a transform),
    ReplaceableError (quantised weights in a directory), MissingExtraError.
    """
    found = find(source)
    check(found)
    if found.kind == "gguf":
        loaded = load(found.path)
        config = {**loaded.model.config.to_dict(), "architectures": [type(loaded.model).__name__]}
        return Plain(found, _planned(config), file_sha256(found.path), loaded)
    config = read_json(found.path / "config.json")
    if "quantization_config" in config and _method(config) != "fp8":
        raise ReplaceableError(
            f"{found.path} holds weights quantised by {_method(config)}, which cannot be multiplied by keys; "
            "give what they were made from (bf16, fp16 or fp8), or a GGUF, which is dequantised here"
        )
    planned = _planned(config)
    left_out = further_tokens(locate(found.path), planned)
    return Plain(found, planned, _fingerprint(found.path), left_out=tuple(left_out))


def _planned(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, if there are transforms for it (NotYetError otherwise)."""
    plan(config, Settings())
    if not isinstance(config.get("vocab_size"), int):
        raise CheckpointError("config.json names no vocab_size; restore it")
    return config


def _method(config: Mapping[str, Any]) -> str:
    record = config["quantization_config"]
    return str(record.get("quant_method", "an unnamed method"))[:40] if isinstance(record, dict) else "?"


def _fingerprint(folder: Path) -> str:
    names = ["config.json", *weight_files(folder)]
    record = {name: file_sha256(folder / name) for name in names}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
