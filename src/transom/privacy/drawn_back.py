"""Drawn words in an answer, put back on the user's side: post-processing, free of charge.

A released word goes back only where it can mean one source word alone: it was drawn for one source word in
the whole of what was sent, and stands nowhere in it by itself. So `the doctor` is right again where `doctor`
was released for `nurse`, and what the host says of its own accord in the same word is changed with it.
Threat model: the host may write any text; what is put back reaches the user alone.
Does not protect: a host that uses a released word in its own sense has it changed. Different texts of a host
may become one: whoever recalls the host's own words for an answer that is resent must be `strict`
(`transom.privacy.memo`).
Source: post-processing, Dwork and Roth 2014, proposition 2.1.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

from transom.privacy.capitals import case_of, with_case
from transom.privacy.forms import FORM, LOOK_BEHIND_CHARS

# Not what stands in or next to a bracket, a digit or an underscore: no placeholder is made or unmade.
_WORD = re.compile(r"(?<![\[<{;&\\A-Za-z0-9_])(?<![A-Za-z]')[A-Za-z]++(?![0-9_\\]|'[A-Za-z]{2})")
_UNSETTLED = frozenset(string.ascii_letters + string.digits + "_'\\[<{;&")  # what a word's surroundings hold
_MOST_HELD = 256  # characters; no word is as long
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


class WordsBack:
    """`restore_words` in a stream, which holds back the tail that more text may change.

    A tail without blank or sign that grows beyond `_MOST_HELD` characters is let go as if the text ended.
    """

    def __init__(self, drawn: Mapping[str, str]) -> None:
        self._drawn, self._held = drawn, ""

    def feed(self, chunk: str) -> str:
        """What is settled so far."""
        text = self._held + chunk
        cut = _settled(text)
        self._held = text[cut:]
        return restore_words(text[:cut], self._drawn)

    @property
    def held_chars(self) -> int:
        """How much is held back."""
        return len(self._held)

    def close(self) -> str:
        """The rest."""
        tail, self._held = self._held, ""
        return restore_words(tail, self._drawn)


def _settled(text: str) -> int:
    """Where the part of `text` ends that no more text changes: behind a blank or sign, outside of a form."""
    cut = _before(text, len(text))
    opened = text.rfind("[", max(0, cut - LOOK_BEHIND_CHARS), cut)
    if opened >= 0 and "]" not in text[opened:cut]:
        cut = _before(text, opened)
    return cut if len(text) - cut <= _MOST_HELD else len(text)


def _before(text: str, end: int) -> int:
    """Where the run of unsettled characters begins that stands before `end`."""
    while end and text[end - 1] in _UNSETTLED:
        end -= 1
    return end


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
