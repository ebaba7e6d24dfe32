"""Drawn words in an answer, put back on the user's side: post-processing, free of charge.

A released word goes back only where it can mean one source word alone: it was drawn for one source word in
the whole of what was sent, and stands nowhere in it by itself. So `the doctor` is right again where `doctor`
was released for `nurse`, and what the host says of its own accord in the same word is changed with it.
Threat model: the host may write any text; what is put back reaches the user alone.
Does not protect: a host that uses a released word in its own sense has it changed. An answer that was
changed so may be resent; until `may_collide` knows such words its own text must not be recalled for it.
Source: post-processing, Dwork and Roth 2014, proposition 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from transom.privacy.capitals import case_of, with_case
from transom.privacy.forms import FORM

# Not what stands in or next to a bracket, a digit or an underscore: no placeholder is made or unmade.
_WORD = re.compile(r"(?<![\[<{;&\\A-Za-z0-9_])(?<![A-Za-z]')[A-Za-z]++(?![0-9_\\]|'[A-Za-z]{2})")
_HISSING = re.compile(r"(?:[sxz]|ch|sh)\Z")


def drawn_words(pieces: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Released word to source word, of (action, output, source) pieces, for words that stand for one alone.

    >>> drawn_words([("draw", "Cat", "Dog"), ("draw", "sun", "sky"), ("pass", "sun", "sun")])
    {'cat': 'dog'}
    """
    sources: dict[str, set[str]] = {}
    for action, output, source in pieces:
        drawn = action in ("draw", "memo")
        sources.setdefault(output.lower(), set()).add(source.lower() if drawn else "")
    return {released: one for released, (one, *more) in sources.items() if one and not more}


def restore_words(text: str, drawn: Mapping[str, str]) -> str:
    """`text` as the host wrote it, with the words of `drawn` put back; placeholders stay for their own turn.

    The case pattern is kept, and so is a regular plural.

    >>> restore_words("Cats and a [PERSON_1] CAT, the_cat", {"cat": "fox"})
    'Foxes and a [PERSON_1] FOX, the_cat'
    """
    pieces, position = [], 0
    for form in FORM.finditer(text):
        pieces += [_put_back(text, position, form.start(), drawn), form[0]]
        position = form.end()
    return "".join([*pieces, _put_back(text, position, len(text), drawn)])


def _put_back(text: str, start: int, end: int, drawn: Mapping[str, str]) -> str:
    pieces, position = [], start
    for match in _WORD.finditer(text, start, end):
        source = _source(match[0].lower(), drawn)
        if source is not None:
            pieces += [text[position : match.start()], with_case(source, case_of(match[0]))]
            position = match.end()
    return "".join([*pieces, text[position:end]])


def _source(word: str, drawn: Mapping[str, str]) -> str | None:
    if word in drawn:
        return drawn[word]
    for singular in _singulars(word):
        if singular in drawn and _plural(singular) == word:
            return _plural(drawn[singular])
    return None


def _singulars(word: str) -> tuple[str, ...]:
    if not word.endswith("s"):
        return ()
    return word[:-1], word[:-2], word[:-3] + "y"


def _plural(word: str) -> str:
    if _HISSING.search(word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y\Z", word) else word + "s"
