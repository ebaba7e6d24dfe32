"""Look for embedding rows in bytes: files, recordings of the wire, and the memory of other processes.

A row counts as found if a run of its bytes in the middle is there, as float32, float16 or bfloat16, raw or in
base64 at any alignment. Shapes: N rows, D model width.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

RUN_VALUES = 8
_PREFIX_BYTES = 4
_HASH_BITS = 22


def needles(rows_ND: np.ndarray) -> list[bytes]:
    """Runs of bytes, each of which betrays one row. None begins like a stretch of zeros or of one value."""
    found = []
    for row_D in rows_ND:
        for start in range(100, len(row_D) - RUN_VALUES):
            forms = forms_of(row_D[start : start + RUN_VALUES])
            if all(len(set(form[:_PREFIX_BYTES])) > 2 for form in forms):
                found += forms
                break
    return found


def forms_of(run: np.ndarray) -> list[bytes]:
    """The bytes of values as float32, float16 and bfloat16, raw and in base64 at each alignment."""
    wide = np.ascontiguousarray(run, dtype="<f4")
    raws = [wide.tobytes(), wide.astype("<f2").tobytes(), (wide.view("<u4") >> 16).astype("<u2").tobytes()]
    # In base64 the characters that neighbours have a part in are left out.
    shifted = [
        base64.b64encode(bytes(shift) + raw)[4 if shift else 0 : -4] for raw in raws for shift in range(3)
    ]
    return raws + shifted


class Searcher:
    """Finds any of many needles in large blocks by their first four bytes, then compares in full."""

    def __init__(self, wanted: Iterable[bytes]) -> None:
        self._by_prefix: dict[int, list[bytes]] = {}
        for needle in wanted:
            prefix = int.from_bytes(needle[:_PREFIX_BYTES], "little")
            self._by_prefix.setdefault(prefix, []).append(needle)
        prefixes = np.array(list(self._by_prefix), dtype="<u4")
        self._low = np.zeros(1 << 16, dtype=np.bool_)
        self._low[prefixes & 0xFFFF] = True
        self._hashed = np.zeros(1 << _HASH_BITS, dtype=np.bool_)
        self._hashed[hashed(prefixes)] = True
        self.longest = max(map(len, (n for group in self._by_prefix.values() for n in group)))

    def count(self, block: bytes) -> int:
        """How many places of the block hold a needle."""
        hits = 0
        for shift in range(_PREFIX_BYTES):
            words = np.frombuffer(block, dtype="<u4", offset=shift, count=(len(block) - shift) // 4)
            likely = np.flatnonzero(self._low[words & 0xFFFF])
            for place in likely[self._hashed[hashed(words[likely])]].tolist():
                at, group = shift + 4 * place, self._by_prefix.get(int(words[place]), ())
                hits += any(block[at : at + len(n)] == n for n in group)
        return hits


def hashed(words: np.ndarray) -> np.ndarray:
    """A place in a small table for each 32-bit word (Knuth's multiplicative hash)."""
    return (words * np.uint32(2654435761)) >> np.uint32(32 - _HASH_BITS)


def memory_blocks(pid: int, overlap_bytes: int, block_bytes: int = 32 << 20) -> Iterator[bytes]:
    """The readable, written-to memory of a process, in blocks that overlap."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, mode, *rest = line.split()
            if "r" not in mode or (rest and rest[-1].startswith("[v")):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for at in range(start, end, block_bytes):
                try:
                    memory.seek(at)
                    yield memory.read(min(block_bytes + overlap_bytes, end - at))
                except (OSError, ValueError):
                    continue  # a guard page, or memory given back meanwhile


def file_blocks(path: Path, overlap_bytes: int, block_bytes: int = 32 << 20) -> Iterator[bytes]:
    """A file in blocks that overlap."""
    with path.open("rb") as file:
        while block := file.read(block_bytes):
            yield block + file.read(overlap_bytes)
            if len(block) < block_bytes:
                return
            file.seek(-overlap_bytes, 1)
