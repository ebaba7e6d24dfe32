"""What brings a record's sanitised texts back: its placeholders, and where each text was changed.

A record is what shares placeholders: a line, a row, a JSON document. A text that is found unmodified (by its
digest) is restored to what it was, character by character, drawn words too; any other, as a model's answer,
gets its placeholders restored.
Threat model: none of its own: this holds the private values. `transom.privacy.mapfile` seals it.
Does not protect: drawn words in an answer stay drawn (see `transom.privacy.drawn_back`).
Source: own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from transom.privacy.placeholders import Placeholders

# A change: where it begins in the sanitised text, how long it is there, and what stood there. None: what the
# placeholder that is written there stands for.
Change = tuple[int, int, str | None]


@dataclass(frozen=True)
class RecordMap:
    """What brings the texts of a record back: whole if they are unmodified, placeholders in any text."""

    placeholders: Mapping[str, str] = field(repr=False)
    texts: tuple[tuple[str, tuple[Change, ...]], ...] = field(repr=False)  # digest and changes of each

    @classmethod
    def of(cls, texts: Iterable[Iterable[tuple[str, str]]], placeholders: Mapping[str, str]) -> RecordMap:
        """The map of texts, each of (output, source) pieces, with the placeholders that answers may use."""
        return cls(dict(placeholders), tuple(_changes(pieces, placeholders) for pieces in texts))

    def restore(self, text: str, place: int = 0) -> str:
        """The original of the record's text at `place`, or at another; else `text`, placeholders restored."""
        digest = _digest(text)
        for known, changes in (*self.texts[place : place + 1], *self.texts):
            if known == digest:
                return self._original(text, changes)
        return Placeholders.of(self.placeholders).restore(text)

    def _original(self, text: str, changes: Iterable[Change]) -> str:
        pieces, position = [], 0
        for start, length, source in changes:
            end = start + length
            pieces += [text[position:start], self.placeholders[text[start:end]] if source is None else source]
            position = end
        return "".join([*pieces, text[position:]])

    def to_line(self) -> bytes:
        """The record's line in the file."""
        record = {"placeholders": dict(self.placeholders), "texts": self.texts}
        return json.dumps(record, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> RecordMap:
        """Raises KeyError, TypeError, ValueError."""
        record = json.loads(line)
        texts = (
            (str(digest), tuple((int(start), int(length), source) for start, length, source in changes))
            for digest, changes in record["texts"]
        )
        return cls(dict(record["placeholders"]), tuple(texts))


def _changes(
    pieces: Iterable[tuple[str, str]], placeholders: Mapping[str, str]
) -> tuple[str, tuple[Change, ...]]:
    """The digest of a sanitised text, and how it differs from its original."""
    changes: list[Change] = []
    written, position = [], 0
    for output, source in pieces:
        if placeholders.get(output) == source:
            changes.append((position, len(output), None))
        elif output != source:
            changes.append((position, len(output), source))
        position += len(output)
        written.append(output)
    return _digest("".join(written)), tuple(changes)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
