"""A protection as tasks see it: a text as it leaves, and the way back for an answer.

Threat model: that of the mode; here of words (`transom.privacy.sanitize`).
Does not protect: a text that is left `unprotected`, which is the other end of every comparison.
Source: own design.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitizer


@dataclass(frozen=True)
class Protected:
    """A text as it leaves. `restore` undoes placeholders in an answer, `hide` puts them into another text."""

    text: str = field(repr=False)
    restore: Callable[[str], str] = field(default=str, repr=False)
    hide: Callable[[str], str] = field(default=str, repr=False)


Protect = Callable[[str], Protected]
unprotected: Protect = Protected


def words(sanitizer: Sanitizer) -> Protect:
    """Each text sanitised as a message of its own, with placeholders of its own."""

    def protect(text: str) -> Protected:
        placeholders = Placeholders()
        made = sanitizer.sanitize(text, placeholders=placeholders)
        hidden = {piece.source: piece.output for piece in made.pieces if piece.action == "placeholder"}
        return Protected(made.text, placeholders.restore, lambda other: _replaced(other, hidden))

    return protect


def _replaced(text: str, hidden: Mapping[str, str]) -> str:
    """`text` with every whole word that is hidden as its placeholder."""
    if not hidden:
        return text
    values = "|".join(map(re.escape, sorted(hidden, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)(?:{values})(?!\w)", lambda match: hidden[match[0]], text)
