"""A plain checkpoint that can be obfuscated: checked, hashed, and known to have transforms.

Threat model: as `checkpoint.source`: broken files, and pickles, which are refused.
Does not protect against: well-formed weights that are malicious. A fingerprint says which checkpoint this is;
it is in the card, so the host learns which public model was obfuscated, as it may from the sizes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.checkpoint.generation import generation_settings
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import gguf_config, gguf_model
from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.resolve import resolved_config
from transom.checkpoint.source import Source, check, find, read_json, weight_files
from transom.checkpoint.structure import quantised_by
from transom.errors import CheckpointError, NotYetError, ReplaceableError
from transom.files import file_sha256
from transom.obfuscation.keys import Settings
from transom.obfuscation.plan import further_tokens, plan, require_planned
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

    Raises CheckpointError (absent, broken, truncated, special ids outside the vocabulary), NotYetError (an
    architecture without a transform), ReplaceableError (quantised weights in a directory), MissingExtraError.
    """
    found = find(source)
    check(found)
    if found.kind == "gguf":
        head = read_gguf_head(found.path)
        require_planned(gguf_model(head).settings)  # before a library is imported for what has no plan,
        config = _planned(gguf_config(head))  # and gigabytes of it are dequantised
        return Plain(found, config, _fingerprint(head.paths), load(found.path))
    raw = read_json(found.path / "config.json")
    require_planned(raw)
    method = quantised_by(raw)
    if method not in (None, "fp8"):
        raise ReplaceableError(
            f"{found.path} holds weights quantised by {method}, which cannot be multiplied by keys; "
            "give what they were made from (bf16, fp16 or fp8), or a GGUF, which is dequantised here"
        )
    planned = _planned(resolved_config(found))
    generation_settings(found.path, planned["vocab_size"])
    left_out = further_tokens(locate(found.path), planned)
    files = [found.path / name for name in ("config.json", *weight_files(found.path))]
    return Plain(found, planned, _fingerprint(files), left_out=tuple(left_out))


def _planned(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration, if there are transforms for it (NotYetError otherwise)."""
    plan(config, Settings())
    name = str((config.get("architectures") or ["none"])[0])
    if not name.endswith("ForCausalLM"):
        raise NotYetError(f"cannot obfuscate the architecture {name[:80]!r} yet; language models alone")
    if type(config.get("vocab_size")) is not int:
        raise CheckpointError("config.json names no vocab_size; restore it")
    return config


def _fingerprint(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return file_sha256(paths[0])
    record = {path.name: file_sha256(path) for path in paths}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
