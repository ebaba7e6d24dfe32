"""Read the head of a GGUF file: its metadata and where its tensors lie. No weight is read.

Threat model: a truncated, mangled or hostile file. Every count and length is checked against what could lie
in the rest of the file, and against bounds that no real model comes near, before anything is made of it.
Tensors must lie one after another without gap or overlap, as llama.cpp demands.
Does not protect against: weights that are well-formed and malicious.
Source: the GGUF specification, versions 2 and 3 (ggml/docs/gguf.md). Much faster than the reference reader on
a tokenizer's hundred thousand strings, which is what the gateway's cold start waits for.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transom.errors import CheckpointError, NotYetError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# ggml's types by number: name, values a block, bytes a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MAX_KEYS, _MAX_TENSORS, _MAX_ITEMS = 2**14, 2**17, 2**22  # items: of all arrays together
_MAX_HEAD_BYTES, _MAX_SIDE, _MAX_ALIGNMENT, _MAX_ROPE = 2**28, 2**40, 2**16, 2**10
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def broken(what: str) -> CheckpointError:
    """The error for what a download spoils."""
    return CheckpointError(f"{what}; download it again")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: `shape` as stored (fastest first), ggml `type_id`, offset in the file `part`."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset_bytes: int
    part: int = 0

    @property
    def size_bytes(self) -> int:
        """What its values take in the file."""
        _, block, block_bytes = TYPES[self.type_id]
        return math.prod(self.shape) // block * block_bytes


@dataclass(frozen=True)
class GgufHead:
    """Metadata by key, tensors in file order, and the files that hold them. `rope` has the few values of the
    tensors that rescale positions, by name: they are configuration in the form of a tensor."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    paths: tuple[Path, ...] = ()
    rope: dict[str, tuple[float, ...]] = field(default_factory=dict)


def read_gguf_head(path: Path) -> GgufHead:
    """Metadata and tensor table of a GGUF file, of all its parts where it is split.

    Raises CheckpointError when they are not whole, NotYetError for big-endian files and old versions.
    """
    head = _read_one(path)
    count = head.metadata.get("split.count", 1)
    if count == 1:
        return head
    if not _is_whole(count, 0, 100_000) or not _is_whole(head.metadata.get("split.no"), 0, 100_000):
        raise broken(f"{path} says that it is split, and not into how many parts")
    return head if count == 0 else _joined(path, head, count)


