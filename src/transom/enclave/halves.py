"""A checkpoint's two halves on disk: the model for the engine, and where its embedding table lies in it.

The embedding is found by its name in the safetensors header and read as raw bytes, a slice of rows at a time,
so no model is loaded and rows keep their bits. A GGUF is dequantised to a Hugging Face directory first.
Threat model and limits: as `checkpoint.source`, which has checked the files before they are read here.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from transom.checkpoint.families import FAMILIES, family_of
from transom.checkpoint.load import load
from transom.checkpoint.source import Source, read_json, read_safetensors_head, weight_files
from transom.checkpoint.tokenizer import write_tokenizer
from transom.enclave.manifest import ITEM_BYTES, TableDtype
from transom.errors import CheckpointError, NotYetError

_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")


@dataclass(frozen=True)
class EmbeddingFile:
    """A table of rows x width at an offset of a safetensors file."""

    path: Path
    offset_bytes: int
    rows: int
    width: int
    dtype: TableDtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * ITEM_BYTES[self.dtype]

    def read(self, start: int, stop: int) -> bytes:
        """The raw little-endian bytes of rows start..stop."""
        with self.path.open("rb") as file:
            file.seek(self.offset_bytes + start * self.row_bytes)
            raw = file.read((stop - start) * self.row_bytes)
        if len(raw) != (stop - start) * self.row_bytes:
            raise CheckpointError(f"{self.path} became shorter while it was read; pack again")
        return raw


def write_server_half(found: Source, folder: Path) -> None:
    """Everything an engine needs, in `folder`: a directory's files (hard links, or copies), or a converted
    GGUF. Raises CheckpointError, NotYetError, OSError."""
    folder.mkdir()
    if found.kind == "gguf":
        _convert(found, folder)
        return
    beside = {str(path.relative_to(found.path)) for one in _BESIDE for path in found.path.glob(one)}
    for name in sorted(beside | set(weight_files(found.path))):
        (folder / name).parent.mkdir(exist_ok=True)
        try:
            os.link((found.path / name).resolve(), folder / name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(found.path / name, folder / name)


def locate_embedding(folder: Path) -> EmbeddingFile:
    """The word embedding of a checked checkpoint directory. Raises CheckpointError, NotYetError."""
    config = read_json(folder / "config.json")
    family = family_of(config)
    if family is None or not family.lookup:
        known = ", ".join(sorted(other.kind for other in FAMILIES.values() if other.lookup))
        raise NotYetError(
            f"the embedding of a {config.get('model_type')!r} model is not known; known: {known}"
        )
    names = family.names.stored_embedding
    for file in weight_files(folder):
        header, data_start = read_safetensors_head(folder / file)
        for name in names:
            if name in header:
                return _embedding(folder / file, name, header[name], data_start)
    raise CheckpointError(f"{folder} holds none of the tensors {', '.join(names)}; restore it")


def _embedding(path: Path, name: str, entry: dict[str, Any], data_start: int) -> EmbeddingFile:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in get_args(TableDtype):
        raise NotYetError(
            f"{name} in {path} is of dtype {dtype}; {', '.join(get_args(TableDtype))} are known"
        )
    if len(shape) != 2 or min(shape) < 1 or end - begin != shape[0] * shape[1] * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{name} in {path} has an impossible shape; download it again")
    return EmbeddingFile(path, data_start + begin, shape[0], shape[1], cast(TableDtype, dtype))


def _convert(found: Source, folder: Path) -> None:
    from safetensors import SafetensorError

    checkpoint = load(found.path)
    if checkpoint.tokenizer is None:  # cannot be for a GGUF
        raise CheckpointError(f"{found.path} has no tokenizer")
    try:
        checkpoint.model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(0, f"the weights could not be written: {error}") from None
    write_tokenizer(checkpoint.tokenizer, folder, folder)
