"""Values back into a text: whole, or in a stream that holds back a bounded tail.

One pass: a restored value is never looked at again, so a value that itself reads like a placeholder stays
what it is. Which spellings count says `transom.privacy.forms`.
Threat model: the host may write any text, cut anywhere, and repeat a placeholder to make an answer long.
Does not protect: what stands in the answer around the placeholders.
Source: streaming with bounded look-behind is our own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from transom.errors import EngineGarbageError
from transom.privacy.forms import FORM, settled


class Restorer:
    """Restores placeholders in a stream; holds back at most `LOOK_BEHIND_CHARS` characters between chunks.

    `value` says what stands for a form. Raises EngineGarbageError where a host repeats a placeholder until it
    exceeds the limit, before it does.
    """

    def __init__(self, value: Callable[[str], str], limit_chars: int | None = None) -> None:
        self._value, self._room_chars = value, limit_chars
        self._before, self._held = "", ""  # the last character that is settled, and what is not

    def feed(self, chunk: str) -> str:
        """What can be shown so far: everything but a tail that may be the beginning of a placeholder."""
        text, start = self._before + self._held + chunk, len(self._before)
        found, end = settled(text, start)
        return self._restore(text, start, end, found)

    @property
    def held_chars(self) -> int:
        """How much is held back."""
        return len(self._held)

    def close(self) -> str:
        """The held tail, at the end of the stream."""
        text, start = self._before + self._held, len(self._before)
        return self._restore(text, start, len(text), FORM.finditer(text, start))

    def _restore(self, text: str, start: int, end: int, found: Iterable[re.Match[str]]) -> str:
        pieces, position = [], start
        for match in found:
            pieces += [text[position : match.start()], self._value(match[0])]
            position = match.end()
        pieces.append(text[position:end])
        if self._room_chars is not None:
            self._room_chars -= sum(map(len, pieces))
            if self._room_chars < 0:
                raise EngineGarbageError(
                    "the engine's answer restores to more characters than any answer has"
                )
        self._before, self._held = text[:end][-1:], text[end:]
        return "".join(pieces)
