"""A set of message numbers that arrive nearly in order: all below a watermark, and a few beyond it.

Threat model: the partner writes the plain form; it is bounded and has one spelling.
Does not protect: that a set is true; the session compares it with what was sent.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterable

from transom.errors import LinkRefusedError
from transom.link.message import LARGEST

MAX_EXTRAS = 1024


class Numbers:
    """Whole numbers from 0: those below `watermark`, and `extras` above it."""

    __slots__ = ("_extras", "watermark")

    def __init__(self, numbers: Iterable[int] = (), watermark: int = 0) -> None:
        self.watermark = watermark
        self._extras: set[int] = set()
        for number in numbers:
            self.add(number)

    @property
    def extras(self) -> tuple[int, ...]:
        return tuple(sorted(self._extras))

    @property
    def end(self) -> int:
        """One more than the largest; 0 for none."""
        return max(self._extras, default=self.watermark - 1) + 1

    def add(self, number: int) -> None:
        if number < self.watermark:
            return
        self._extras.add(number)
        while self.watermark in self._extras:
            self._extras.remove(self.watermark)
            self.watermark += 1

    def copy(self) -> Numbers:
        twin = Numbers(watermark=self.watermark)
        twin._extras = set(self._extras)
        return twin

    def missing_from(self, other: Numbers) -> int | None:
        """The lowest number of this set that `other` lacks; None if it has all of them."""
        if other.watermark < self.watermark:
            return other.watermark  # the first that it lacks, whatever lies beyond
        return next((number for number in self.extras if number not in other), None)

    def __contains__(self, number: int) -> bool:
        return number < self.watermark or number in self._extras

    def __len__(self) -> int:
        return self.watermark + len(self._extras)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and self.to_plain() == other.to_plain()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Numbers({list(self.extras)}, watermark={self.watermark})"

    def to_plain(self) -> list[int]:
        """As JSON holds it: the watermark, then what is beyond it in order."""
        return [self.watermark, *self.extras]

    @classmethod
    def from_plain(cls, plain: object) -> Numbers:
        """The set of a plain form. Raises LinkRefusedError for what `to_plain` does not write."""
        if not isinstance(plain, list) or not 1 <= len(plain) <= 1 + MAX_EXTRAS:
            raise LinkRefusedError(f"numbers are a list of 1 to {1 + MAX_EXTRAS}; got {type(plain).__name__}")
        if any(type(number) is not int or not 0 <= number <= LARGEST for number in plain):
            raise LinkRefusedError("numbers are whole numbers from 0")
        watermark, *extras = plain
        if any(low >= high for low, high in zip(plain, extras, strict=False)):
            raise LinkRefusedError("numbers beyond a watermark rise")
        return cls(extras, watermark)
