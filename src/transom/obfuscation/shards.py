"""Tensors in and out of safetensors files, one at a time: where the source's lie, and shards as they grow.

The format puts a header before the data, and the header needs every shape. Room for it is left at the start
and filled in at the end (the format allows spaces there), so each tensor is read, written and let go.
Threat model: as `checkpoint.source`, which has checked the files; one that shrinks meanwhile is noticed.
Does not protect: a source that is edited while it is read; its fingerprint is taken before.
Source: the safetensors format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import Stored, stored_tensors
from transom.errors import CheckpointError, NotYetError
from transom.obfuscation.task import Task

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATS["F8_E4M3"] = "float8_e4m3fn"
_SCALES, _BLOCK = "_scale_inv", 128  # of 8-bit floats: one scale for each block of 128 x 128
_HEADER_ITEM_BYTES = 160  # dtype, shape and offsets of one tensor, at their longest


@dataclass(frozen=True)
class Entry(Stored):
    """Where a source tensor lies. `scale` [rows / 128, columns / 128] belongs to one of 8-bit floats."""

    scale: Entry | None = None

    @property
    def loaded_bytes(self) -> int:
        """Bytes it has in memory: 8-bit floats become bfloat16."""
        return self.size_bytes if self.scale is None else 2 * self.size_bytes

    @property
    def size_fp32_bytes(self) -> int:
        """Bytes it would have in float32."""
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """A file of the output: its tasks in order, and the bytes that the largest of them needs at once."""

    file: str
    tasks: tuple[Task, ...]
    peak_bytes: int


def locate(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint by name; scales belong to what they scale.

    Raises CheckpointError, NotYetError (a dtype, or 8-bit floats scaled otherwise than DeepSeek's).
    """
    entries = {name: _entry(name, stored) for name, stored in stored_tensors(folder).items()}
    names = [name for name in entries if not name.endswith(_SCALES)]
    return {name: _scaled(name, entries[name], entries) for name in names}


def read_tensor(entry: Entry) -> Tensor:
    """A source tensor in its own memory, 8-bit floats times their scales as bfloat16. Raises CheckpointError
    when the file became shorter."""
    import torch

    raw = _read(entry)
    if entry.scale is None:
        return raw
    scale, made = _read(entry.scale), torch.empty(entry.shape, dtype=torch.bfloat16)
    for row, scale_c in enumerate(scale.float()):
        rows = slice(row * _BLOCK, (row + 1) * _BLOCK)
        made[rows] = raw[rows].float() * scale_c.repeat_interleave(_BLOCK)[: entry.shape[1]]
    return made


def _read(entry: Entry) -> Tensor:
    import torch

    tensor = torch.empty(entry.shape, dtype=getattr(torch, _FLOATS[entry.dtype]))
    with entry.path.open("rb") as file:
        file.seek(entry.offset_bytes)
        if file.readinto(_bytes_of(tensor)) != entry.size_bytes:
            raise CheckpointError(f"{entry.path} became shorter while it was read; restore it")
    return tensor


def plan_shards(tasks: Sequence[Task], entries: Mapping[str, Entry], shard_bytes: int) -> tuple[Shard, ...]:
    """Tasks in order, cut into files of about `shard_bytes` of source each."""
    groups: list[list[Task]] = [[]]
    room_bytes = shard_bytes
    for task in tasks:
        size_bytes = sum(entries[name].size_bytes for name in task.sources)
        if groups[-1] and size_bytes > room_bytes:
            groups.append([])
            room_bytes = shard_bytes
        groups[-1].append(task)
        room_bytes -= size_bytes
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    made = zip(names, groups, strict=True)
    return tuple(Shard(name, tuple(group), _peak_bytes(group, entries)) for name, group in made)


def write_safetensors(path: Path, names: Iterable[str], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write the tensors as they come. `names` are those to leave room for. Raises OSError."""
    import torch

    spelled = {getattr(torch, name): kind for kind, name in _FLOATS.items()}
    room_bytes = -(-sum(_HEADER_ITEM_BYTES + len(json.dumps(name)) for name in names) // 8) * 8
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    with path.open("wb") as file:
        file.seek(8 + room_bytes)
        at_bytes = 0
        for name, tensor in tensors:
            end_bytes = at_bytes + tensor.numel() * tensor.element_size()
            shape = {"dtype": spelled[tensor.dtype], "shape": list(tensor.shape)}
            header[name] = shape | {"data_offsets": [at_bytes, end_bytes]}
            file.write(_bytes_of(tensor.contiguous()))
            at_bytes = end_bytes
            del tensor
        file.seek(0)
        file.write(room_bytes.to_bytes(8, "little") + json.dumps(header).encode().ljust(room_bytes))


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _entry(name: str, stored: Stored) -> Entry:
    if stored.dtype not in _FLOATS:
        raise NotYetError(
            f"{name} in {stored.path} is stored as {stored.dtype}; {', '.join(_FLOATS)} are read. "
            "Give the checkpoint before it was quantised"
        )
    return Entry(**vars(stored))


def _scaled(name: str, entry: Entry, entries: Mapping[str, Entry]) -> Entry:
    """The entry with its scales, which 8-bit floats must have, one for each block."""
    if entry.dtype != "F8_E4M3":
        return entry
    scale = entries.get(f"{name}{_SCALES}")
    blocks = tuple(-(-side // _BLOCK) for side in entry.shape)
    if len(blocks) != 2 or scale is None or scale.shape != blocks or scale.dtype == "F8_E4M3":
        raise NotYetError(
            f"{name} in {entry.path} is of 8-bit floats without a scale for each {_BLOCK} x {_BLOCK}; "
            "give the checkpoint before it was quantised"
        )
    return replace(entry, scale=scale)


def _peak_bytes(tasks: Sequence[Task], entries: Mapping[str, Entry]) -> int:
    """Source and result are in memory together, the result a little wider, and pieces in float32 beside."""
    return max(3 * sum(entries[name].loaded_bytes for name in task.sources) for task in tasks)
