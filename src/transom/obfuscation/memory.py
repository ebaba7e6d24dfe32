"""Matrices that several processes read and none copies, in memory without a name.

    shared = share(tensors)                  None where the system has no such memory (memfd: Linux)
    Process(target=work, args=(shared,))     a spawned process gets the descriptor, and maps the same pages

Threat model: the matrices are secret. The memory has no path that another user could open, and the system
takes it back with the last process that maps it, however that one ends.
Does not protect: against root, a debugger of the same user, or a swap device that is not encrypted.
Source: memfd_create(2).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.context import assert_spawning
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ALIGN_BYTES = 64


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the shared memory."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class Shared:
    """Tensors of any shapes in one piece of shared memory; nobody may write to them."""

    descriptor: int
    size_bytes: int
    places: tuple[Place, ...]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without a copy."""
        import torch

        memory = mmap.mmap(self.descriptor, self.size_bytes)  # which keeps a descriptor of its own
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        return {
            place.name: whole[place.offset_bytes :][: place.size_bytes].view(place.dtype).reshape(place.shape)
            for place in self.places
        }

    def close(self) -> None:
        """Let go of the descriptor: nobody can be given the memory any more, and who maps it keeps it."""
        os.close(self.descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled only on the way to a process that is being spawned. Raises RuntimeError elsewhere."""
        assert_spawning(self)
        return _received, (reduction.DupFd(self.descriptor), self.size_bytes, self.places)


def share(tensors: Mapping[str, Tensor]) -> Shared | None:
    """Copy tensors [any shape] into shared memory. None where there is none, or none is left."""
    places, end_bytes = [], 0
    for name, tensor in tensors.items():
        size_bytes = tensor.numel() * tensor.element_size()
        places.append(Place(name, tensor.dtype, tuple(tensor.shape), end_bytes, size_bytes))
        end_bytes += -(-size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
    try:
        descriptor = os.memfd_create("transom", os.MFD_CLOEXEC)
    except (AttributeError, OSError):
        return None
    shared = Shared(descriptor, end_bytes, tuple(places))
    try:
        os.posix_fallocate(descriptor, 0, end_bytes)  # a page that is wanting later would be a SIGBUS
    except OSError:
        shared.close()
        return None
    for name, empty in shared.tensors().items():
        empty.copy_(tensors[name])
    return shared


def _received(duplicate: Any, size_bytes: int, places: tuple[Place, ...]) -> Shared:
    return Shared(duplicate.detach(), size_bytes, places)
