"""Phrases of the sensitive fields, the halves that they are made of, and words that only such phrases have.

- Phrases are WordNet's collocations below a field's concepts (`seeds.ROOTS`), those of `halves.WHOLE`, and
  the plurals of both; a hyphen in them is a blank.
- Halves are the words of `halves.HALVES` with their inflections.
- Modifiers are the nouns and adjectives, by WordNet's counts, among the most frequent words.
- `parts` are the seldom words of all of these: as a word that may be drawn can be no part of a phrase, they
  are hidden where fields are.

Threat model: none of its own; all of this is public. It does not protect anything by itself.
Source: WordNet 3.0 (Fellbaum 1998).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from transom.privacy.fields import field_synsets
from transom.privacy.halves import HALVES, PHRASE_ROOTS, WHOLE
from transom.privacy.lexicon import WordNet
from transom.privacy.packed import BIT_OF_FIELD, MODIFIER, MOST_WORDS
from transom.privacy.seeds import FIELDS
from transom.privacy.senses import Senses

_HARMLESS = frozenset(
    {"little potato", "piece of ass", "soil bank", "facts of life", "big brother", "red tape", "coming out"}
)


def read_phrases(
    senses: Senses, lexicon: WordNet, words: Iterable[str], common: Collection[str]
) -> dict[str, int]:
    """Phrases, and halves among `words`, each with the bits of its fields; `common` may be modifiers."""
    entries = {phrase: BIT_OF_FIELD[field] for phrase, field in field_phrases(senses).items()}
    for word in words:
        reading, bits = lexicon.word_class(word), half_bits(lexicon, word)
        if reading and word in common and reading[0].partition(".")[0] in ("noun", "adj"):
            bits += MODIFIER
        if bits and word.isascii() and word.isalpha():
            entries[word] = bits
    return entries


def half_bits(lexicon: WordNet, word: str) -> int:
    """The bits of the fields in which a word is a half, as it is or as a form of one."""
    reading = lexicon.word_class(word)
    forms = {word, reading[1] if reading else word}
    return sum(BIT_OF_FIELD[field] for field in FIELDS if forms & HALVES[field])


def field_phrases(senses: Senses) -> dict[str, str]:
    """Phrase to field; one that fits several is of the first."""
    found: dict[str, str] = {}
    for field in FIELDS:
        synsets = field_synsets(senses, field) | senses.subtree(PHRASE_ROOTS.get(field, ()))
        spelled = (word for synset in sorted(synsets) for word in senses.members[synset])
        for phrase in (*WHOLE[field], *map(_plain, spelled)):
            if _fits(phrase):
                found.setdefault(phrase, field)
    plurals = {plural: field for phrase, field in found.items() for plural in _plurals(phrase)}
    return plurals | found


def parts(senses: Senses, seldom: Collection[str]) -> set[str]:
    """Those of `seldom` that phrases are made of."""
    return {word for phrase in field_phrases(senses) for word in phrase.split()} & set(seldom)


def _plain(spelled: str) -> str:
    return spelled.lower().replace("_", " ").replace("-", " ")


def _fits(phrase: str) -> bool:
    words = phrase.split(" ")
    return 1 < len(words) <= MOST_WORDS and phrase.isascii() and all(map(str.isalpha, words)) and (
        phrase not in _HARMLESS
    )  # fmt: skip


def _plurals(phrase: str) -> Iterator[str]:
    if phrase.endswith("y") and phrase[-2] not in "aeiou":
        yield phrase[:-1] + "ies"
    elif phrase.endswith(("s", "x", "ch", "sh")):
        yield phrase + "es"
    else:
        yield phrase + "s"
