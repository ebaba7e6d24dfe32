"""Words and phrases of a list, found in a text in linear time, however long the list is.

An entry is matched by whole words, folded (`transom.privacy.folded`): in any case, with any white space
between its words, other signs as they are written. `Miller` is found in `MILLER's` and in `Miller-Lee`, not
in `Millers`; `AT&T` also in `At & T`. In scripts without blanks a word is what stands between signs.
At each word the longest entry that begins there is found.
Threat model: crafted text; entries have at most `MOST_WORDS` words, so that no text takes more than linear
time. Does not protect: other forms of an entry (plurals, misspellings): list them too, or give a pattern.
Source: own; hashed n-grams of words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from transom.privacy.folded import MARKS, fold
from transom.privacy.kinds import Span

MOST_WORDS = 32
WORD = re.compile(rf"[\w{MARKS}]+")
_PIECE = re.compile(rf"[\w{MARKS}]+|[^\w\s]")
Key = tuple[str, ...]


def key_of(entry: str) -> Key:
    """The words and signs of an entry, as they are compared.

    >>> key_of("O'Neil  & Sons")
    ('o', "'", 'neil', '&', 'sons')
    """
    return tuple(_PIECE.findall(fold(entry).text))


class Phrases:
    """Entries by key, with the kind of each."""

    def __init__(self, kind_of: Mapping[Key, str]) -> None:
        lengths: dict[str, set[int]] = {}
        for key in kind_of:
            lengths.setdefault(key[0], set()).add(len(key))
        self._kind_of = kind_of
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def __len__(self) -> int:
        return len(self._kind_of)

    def find(self, text: str) -> Iterator[Span]:
        """The longest entry at each word."""
        folded = fold(text)
        words = _PIECE.findall(folded.text)
        if self._lengths.keys().isdisjoint(words):
            return
        places = [match.span() for match in _PIECE.finditer(folded.text)]
        for index, word in enumerate(words):
            for length in self._lengths.get(word, ()):
                key = tuple(words[index : index + length])  # shorter at the text's end
                if key in self._kind_of:
                    end = places[index + len(key) - 1][1]
                    yield Span(*folded.raw(places[index][0], end), self._kind_of[key])
                    break
