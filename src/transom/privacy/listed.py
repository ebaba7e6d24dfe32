"""The public word lists of a policy: names by type, namesakes, sensitive fields, instructions, dictionary.

Each word has one kind, decided by public resources and by the word alone:

- a word of the drawn vocabulary: `instruction`, else a sensitive field, else `namesake` if people or places
  are called so, else nothing;
- another word that a dictionary knows: the same, but as a name where its vector says that it is mostly one
  (`peter`, `anna`), and `dictionary` where nothing else holds;
- a word that no dictionary knows: `person`, `place` or `organisation` by the lists of names, by WordNet's
  single things, and where these are silent or disagree by the nearest centre of its vector; `dictionary` if
  that is the centre of common words and the word is put together from some (`groundwater`). A word that is
  near none is not listed.

Threat model: everything read here is public. It does not protect anything by itself; lists of 1990 and 2006
miss younger names, and a type can be wrong (a footballer called after a town).
Source: nearest centroids under a pooled covariance are Fisher's linear discriminant (1936).

Shape suffixes: V words, E embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transom.config import load_json
from transom.errors import PolicyError
from transom.privacy.closed import is_closed
from transom.privacy.fieldphrases import half_bits, parts, read_phrases
from transom.privacy.fields import field_words
from transom.privacy.halves import MORE
from transom.privacy.lexicon import FUNCTION_WORDS, Vectors, WordNet, read_vectors, read_wordnet
from transom.privacy.policy import COMMON_WORDS
from transom.privacy.seeds import (
    ADDED,
    EVERYDAY,
    INSTRUCTIONS,
    NO_NAMES,
    ORDINARY,
    ORGANISATIONS,
)
from transom.privacy.senses import Senses, read_senses
from transom.privacy.text import is_plain_word

GIVEN_FILES = ("dist.male.first", "dist.female.first")
FAMILY_FILE = "dist.all.last"
PLACE_FILES = ("countries.json", "us_states.json", "cities15000.json")
VECTOR_FILE = "glove.6B.50d.txt"
LIST_FILES = (*GIVEN_FILES, FAMILY_FILE, *PLACE_FILES, VECTOR_FILE)

_VECTORS = 400_000  # rows, most frequent first; a form of a dictionary word is one if it is there
_TYPES = ("person", "place", "organisation")
_FREQUENT = 60_000  # ranks up to which a word without a list is typed by its vector
_COMPOSED = 100_000  # ranks up to which it may be a word made of others
_PART = 3  # letters of the shortest part
_PREFIXES = (
    "un re non over under multi inter anti co pre sub semi mis out micro bio hydro eco cyber de dis counter "
    "mega mini super ultra self mid post pro"
)
_SUFFIXES = (
    "ship ness able ability less ful ity ing ed er ers like wise hood ism s ly ization isation ized ised"
)
_SURE = 0.9  # of the nearest centre, for a word on no list
_FAMILY_NAMES = 20_000  # of the census, most frequent first
_FIRST_NAMES = 1_000  # of each sex, most frequent first
_NAMESAKES = 10_000  # family names up to this rank make a common word a namesake
_VERY_FREQUENT = 3_000  # ranks of words that are namesakes of frequent names and large places alone
_ORDINARY = 10_000  # ranks up to which a word of the dictionary that is no name passes like a drawn one
_ALONE = 0.99  # of the nearest centre, for a word that WordNet's texts never show as a common one
_LARGE_PLACE = 100_000  # inhabitants from which the parts of a name count (`angeles`)


@dataclass(frozen=True)
class Names:
    """Public names in lower case: ranks of given and family names, inhabitants of places, parts of places."""

    given: Mapping[str, int] = field(repr=False)
    family: Mapping[str, int] = field(repr=False)
    places: Mapping[str, int] = field(repr=False)
    parts: frozenset[str] = field(repr=False)  # `angeles`, and `new`, which only a dictionary tells from it

    def people(self, word: str) -> bool:
        """Whether the census has the word as a given name or as a frequent family name."""
        return word in self.given or self.family.get(word, _FAMILY_NAMES) < _FAMILY_NAMES


def read_lists(
    folder: Path, wordnet: Path, vocabulary: Collection[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """The lists and phrases for a vocabulary, from the files `LIST_FILES` of a folder and from WordNet's.

    Raises PolicyError for what is missing, all at once, or malformed.
    """
    if missing := [name for name in LIST_FILES if not (folder / name).is_file()]:
        raise PolicyError(
            f"{folder}: lacks {', '.join(missing)}; docs/words.md (Policies) says where the lists come from"
        )
    names = read_name_lists(folder)
    vectors = read_vectors(folder / VECTOR_FILE, _VECTORS)
    return word_lists(vocabulary, vectors, read_wordnet(wordnet), read_senses(wordnet), names)


def read_name_lists(folder: Path) -> Names:
    """Read the census and place lists; a missing or malformed file is named."""
    given: dict[str, int] = {}
    for name in GIVEN_FILES:
        for word, rank in _ranked(folder / name).items():
            given[word] = min(rank, given.get(word, rank))
    return Names(given, _ranked(folder / FAMILY_FILE), *_places(folder))


def word_lists(
    vocabulary: Collection[str], vectors: Vectors, lexicon: WordNet, senses: Senses, names: Names
) -> tuple[dict[str, str], dict[str, int]]:
    """Word to kind for every word that has one, and phrases; `vectors` in order of frequency."""
    lists = _Lists(frozenset(vocabulary), vectors, lexicon, senses, names)
    words = [
        word
        for word in sorted(lists.words() | INSTRUCTIONS)
        if word.isalpha() and is_plain_word(word) and not is_closed(word) and word not in FUNCTION_WORDS
    ]
    fields = field_words(senses, lexicon, words, lists.called - lists.usual)
    listed = {word: kind for word in words if (kind := lists.kind(word, fields))}
    seldom = lists.seldom() - fields.keys() - INSTRUCTIONS
    halves = {word for word in seldom if half_bits(lexicon, word)}
    listed |= dict.fromkeys(parts(senses, seldom) | halves, "part")
    everything = sorted({*vocabulary, *listed, *FUNCTION_WORDS})
    common = lists.drawn - lists.seldom()
    return dict(sorted(listed.items())), read_phrases(senses, lexicon, everything, common)


_SINGLE = {
    "person": ("person.n.1",),
    "place": ("location.n.1", "body_of_water.n.1", "land.n.4", "mountain.n.1"),
    "organisation": ("organization.n.1",),
}


class _Lists:
    """The public resources side by side: what each says of a word, and which of them decides."""

    def __init__(
        self, drawn: frozenset[str], vectors: Vectors, lexicon: WordNet, senses: Senses, names: Names
    ) -> None:
        self.drawn, self.lexicon, self.names = drawn, lexicon, names
        self.single = {kind: senses.proper(roots) for kind, roots in _SINGLE.items()}
        dictionary = {word for lemmas in lexicon.lemmas.values() for word in lemmas}
        forms = {word for word in vectors.words if lexicon.word_class(word)}
        self.usual = drawn | forms | dictionary | ORDINARY
        self.whole = self.usual | FUNCTION_WORDS  # what words are put together from
        family = {word for word in names.family if names.people(word)}
        self.called = family.union(
            names.given, names.places, names.parts, ORGANISATIONS, *self.single.values()
        )
        spelled = (word for words in senses.members.values() for word in words)
        self.proper = {word.lower() for word in spelled if word.istitle()}  # `Advil`, `Bostonian`
        self.rank = {word: rank for rank, word in reversed(list(enumerate(vectors.words)))}
        self.centres = _Centres(vectors, self._cases())

    def words(self) -> frozenset[str]:
        """Every word that may get a kind."""
        return self.usual.union(self.called, self.proper, *ADDED.values(), *MORE.values()) | {
            word for word, rank in self.rank.items() if rank < _COMPOSED
        }

    def seldom(self) -> frozenset[str]:
        """The words that are drawn and not among the most frequent ones."""
        common = sorted(self.drawn, key=lambda word: self.rank.get(word, _VECTORS))[:COMMON_WORDS]
        return self.drawn - frozenset(common)

    def types(self, word: str) -> list[str]:
        """The types of name under which the public lists have the word."""
        if word in NO_NAMES or word in ORDINARY:
            return []
        part = word in self.names.parts and word not in self.usual
        lists = {
            "person": self.names.people(word),
            "place": part or word in self.names.places,
            "organisation": word in ORGANISATIONS,
        }
        return [kind for kind in _TYPES if lists[kind] or word in self.single[kind]]

    def kind(self, word: str, fields: Mapping[str, str]) -> str | None:
        """The kind of a word, or None when no list is to hold it."""
        if word in INSTRUCTIONS:
            return "instruction"
        if word in fields:
            return fields[word]
        if word in self.drawn:
            return "namesake" if self._namesake(word) else None
        return self._usual(word) if word in self.usual else self._name(word)

    def _usual(self, word: str) -> str:
        """Of a word of the dictionary: a name only where it is hardly anything else."""
        types = self.types(word)
        shares = self.centres.shares(self.rank.get(word))
        best = max(shares, key=shares.__getitem__) if shares and types else ""
        if best in types and word not in EVERYDAY:
            inhabitants = self.names.places.get(word, 0)
            first = self.names.given.get(word, _FIRST_NAMES) < _FIRST_NAMES
            frequent = first if best == "person" else inhabitants >= 10 * _LARGE_PLACE
            large = best == "person" or inhabitants >= _LARGE_PLACE
            alone = shares[best] > _ALONE and self.lexicon.count(word) == 0
            if (shares[best] > _SURE and frequent) or (alone and large):
                return best
        if types and self._namesake(word):
            return "namesake"
        return "ordinary" if not types and self.rank.get(word, _VECTORS) < _ORDINARY else "dictionary"

    def _name(self, word: str) -> str | None:
        """Of a word that no dictionary knows."""
        types = self.types(word)
        shares = self.centres.shares(self.rank.get(word))
        if types:
            return max(types, key=shares.__getitem__) if shares else types[0]
        if word in NO_NAMES or not shares or max(shares.values()) < _SURE:
            return None
        best = max(shares, key=shares.__getitem__)
        if best in _TYPES:
            return best if self.rank[word] < _FREQUENT else None
        return "dictionary" if self._composed(word) else None

    def _composed(self, word: str) -> bool:
        """Whether a word is put together from words of the dictionary: `groundwater`, `unsustainable`."""
        cuts = range(_PART, len(word) - _PART + 1) if len(word) > 2 * _PART else ()
        if any(word[:cut] in self.whole and word[cut:] in self.whole for cut in cuts):
            return True
        stems = [word.removeprefix(start) for start in _PREFIXES.split() if word.startswith(start)]
        for end in _SUFFIXES.split():
            if word.endswith(end):
                stems += [word.removesuffix(end), word.removesuffix(end) + "e"]
        return any(len(stem) > _PART and stem in self.usual for stem in stems)

    def _namesake(self, word: str) -> bool:
        """Whether people, places or companies are called so often enough that a capital may mean one.

        The more frequent the word, the more frequent the name must be: `More` and `Same` are places, too.
        """
        frequent = self.rank.get(word, _FREQUENT) < _VERY_FREQUENT
        given, family = (_FIRST_NAMES, 1_500) if frequent else (_FREQUENT, _NAMESAKES)
        inhabitants = _LARGE_PLACE if frequent else 0
        return word not in NO_NAMES and word not in ORDINARY and (
            word in ORGANISATIONS
            or self.names.given.get(word, given) < given
            or self.names.family.get(word, family) < family
            or self.names.places.get(word, -1) >= inhabitants
        )  # fmt: skip

    def _cases(self) -> dict[str, list[int]]:
        """Rows of the vectors that are clear cases of a common word or of one type of name."""
        classes: dict[str, list[int]] = {"common": [], **{kind: [] for kind in _TYPES}}
        for word, rank in self.rank.items():
            types = self.types(word)
            if word in self.drawn and not types:
                classes["common"].append(rank)
            elif word not in self.usual and len(types) == 1 and rank < _FREQUENT:
                classes[types[0]].append(rank)
        return {name: rows for name, rows in classes.items() if rows}


class _Centres:
    """The means of the vectors of clear cases, and how near to each a word's vector lies."""

    def __init__(self, vectors: Vectors, cases: Mapping[str, list[int]]) -> None:
        self.vectors_VE = vectors.vectors_VE
        self.names = tuple(cases)
        groups = [self._unit(np.array(rows)) for rows in cases.values()]
        self.centres_CE = np.stack([group.mean(axis=0) for group in groups])
        within_EE = np.mean([np.cov(group.T, bias=True) for group in groups], axis=0)
        size = len(within_EE)
        self.precision_EE = np.linalg.inv(within_EE + 1e-3 * np.trace(within_EE) / size * np.eye(size))

    def shares(self, row: int | None) -> dict[str, float]:
        """How much a row of the vectors speaks for each class, from 0 to 1; empty without one."""
        if row is None:
            return {}
        away_CE = self._unit(np.array([row])) - self.centres_CE
        score_C = -0.5 * np.einsum("ce,ef,cf->c", away_CE, self.precision_EE, away_CE)
        share_C = np.exp(score_C - score_C.max())
        return dict(zip(self.names, (share_C / share_C.sum()).tolist(), strict=True))

    def _unit(self, rows_V: NDArray[np.int64]) -> NDArray[np.float64]:
        x_VE = self.vectors_VE[rows_V].astype(np.float64)
        return np.asarray(x_VE / (np.linalg.norm(x_VE, axis=1, keepdims=True) + 1e-12))


