"""What is still readable in a changed letter, what was changed without need: scores for `words_letters.py`.

Everything is compared place by place: a system says which stretches of a letter the host does not see as they
were, so that the same word elsewhere in the letter, or in the output, counts for nothing.

A value is visible when one of its words is; words of fewer than two characters and function words ("de",
"of", "past") are not looked at, and a word is visible when at least half of its characters are. A harmless
word is one that touches no planted value; it is changed when any of its characters is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from _letters import COVERED, Letter, Value

_FUNCTION = """a an the of and or to in on at by for past de la le les los las du des del della dei der den
dem von van da di do dos das el y e und et al am rue dot"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())
# What Presidio's own recognisers and its model look for, in its default configuration.
PRESIDIO = ("person", "place", "date", "time", "phone", "email", "url", "account", "card")
_PARTS = re.compile(r"[^\W_]{2,}")
_WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
Stretch = tuple[int, int]


class Read(NamedTuple):
    """What a system did to one letter: the changed stretches of each draw, restored or not, its time."""

    changed: list[list[Stretch]]
    restored: bool
    ms: float


@dataclass(frozen=True)
class Judged:
    """One letter with what became of it; `hidden` has an entry a value, True only if hidden in every draw."""

    letter: Letter
    read: Read

    @cached_property
    def _masks(self) -> list[list[bool]]:
        """A draw's mask: which characters of the letter are not seen as they were."""
        masks = []
        for stretches in self.read.changed:
            mask = [False] * len(self.letter.text)
            for start, end in stretches:
                mask[start:end] = [True] * (end - start)
            masks.append(mask)
        return masks

    @cached_property
    def hidden(self) -> list[tuple[Value, bool]]:
        """Each value, and whether it is hidden in all draws."""
        return [(value, not self.visible(value)) for value in self.letter.values]

    def visible(self, value: Value) -> list[str]:
        """The words of a value that can be read in some draw."""
        return [
            word
            for start, end, word in parts(value)
            if any(2 * sum(mask[start:end]) <= end - start for mask in self._masks)
        ]

    @cached_property
    def harmless(self) -> list[Stretch]:
        """The words that touch no value."""
        return list(harmless(self.letter))

    def spoilt(self, draw: int) -> list[Stretch]:
        """The harmless words that were changed in a draw."""
        return [(start, end) for start, end in self.harmless if any(self._masks[draw][start:end])]


def parts(value: Value) -> Iterator[tuple[int, int, str]]:
    """The words of a value that must not be read, with their places in the letter."""
    for found in _PARTS.finditer(value.text):
        if found[0].lower() not in FUNCTION_WORDS:
            yield value.start + found.start(), value.start + found.end(), found[0]


def harmless(letter: Letter) -> Iterator[Stretch]:
    """The words outside the planted values."""
    taken = [False] * len(letter.text)
    for value in letter.values:
        taken[value.start : value.end] = [True] * (value.end - value.start)
    for found in _WORDS.finditer(letter.text):
        if not any(taken[found.start() : found.end()]):
            yield found.span()


def scores(judged: Sequence[Judged], kinds: Iterable[str] | None) -> dict[str, Any]:
    """The figures of a system over letters; `kinds` are those that it promises to hide, None for all."""
    draws = range(len(judged[0].read.changed))
    spoilt = max(sum(len(one.spoilt(draw)) for one in judged) for draw in draws)
    return {
        "hidden": hidden(judged, kinds),
        "harmless_changed": spoilt / sum(len(one.harmless) for one in judged),
        "hidden_covered": hidden(judged, COVERED),
        "hidden_all": hidden(judged, None),
        "restored": sum(one.read.restored for one in judged) / len(judged),
        "ms_per_letter": sum(one.read.ms for one in judged) / len(judged),
    }


def hidden(judged: Sequence[Judged], kinds: Iterable[str] | None) -> float | None:
    """The share of values of some kinds that are hidden in every draw; None where there is no such value."""
    wanted = None if kinds is None else frozenset(kinds)
    kept = [gone for one in judged for value, gone in one.hidden if wanted is None or value.kind in wanted]
    return sum(kept) / len(kept) if kept else None