def _read_one(path: Path) -> GgufHead:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(path, data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        why = f": {error}" if type(error) is _BrokenError else ""
        raise broken(f"{path} is not a whole GGUF file ({path.stat().st_size} bytes){why}") from None


class _BrokenError(ValueError):
    """What is wrong with the head, in words of ours."""


class _Cursor:
    """Reads little-endian values one after another; running off the end raises."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0
        self._limit = min(len(data), _MAX_HEAD_BYTES)
        self._items_left = _MAX_ITEMS

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        return self._strings(1)[0]

    def count(self, most: int, least_bytes: int, what: str) -> int:
        """A count of things that take at least so many bytes each, which must fit in the rest of the file."""
        value = int(self.scalar("Q"))
        if value > most or value * least_bytes > len(self._data) - self.at:
            raise _BrokenError(f"it counts {value} {what}")
        return value

    def value(self) -> Any:
        kind = self.scalar("I")
        if kind == _STRING:
            return self.string()
        return self._array() if kind == _ARRAY else self._numbers(kind, 1)[0]

    def _array(self) -> list[Any]:
        kind = self.scalar("I")
        if kind == _ARRAY:
            raise _BrokenError("it holds an array of arrays")
        width = 8 if kind == _STRING else struct.calcsize("<" + _SCALARS[kind])
        length = self.count(self._items_left, width, "items in an array")
        self._items_left -= length
        return self._strings(length) if kind == _STRING else self._numbers(kind, length)

    def _numbers(self, kind: int, length: int) -> list[Any]:
        form = f"<{length}{_SCALARS[kind]}"
        values = list(struct.unpack_from(form, self._data, self.at))
        self.at += struct.calcsize(form)
        if kind != _BOOL:
            return values
        if not set(values) <= {0, 1}:
            raise _BrokenError("it holds a truth value that is neither 0 nor 1")
        return [bool(value) for value in values]

    def _strings(self, length: int) -> list[str]:
        data, at, limit, size_of = self._data, self.at, self._limit, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(length):
            (size,) = size_of(data, at)
            start, at = at + 8, at + 8 + size
            if at > limit:
                raise _BrokenError(f"it holds a string of {size} bytes")
            found.append(str(data[start:at], "utf-8"))
        self.at = at
        return found


def _read(path: Path, data: mmap.mmap) -> GgufHead:
    cursor = _Cursor(data)
    if data[:4] != b"GGUF":
        raise _BrokenError("it does not begin as one")
    cursor.at = 4
    _check_version(path, cursor.scalar("I"))
    tensor_count = cursor.count(_MAX_TENSORS, 32, "tensors")
    key_count = cursor.count(_MAX_KEYS, 13, "keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        if key in metadata:
            raise _BrokenError(f"it has the key {key[:64]!r} twice")
        metadata[key] = cursor.value()
    entries = [_entry(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not _is_whole(alignment, 1, _MAX_ALIGNMENT) or alignment & (alignment - 1):
        raise _BrokenError("general.alignment is no power of two")
    start = _aligned(cursor.at, alignment)
    tensors = tuple(replace(tensor, offset_bytes=start + tensor.offset_bytes) for tensor in entries)
    _check_places(tensors, start, alignment, len(data))
    rope = {t.name: values for t in tensors if (values := _rope_values(t, data))}
    return GgufHead(metadata, tensors, (path,), rope)


def _check_version(path: Path, version: int) -> None:
    if version in (2, 3):
        return
    if version in (2 << 24, 3 << 24):
        raise NotYetError(f"{path} is a big-endian GGUF, which is not read; convert it to little-endian")
    if version == 1:
        raise NotYetError(f"{path} is a GGUF of version 1, which nothing reads any more; convert it anew")
    raise _BrokenError(f"it has version {version}; known are 2 and 3")


def _entry(cursor: _Cursor) -> GgufTensor:
    name, sides = cursor.string(), cursor.scalar("I")
    if not 1 <= sides <= 4:
        raise _BrokenError(f"the tensor {name[:64]!r} has {sides} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(sides))
    tensor = GgufTensor(name, shape, cursor.scalar("I"), cursor.scalar("Q"))
    if not all(1 <= side <= _MAX_SIDE for side in shape):
        raise _BrokenError(f"the tensor {name[:64]!r} has an impossible shape")
    if tensor.type_id not in TYPES:
        raise _BrokenError(f"the tensor {name[:64]!r} has the unknown ggml type {tensor.type_id}")
    if shape[0] % TYPES[tensor.type_id][1]:
        raise _BrokenError(
            f"the rows of {name[:64]!r} are no whole number of {TYPES[tensor.type_id][0]} blocks"
        )
    return tensor


def _check_places(tensors: tuple[GgufTensor, ...], start: int, alignment: int, size_bytes: int) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        name = tensor.name[:64]
        if tensor.name in seen:
            raise _BrokenError(f"it has the tensor {name!r} twice")
        seen.add(tensor.name)
        if tensor.offset_bytes != start:
            raise _BrokenError(
                f"{name!r} starts at byte {tensor.offset_bytes}, not at {start} where it should"
            )
        if tensor.offset_bytes + tensor.size_bytes > size_bytes:
            raise _BrokenError(f"truncated, {name!r} ends at byte {tensor.offset_bytes + tensor.size_bytes}")
        start = _aligned(start + tensor.size_bytes, alignment)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _rope_values(tensor: GgufTensor, data: mmap.mmap) -> tuple[float, ...]:
    if tensor.name not in ROPE_TENSORS or tensor.type_id != 0 or tensor.size_bytes > 4 * _MAX_ROPE:
        return ()
    return struct.unpack_from(f"<{tensor.size_bytes // 4}f", data, tensor.offset_bytes)


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _joined(path: Path, first: GgufHead, count: int) -> GgufHead:
    named = _PART.fullmatch(path.name)
    if not named or int(named[3]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts of a model; parts must keep their names, "
            f"such as {path.stem.split('-0')[0]}-00001-of-{count:05}.gguf"
        )
    paths = [path.with_name(f"{named[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    if first.metadata["split.no"] != 0 or path != paths[0]:
        raise CheckpointError(f"{path.name} is not the first of {count} parts of a model; give {paths[0]}")
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        raise broken(f"{path} lacks {len(missing)} of its parts, first {missing[0]}")
    heads = [first, *(_read_one(other) for other in paths[1:])]
    for i, head in enumerate(heads):
        _check_part(paths[i], head, i, first)
    tensors = tuple(replace(t, part=i) for i, head in enumerate(heads) for t in head.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise CheckpointError(f"the parts of {path} have tensors in common; download them again")
    if first.metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise CheckpointError(f"the parts of {path} do not hold all of its tensors; download them again")
    return GgufHead(first.metadata, tensors, tuple(paths), {k: v for h in heads for k, v in h.rope.items()})


def _check_part(path: Path, head: GgufHead, number: int, first: GgufHead) -> None:
    wrong = (head.metadata.get("split.no"), head.metadata.get("split.count")) != (
        number, first.metadata["split.count"],
    )  # fmt: skip
    other = [k for k, v in head.metadata.items() if k != "split.no" and first.metadata.get(k, v) != v]
    if wrong or other:
        raise broken(f"{path} does not belong to the parts beside it")
    foreign = [key for key in head.metadata if key not in first.metadata]
    if foreign:
        raise NotYetError(f"{path} describes the model anew ({foreign[0][:64]!r}), and is not the first part")
