"""Where the tokens of a text stand in it as it was typed: a reading normalises, and people look for lines.

Threat model: none; the text is the auditor's own. Does not protect anything. Where a character became several
(a ligature) a token's edge may be one character off.
Source: own; the rules of `transom.privacy.characters`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

from transom.privacy.characters import normalise

_NEAR = 64  # characters ahead in which a token is looked for that does not stand where it should


def places(raw: str, tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end in `raw` of each of the tokens of its reading, white space included.

    >>> list(places("I  owe\\u2019m ten", ["I", " ", "owe", "'m", " ", "ten"]))
    [(0, 1), (1, 3), (3, 6), (6, 8), (8, 9), (9, 12)]
    """
    at = 0
    for token in tokens:
        if raw.startswith(token, at) and not token.isspace():
            start, end = at, at + len(token)
        elif token.isspace():
            start, end = at, _after_space(raw, at)
        else:
            start, end = _found(raw, at, token)
        yield start, end
        at = _after_mark(raw, end)


def _found(raw: str, at: int, token: str) -> tuple[int, int]:
    start = at
    while start < len(raw) and not normalise(raw[start]).strip():
        start += 1
    end, length, blank = start, 0, False
    while end < len(raw) and length < len(token):
        plain = normalise(raw[end])
        if not unicodedata.combining(raw[end]) and not (blank and plain.isspace()):  # blanks become one
            length += len(plain)
        blank = plain.isspace() or (blank and not plain)
        end += 1
    end = _after_mark(raw, end)
    if normalise(raw[start:end]).strip() != token.strip():
        near = raw.find(token, at, at + len(token) + _NEAR)
        if near >= 0:
            return near, near + len(token)
    return start, end


def _after_space(raw: str, at: int) -> int:
    while at < len(raw) and not normalise(raw[at]).strip():
        at += 1
    return at


def _after_mark(raw: str, at: int) -> int:
    while at < len(raw) and unicodedata.combining(raw[at]):
        at += 1
    return at
