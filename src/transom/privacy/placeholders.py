"""Typed placeholders: `[NAME_1]` for a value on the way out, the value again on the way back.

One `Placeholders` a conversation. Numbers follow first appearance, equal values of a kind get equal
placeholders, so a host sees which places hold the same value: a declared disclosure. Restoring is one
pass: a restored value is never looked at again, so a value that itself reads like a placeholder stays what
it is. (The lexer makes such user text an identifier, hence `[ID_1]`: no placeholder on the wire was
written by the user.)
Threat model: the host may write any text, also placeholders it has never seen; unknown ones stay as they
are.
Does not protect: kinds, number and equality of values. The map holds the values in memory, for its
lifetime.
Source: typed replacement as in Presidio-like anonymisers; streaming with bounded look-behind is our own.
"""

from __future__ import annotations

import re

from transom.errors import EngineGarbageError
from transom.privacy.kinds import base_of
from transom.privacy.text import PLACEHOLDER_LABELS

LABEL_OF_KIND = {
    "name": "NAME",
    "number": "NUMBER",
    "rare": "TERM",
    "identifier": "ID",
    "foreign": "TEXT",
    "symbol": "SYMBOL",
    "word": "WORD",
    "stop": "WORD",
}
LOOK_BEHIND_CHARS = 24
_LABELS = "|".join(PLACEHOLDER_LABELS)
_PLACEHOLDER = re.compile(rf"\[(?:{_LABELS})_[0-9]{{1,12}}\]")
_BEGINNING = re.compile(r"\[(?:[A-Z]{0,6}|[A-Z]{2,6}_[0-9]{0,12})")


class Placeholders:
    """A two-way map between private values and placeholders; its repr shows only how many there are."""

    def __init__(self) -> None:
        self._placeholder_of: dict[tuple[str, str], str] = {}
        self._value_of: dict[str, str] = {}
        self._last_number: dict[str, int] = {}
        self._quotes = 0

    def __repr__(self) -> str:
        return f"Placeholders({len(self._value_of)})"

    def __len__(self) -> int:
        return len(self._value_of)

    def hide(self, kind: str, value: str) -> str:
        """The placeholder of `value`, a new one at its first appearance."""
        label = LABEL_OF_KIND[base_of(kind)]
        known = self._placeholder_of.get((label, value))
        if known is not None:
            return known
        number = self._last_number[label] = self._last_number.get(label, 0) + 1
        placeholder = f"[{label}_{number}]"
        self._placeholder_of[label, value] = placeholder
        self._value_of[placeholder] = value
        return placeholder

    def quote(self, value: str) -> str:
        """A fresh placeholder for a whole text, linked by equality with nothing."""
        self._quotes += 1
        placeholder = f"[QUOTE_{self._quotes}]"
        self._value_of[placeholder] = value
        return placeholder

    def restore(self, text: str) -> str:
        """`text` with every known placeholder replaced by its value, in one pass.

        >>> names = Placeholders()
        >>> names.hide("name", "Ada"), names.restore("Dear [NAME_1] and [NAME_2]")
        ('[NAME_1]', 'Dear Ada and [NAME_2]')
        """
        return _PLACEHOLDER.sub(lambda match: self._value_of.get(match[0], match[0]), text)

    def restorer(self, limit_chars: int | None = None) -> Restorer:
        """A restorer for one stream of chunks, which restores to at most `limit_chars` in all."""
        return Restorer(self, limit_chars)

    def restored_chars(self, text: str) -> int:
        """How long `text` becomes when it is restored."""
        found = (match[0] for match in _PLACEHOLDER.finditer(text))
        return len(text) + sum(len(self._value_of.get(one, one)) - len(one) for one in found)


class Restorer:
    """Restores placeholders in a stream; holds back at most `LOOK_BEHIND_CHARS` characters between chunks.

    Raises EngineGarbageError where a host repeats a placeholder until it exceeds the limit, before it does.
    """

    def __init__(self, placeholders: Placeholders, limit_chars: int | None = None) -> None:
        self._placeholders, self._room_chars = placeholders, limit_chars
        self._held = ""

    def feed(self, chunk: str) -> str:
        """What can be shown so far: everything but a tail that may be the beginning of a placeholder."""
        text = self._held + chunk
        cut = text.rfind("[")
        if cut < 0 or len(text) - cut > LOOK_BEHIND_CHARS or not _BEGINNING.fullmatch(text, cut):
            cut = len(text)
        self._held = text[cut:]
        return self._restore(text[:cut])

    def close(self) -> str:
        """The held tail, at the end of the stream."""
        tail, self._held = self._held, ""
        return self._restore(tail)

    def _restore(self, text: str) -> str:
        if self._room_chars is not None:
            self._room_chars -= self._placeholders.restored_chars(text)
            if self._room_chars < 0:
                raise EngineGarbageError(
                    "the engine's answer restores to more characters than any answer has"
                )
        return self._placeholders.restore(text)
