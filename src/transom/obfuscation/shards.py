"""Tensors in and out of safetensors files, one at a time: where the source's lie, and shards as they grow.

The format puts a header before the data, and the header needs every shape. Room for it is left at the start
and filled in at the end (the format allows spaces there), so each tensor is read, written and let go.
Threat model: as `checkpoint.source`, which has checked the files; one that shrinks meanwhile is noticed.
Does not protect: a source that is edited while it is read; its fingerprint is taken before.
Source: the safetensors format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import read_json
from transom.errors import CheckpointError, NotYetError
from transom.obfuscation.task import Task

if TYPE_CHECKING:
    from torch import Tensor

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
INDEX_FILE = "model.safetensors.index.json"
_HEADER_ITEM_BYTES = 160  # dtype, shape and offsets of one tensor, at their longest


@dataclass(frozen=True)
class Entry:
    """Where a source tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int

    @property
    def size_fp32_bytes(self) -> int:
        """Bytes it would have in float32."""
        return 4 * self.size_bytes // ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A file of the output: its tasks in order, and the bytes that the largest of them needs at once."""

    file: str
    tasks: tuple[Task, ...]
    peak_bytes: int


def weight_files(folder: Path) -> list[str]:
    """Names of a checked checkpoint's weight files."""
    index = folder / INDEX_FILE
    names = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return sorted(names)


def locate(folder: Path) -> dict[str, Entry]:
    """Every tensor of a checked checkpoint by name. Raises CheckpointError, NotYetError (a dtype)."""
    entries: dict[str, Entry] = {}
    for name in weight_files(folder):
        path = folder / name
        with path.open("rb") as file:
            start_bytes = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start_bytes - 8))
        header.pop("__metadata__", None)
        entries |= {tensor: _entry(path, tensor, item, start_bytes) for tensor, item in header.items()}
    return entries


def read_tensor(entry: Entry) -> Tensor:
    """A source tensor in its own memory. Raises CheckpointError when the file became shorter."""
    import torch

    dtype = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensor = torch.empty(entry.shape, dtype=dtype[entry.dtype])
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
    return tuple(
        Shard(name, tuple(group), _peak_bytes(group, entries))
        for name, group in zip(names, groups, strict=True)
    )


def write_safetensors(path: Path, names: Iterable[str], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write the tensors as they come, durably. `names` are those to leave room for. Raises OSError."""
    import torch

    spelled = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
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
        file.flush()
        os.fsync(file.fileno())


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file that was just written."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _entry(path: Path, name: str, item: Mapping[str, Any], start_bytes: int) -> Entry:
    begin, end = item["data_offsets"]
    dtype, shape = item["dtype"], tuple(item["shape"])
    if dtype not in ITEM_BYTES:
        raise NotYetError(
            f"{name} in {path} is stored as {dtype}; {', '.join(ITEM_BYTES)} are read. "
            "Give the checkpoint before it was quantised"
        )
    count = 1
    for side in shape:
        count *= side
    if end - begin != count * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{name} in {path} has an impossible shape; download it again")
    return Entry(path, dtype, shape, start_bytes + begin, end - begin)


def _peak_bytes(tasks: Sequence[Task], entries: Mapping[str, Entry]) -> int:
    """Source and result are in memory together, the result a little wider, and pieces in float32 beside."""
    return max(3 * sum(entries[name].size_bytes for name in task.sources) for task in tasks)
