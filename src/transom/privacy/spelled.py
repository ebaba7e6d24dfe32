"""Words that are spelled out, letter by letter: `M-I-L-L-E-R`, `O K A F O R`. One token each, an identifier.

Single letters pass, so a name that somebody spells would be read from them. Spelled out are three letters or
more with a hyphen or a blank between each two, four or more with a full stop, a comma or another sign; all
with the same. Letters that count up (`A, B, C, D`, `x y z`) are none, nor is what is joined with a name.

Threat model: that of the lexer. Single letters are never drawn, so no reading here depends on a drawn word.
Does not protect: letters with anything else between them (`M for mother, I for India`).
Source: own.
"""

from __future__ import annotations

import re
from itertools import pairwise

from transom.privacy.text import Token

_SPELLED = re.compile(
    r"""
    (?<![A-Za-z0-9_'-])[A-Za-z](?:
        (?P<near>[- ])[A-Za-z](?:(?P=near)[A-Za-z](?![A-Za-z0-9_']))+
        |(?P<sign>[.,/*|+:][ ]?)[A-Za-z](?:(?P=sign)[A-Za-z](?![A-Za-z0-9_'])){2,}
    )
    """,
    re.VERBOSE,
)


def spelled(tokens: list[Token], clean: str) -> list[Token]:
    """The tokens of the normalised text `clean`, with one for each word that is spelled out in it."""
    found = [match.span() for match in _SPELLED.finditer(clean) if not _counts_up(match[0])]
    if not found:
        return tokens
    starts, at = {}, 0
    for index, token in enumerate(tokens):
        starts[at] = index
        at += len(token.text)
    starts[at] = len(tokens)
    joined, end = [], 0
    for start, stop in found:
        if start in starts and stop in starts:  # else it is a part of something longer
            joined += [*tokens[end : starts[start]], Token("identifier", clean[start:stop])]
            end = starts[stop]
    return joined + tokens[end:]


def _counts_up(run: str) -> bool:
    letters = [ord(one) for one in run.lower() if one.isalpha()]
    return all(after == before + 1 for before, after in pairwise(letters))