def _ranked(path: Path) -> dict[str, int]:
    """Names of a census file, one a line with further columns, to their rank from 0."""
    words = [line.split()[0].lower() for line in _text(path).splitlines() if line.strip()]
    return {word: rank for rank, word in reversed(list(enumerate(words)))}


def _places(folder: Path) -> tuple[dict[str, int], frozenset[str]]:
    """Countries, states and cities to their inhabitants, and the parts of long names of large ones."""
    places: dict[str, int] = {}
    parts: set[str] = set()
    for name in PLACE_FILES:
        for spelled, inhabitants in _entries(folder / name):
            words = spelled.lower().replace("-", " ").split()
            if len(words) == 1:
                places[words[0]] = max(inhabitants, places.get(words[0], 0))
            elif inhabitants >= _LARGE_PLACE:
                parts.update(word for word in words if len(word) > 3)
    return places, frozenset(parts)


def _entries(path: Path) -> Iterator[tuple[str, int]]:
    try:
        records = load_json(_text(path)).values()
        # A state has no number of inhabitants there: it counts as large.
        yield from ((record["name"], int(record.get("population", _LARGE_PLACE))) for record in records)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(
            f"{path}: not a list of places in GeoNames' fields ({type(error).__name__})"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read ({type(error).__name__})") from error
