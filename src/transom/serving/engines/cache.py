"""The keys and values of a batch whose rows come and go, written in place: no step copies what is there.

All rows end at one column, so that a step writes one column of each; a shorter row begins later. Room for
all that the rows may still say is made when one joins, so that no step needs more memory.
Threat model: none; it lies inside the engine. What stands before a row's own columns is masked, and zero, as
a number that is not finite would be told through any mask.
Source: own; the interface is that of transformers' caches.

Shapes: R places for rows, B rows, H heads of keys, C columns, T columns of a newcomer, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class BatchCache(Cache):
    """Of `rows` rows, between columns `start` and `end`."""

    layers: Any  # of `_Layer`

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.rows = self.start = self.end = self.columns = 0

    def join(self, other: DynamicCache, columns: int) -> None:
        """Take the rows of another cache, whose ends are one, with room for so many columns in all, which no
        row outgrows. Raises what torch raises where there is no memory, and nothing has changed then."""
        theirs: Any = other.layers
        count, width = theirs[0].keys.shape[0], max(self.width, theirs[0].keys.shape[-2])
        if not self.layers or self.rows + count > self.layers[0].places or columns > self.columns:
            self._move(self.rows + count, columns, other)
        elif self.end < width:
            self._shift(width)
        begin, new = self.end - width, slice(self.rows, self.rows + count)
        for own, layer in zip(self.layers, theirs, strict=True):
            own.wipe(slice(0, self.rows), slice(begin, self.start))
            own.wipe(new, slice(begin, self.end))
            own.put(new, self.end, layer.keys, layer.values)
        self.rows, self.start = self.rows + count, begin
        self._look()

    def make_room(self) -> None:
        """For one more column, where rows that went left some before."""
        if self.end == self.columns and self.start:
            self._shift(self.width)
            self._look()

    def keep(self, kept: Sequence[int], width: int) -> None:
        """Let the other rows go; `width` is the longest row's that stays. The memory goes with the last."""
        if not kept:
            self.layers, self.rows, self.start, self.end, self.columns = [], 0, 0, 0, 0
            return
        if list(kept) != list(range(len(kept))):
            for layer in self.layers:
                layer.pick(kept, slice(self.start, self.end))
        self.rows, self.start = len(kept), self.end - width
        self._look()

    def advanced(self) -> None:
        """A column was written to each layer."""
        self.end += 1
        self._look()

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return self.end - self.start

    def _shift(self, width: int) -> None:
        """Move what is there to the front."""
        for layer in self.layers:
            layer.shift(slice(self.start, self.end), width)
        self.start, self.end = width - self.width, width

    def _move(self, places: int, columns: int, other: DynamicCache) -> None:
        """To larger memory."""
        width = max(self.width, other.get_seq_length())
        made = [_Layer.like(layer, places, columns) for layer in other.layers]
        for new, old in zip(made, self.layers, strict=False):
            new.put(
                slice(0, self.rows), width,
                old.all_keys[: self.rows, :, self.start : self.end],
                old.all_values[: self.rows, :, self.start : self.end],
            )  # fmt: skip
        self.start, self.end, self.columns = width - self.width, width, columns
        self.layers = made

    def _look(self) -> None:
        for layer in self.layers:
            layer.look(self.rows, self.start, self.end)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """`keys` and `values` are views of what is there."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.all_keys, self.all_values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    @classmethod
    def like(cls, other: Any, places: int, columns: int) -> _Layer:
        made = [
            one.new_zeros(places, one.shape[1], columns, one.shape[3]) for one in (other.keys, other.values)
        ]
        return cls(*made)

    @property
    def places(self) -> int:
        return self.all_keys.shape[0]

    def look(self, rows: int, start: int, end: int) -> None:
        self.rows, self.start, self.end = rows, start, end
        self.keys = self.all_keys[:rows, :, start:end]
        self.values = self.all_values[:rows, :, start:end]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column; the cache says later that it is there."""
        rows, start, end = self.rows, self.start, self.end
        self.all_keys[:rows, :, end : end + 1] = key_states
        self.all_values[:rows, :, end : end + 1] = value_states
        return self.all_keys[:rows, :, start : end + 1], self.all_values[:rows, :, start : end + 1]

    def put(self, places: slice, end: int, keys: Tensor, values: Tensor) -> None:
        columns = slice(end - keys.shape[-2], end)
        self.all_keys[places, :, columns] = keys
        self.all_values[places, :, columns] = values

    def wipe(self, places: slice, columns: slice) -> None:
        self.all_keys[places, :, columns] = 0
        self.all_values[places, :, columns] = 0

    def pick(self, kept: Sequence[int], columns: slice) -> None:
        for one in (self.all_keys, self.all_values):
            one[: len(kept), :, columns] = one[list(kept), :, columns]

    def shift(self, columns: slice, end: int) -> None:
        width = columns.stop - columns.start
        for one in (self.all_keys, self.all_values):
            one[:, :, end - width : end] = one[:, :, columns].clone()
