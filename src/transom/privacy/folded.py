"""A text as it is compared, beside where each of its characters came from.

Folded: characters in their plain form (`transom.privacy.characters`: compatibility forms, typographic quotes
and dashes), without case, with marks composed, and without what cannot be seen. So an entry of a list meets
its word in capitals, with a soft hyphen inside, or typed with separate accents. Accents count: `Zoe` is not
`Zoë`.
Threat model: crafted text; folding takes linear time. Does not protect anything by itself. Letters that
merely look alike (a Cyrillic `а`) stay different.
Source: Unicode Standard Annex 15 (normalisation); Unicode Standard 3.13 (default case folding).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transom.privacy.characters import normalise

MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"  # combining
_CLUSTER = re.compile(rf".[{MARKS}]*", re.DOTALL)


class _Fold(dict[int, str]):
    """Character to its folded form, filled on demand."""

    def __missing__(self, codepoint: int) -> str:
        self[codepoint] = folded = normalise(chr(codepoint)).casefold()
        return folded


class _Visible(dict[int, str]):
    """Character to itself, or to nothing if it cannot be seen."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        self[codepoint] = shown = character if character.isspace() or normalise(character) else ""
        return shown


class Folded(NamedTuple):
    """`text`, and where in the raw text each of its characters begins and ends; None: at the same place."""

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def raw(self, start: int, end: int) -> tuple[int, int]:
        """Where characters `start` to `end` stand in the raw text."""
        if self.starts is None or self.ends is None or start == end:
            return start, end
        return self.starts[start], self.ends[end - 1]


_FOLD, _VISIBLE = _Fold(), _Visible()


def fold(text: str) -> Folded:
    """`text` as it is compared.

    >>> fold("Stra\\u00dfe").text, fold("Stra\\u00dfe").raw(4, 7)
    ('strasse', (4, 6))
    """
    if text.isascii():
        return Folded(text.lower())
    if unicodedata.is_normalized("NFC", text):
        return _mapped(text, _FOLD)
    return _by_clusters(text)


def visible(text: str) -> Folded:
    """`text` without what cannot be seen, and else as it is."""
    return Folded(text) if text.isascii() else _mapped(text, _VISIBLE)


def _mapped(text: str, table: Mapping[int, str]) -> Folded:
    if all(len(table[codepoint]) == 1 for codepoint in set(map(ord, text))):
        return Folded(text.translate(table))
    parts = [table[ord(character)] for character in text]
    starts = [index for index, part in enumerate(parts) for _ in part]
    return Folded("".join(parts), starts, [start + 1 for start in starts])


def _by_clusters(text: str) -> Folded:
    """Each character composed with the marks that follow it, then folded."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for match in _CLUSTER.finditer(text):
        part = unicodedata.normalize("NFC", match[0]).translate(_FOLD)
        parts.append(part)
        starts += [match.start()] * len(part)
        ends += [match.end()] * len(part)
    return Folded("".join(parts), starts, ends)
