"""Words of the sensitive fields: health, money, religion, politics, origin, sexuality, crime, family.

A word is of a field if most of its use, by WordNet's counts of senses, lies below the field's concepts
(`seeds.ROOTS`) or derives from a word there (`diagnose` from `diagnosis`), or if the project's own list has
it, and if it or what it is a form of is not called harmless there.
Threat model: none of its own; the lists are public, and so is that a word is on one. Does not protect: a
sentence can tell an illness without one word of the list (`the results came back positive`).
Source: WordNet 3.0 (Fellbaum 1998); the fields follow articles 9 and 10 of Regulation (EU) 2016/679.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transom.privacy.halves import MORE
from transom.privacy.lexicon import WordNet
from transom.privacy.seeds import ADDED, FIELDS, HARMLESS, OUTSIDE, ROOTS
from transom.privacy.senses import Senses

_PEOPLES = frozenset({"origin", "religion", "politics"})
_MAIN_SHARE = 0.5  # from here on a sense is what the word mostly means


def field_words(
    senses: Senses, lexicon: WordNet, words: Sequence[str], names: Collection[str]
) -> dict[str, str]:
    """Field of each of `words` that has one; a name counts only where the project's own list has it."""
    own = {word: name for name in reversed(FIELDS) for word in ADDED[name] | MORE[name]}
    lemmas: dict[str, str] = {}
    for name in FIELDS:
        found = senses.words(field_synsets(senses, name), _MAIN_SHARE) - HARMLESS
        for word in found - set(names):
            lemmas.setdefault(word, name)
    lemmas |= own
    fields = {}
    for word in words:
        reading = lexicon.word_class(word)
        lemma = reading[1] if reading else word
        harmless = word in HARMLESS or lemma in HARMLESS
        field = own.get(word) or (None if harmless else lemmas.get(word) or lemmas.get(lemma))
        if field:
            fields[word] = field
    # `Germans`: WordNet has the lemma with a capital, so its plural is no word to it.
    plural = {word: fields.get(word[:-1]) for word in words if word[-1:] == "s" and word not in fields}
    return fields | {
        word: field for word, field in plural.items() if field in _PEOPLES and word not in HARMLESS
    }


def field_synsets(senses: Senses, name: str) -> set[str]:
    """The concepts of a field."""
    outside = senses.subtree(OUTSIDE.get(name, ()))
    return senses.subtree(ROOTS[name]) - outside
