"""Where the tokens of a text stand in it as it was typed: a reading normalises, and people look for lines.

Threat model: none; the text is the auditor's own. Does not protect anything. Where a character became several
(a ligature) a token's edge may be one character off, and so where a claimed stretch stands in a normalised
text.
Source: own; `transom.privacy.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transom.privacy.layout import aligned


def places(raw: str, tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end in `raw` of each of the tokens of its reading, white space included.

    >>> list(places("I  owe ten", ["I", " ", "owe", " ", "ten"]))
    [(0, 1), (1, 3), (3, 6), (6, 7), (7, 10)]
    """
    joined = "".join(tokens)
    clean, ends_C = (joined, None) if joined == raw else aligned(raw)
    if joined != clean:
        yield from _looked_for(raw, tokens)
        return
    at = start = 0
    for token in tokens:
        at += len(token)
        end = max(start, at if ends_C is None or not at else ends_C[at - 1])
        yield start, end
        start = end


def _looked_for(raw: str, tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Each token where it is found next, or else where the one before ends."""
    at = 0
    for token in tokens:
        found = at if token.isspace() else raw.find(token, at)
        start = at if found < 0 else found
        at = min(len(raw), start + len(token))
        yield start, at
