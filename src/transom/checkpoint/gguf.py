"""Read the head of a GGUF file: its metadata and where its tensors lie. No tensor is read.

Threat model: a truncated, mangled or hostile file; every length is checked against the file before its use.
Does not protect against: weights that are well-formed and malicious.
Source: the GGUF specification, versions 2 and 3 (ggml/docs/gguf.md). Much faster than the reference reader on
a tokenizer's hundred thousand strings, which is what the gateway's cold start waits for.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` as stored (fastest first), ggml `type_id`, offset in the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset_bytes: int


@dataclass(frozen=True)
class GgufHead:
    """Metadata by key, tensors in file order."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf_head(path: Path) -> GgufHead:
    """Metadata and tensor table of a GGUF file. Raises CheckpointError when they are not whole."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data)
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError, RecursionError):
        raise CheckpointError(
            f"{path} is not a whole GGUF file ({path.stat().st_size} bytes); download it again"
        ) from None


def check_gguf_size(path: Path, head: GgufHead) -> None:
    """Raises CheckpointError when a tensor lies beyond the file's end, or its type is unknown."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    size_bytes = path.stat().st_size
    for tensor in head.tensors:
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.type_id)]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"{path}: {tensor.name} has the unknown ggml type {tensor.type_id}"
            ) from None
        elements = 1
        for side in tensor.shape:
            elements *= side
        end_bytes = tensor.offset_bytes + elements // block * block_bytes
        if end_bytes > size_bytes:
            raise CheckpointError(
                f"{path} is truncated: {tensor.name} ends at byte {end_bytes}, the file at {size_bytes}; "
                "download it again"
            )


class _Cursor:
    """Reads little-endian values one after another; running off the end raises."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        raw = self._data[self.at : self.at + size]
        if len(raw) != size:
            raise ValueError
        self.at += size
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, length = self.scalar("I"), self.scalar("Q")
        if length > len(self._data) - self.at:
            raise ValueError
        if item in (_STRING, _ARRAY):
            return [self.value(item) for _ in range(length)]
        form = f"<{length}{_SCALARS[item]}"
        values = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return list(values)


def _read(data: mmap.mmap) -> GgufHead:
    cursor = _Cursor(data)
    if data[:4] != b"GGUF":
        raise ValueError
    cursor.at = 4
    if cursor.scalar("I") not in (2, 3):
        raise ValueError
    tensor_count, key_count = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", 32))
    start = -(-cursor.at // alignment) * alignment
    return GgufHead(metadata, tuple(GgufTensor(n, s, t, start + offset) for n, s, t, offset in entries))


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
    return name, shape, cursor.scalar("I"), cursor.scalar("Q")
