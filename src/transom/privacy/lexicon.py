"""Public word resources for building a policy: vectors, WordNet word classes, polarity, function words.

Everything here is public and independent of any user's text: that is what lets a group, once built, be
disclosed for free. Threat model: none of its own. It does not protect anything, and it reads only text files.
Source: WordNet 3.0 file formats (wndb(5WN)); GloVe text format (Pennington et al. 2014); VADER lexicon
format (Hutto and Gilbert 2014).

Shape suffixes: V vocabulary, E embedding.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from transom.errors import PolicyError

# English closed-class words: they carry syntax, are very frequent, and pass. Negation is among them because
# replacing it inverts meaning; that it passes is part of the stated disclosure.
FUNCTION_WORDS = frozenset(
    """a an the this that these those some any no every each either neither both half
    i me my mine myself you your yours yourself he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves who whom whose which what there
    something anything nothing everything someone anyone everyone nobody
    and or but nor so if because although though while as than whether unless until since when where why how
    of in to for with on at by from about into through over after before between under during without within
    against among upon toward towards across behind beyond around off out up down near onto per via
    be am is are was were been being do does did done doing have has had having 's 're 've 'll 'd 'm
    will would can could may might must shall should ca wo not n't never
    s t don doesn didn isn wasn aren won couldn wouldn shouldn hasn haven hadn""".split()  # noqa: SIM905
)

_MINIMUM_VALENCE = 0.5
_SUFFIXES: dict[str, tuple[tuple[str, str, str], ...]] = {
    # wn(1) detachment rules: (suffix, replacement, name of the inflection)
    "noun": (
        ("s", "", "plural"), ("ses", "s", "plural"), ("xes", "x", "plural"), ("zes", "z", "plural"),
        ("ches", "ch", "plural"), ("shes", "sh", "plural"), ("men", "man", "plural"), ("ies", "y", "plural"),
    ),
    "verb": (
        ("s", "", "s"), ("ies", "y", "s"), ("es", "e", "s"), ("es", "", "s"), ("ed", "e", "ed"),
        ("ed", "", "ed"), ("ing", "e", "ing"), ("ing", "", "ing"), ("ied", "y", "ed"),
    ),
    "adj": (
        ("er", "", "er"), ("est", "", "est"), ("er", "e", "er"), ("est", "e", "est"), ("iest", "y", "est"),
        ("ier", "y", "er"),
    ),
    "adv": (),
}  # fmt: skip
_POS_NUMBER = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}


@dataclass(frozen=True)
class Vectors:
    """Words in order of public frequency, most frequent first, and their vectors (float32 [V, E])."""

    words: tuple[str, ...]
    vectors_VE: NDArray[np.float32] = field(repr=False)


def read_vectors(path: Path, limit: int) -> Vectors:
    """Read the first `limit` rows of a GloVe or word2vec text file (optionally .gz).

    Raises `PolicyError` for a missing file, a ragged row or a value that is not a finite number.
    """
    words: list[str] = []
    rows: list[NDArray[np.float32]] = []
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, start=1):
                parts = line.rstrip("\n").split(" ")
                if number == 1 and len(parts) == 2:
                    continue  # word2vec's header: count and dimension
                row = np.array(parts[1:], dtype=np.float32)
                if (rows and row.shape != rows[0].shape) or not row.size or not np.isfinite(row).all():
                    raise PolicyError(
                        f"{path}: line {number} does not hold a word and as many finite numbers as the first "
                        "line; expected GloVe or word2vec text format"
                    )
                words.append(parts[0])
                rows.append(row)
                if len(rows) >= limit:
                    break
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PolicyError(
            f"{path}: cannot be read as word vectors in GloVe text format ({type(error).__name__})"
        ) from error
    if not rows:
        raise PolicyError(f"{path}: holds no word vectors")
    return Vectors(tuple(words), np.stack(rows))


def _open_text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


@dataclass(frozen=True)
class WordNet:
    """What is needed of WordNet: lemmas by part of speech, their counts, irregular forms, synonyms."""

    lemmas: dict[str, frozenset[str]] = field(repr=False)
    counts: dict[tuple[str, str], int] = field(repr=False)
    irregular: dict[str, dict[str, str]] = field(repr=False)
    synonyms: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = field(
        repr=False
    )  # (synset, it and similar ones)

    def word_class(self, word: str) -> tuple[str, str] | None:
        """(class such as "noun.plural", lemma) of the most frequent reading; None for an unknown word."""
        readings = [
            (self.counts.get((pos, lemma), 0), inflection == "", pos, inflection, lemma)
            for pos in _SUFFIXES
            for lemma, inflection in self._readings(pos, word)
        ]
        if not readings:
            return None
        _, _, pos, inflection, lemma = max(readings)
        return (f"{pos}.{inflection}" if inflection else pos), lemma

    def count(self, word: str) -> int:
        """How often the word or its lemma was met as a common word in WordNet's tagged texts."""
        reading = self.word_class(word)
        forms = {word, reading[1]} if reading else {word}
        return sum(self.counts.get((pos, form), 0) for pos in _SUFFIXES for form in forms)

    def _readings(self, pos: str, word: str) -> list[tuple[str, str]]:
        lemmas = self.lemmas[pos]
        found = [(word, "")] if word in lemmas else []
        if (base := self.irregular[pos].get(word, "")) in lemmas:
            found.append((base, {"noun": "plural", "verb": "ed"}.get(pos, "er")))
        found += [
            (base, name)
            for suffix, replacement, name in _SUFFIXES[pos]
            if word.endswith(suffix) and len(word) > len(suffix) + 1
            and (base := word[: -len(suffix)] + replacement) in lemmas
        ]  # fmt: skip
        return found


def read_wordnet(folder: Path) -> WordNet:
    """Read a folder of WordNet 3.0 database files (data.*, *.exc, cntlist.rev), proper nouns left out."""
    lemmas: dict[str, frozenset[str]] = {}
    irregular: dict[str, dict[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    synonyms: list[tuple[tuple[str, ...], tuple[str, ...]]] = []
    try:
        for pos in _SUFFIXES:
            synsets = _read_synsets(folder / f"data.{pos}")
            lemmas[pos] = frozenset(word for words, _ in synsets.values() for word in words)
            for words, similar in synsets.values():
                near = [word for offset in similar if offset in synsets for word in synsets[offset][0]]
                synonyms.append((words, words + tuple(near)))
            exceptions = (folder / f"{pos}.exc").read_text(encoding="utf-8").splitlines()
            irregular[pos] = {parts[0]: parts[1] for parts in map(str.split, exceptions) if len(parts) > 1}
        for line in (folder / "cntlist.rev").read_text(encoding="utf-8").splitlines():
            key, _, count = line.split(" ")
            lemma, _, sense = key.partition("%")
            pos = _POS_NUMBER[sense[0]]
            counts[pos, lemma] = counts.get((pos, lemma), 0) + int(count)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, IndexError) as error:
        raise PolicyError(f"{folder}: not a WordNet 3.0 database folder ({type(error).__name__})") from error
    return WordNet(lemmas, counts, irregular, tuple(synonyms))


def _read_synsets(path: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Offset -> (lower-case words, offsets of synsets marked similar) for one part of speech."""
    synsets: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence at the head of each file
        fields = line.split(" ")
        end = 4 + 2 * int(fields[3], 16)
        words = tuple(s.split("(")[0] for s in fields[4:end:2] if s[:1].islower())
        pointers = fields[end + 1 : end + 1 + 4 * int(fields[end])]
        similar = tuple(
            offset for kind, offset in zip(pointers[::4], pointers[1::4], strict=True) if kind == "&"
        )
        synsets[fields[0]] = (words, similar)
    return synsets


def spread_by_synonyms(valences: dict[str, int], wordnet: WordNet, minimum_votes: int = 2) -> dict[str, int]:
    """The lexicon plus words whose synsets (and similar ones) vote clearly for one sign."""
    votes: dict[str, int] = {}
    for words, near in wordnet.synonyms:
        total = sum(valences.get(word, 0) for word in near)
        for word in words:
            votes[word] = votes.get(word, 0) + total
    spread = {word: (1 if vote > 0 else -1) for word, vote in votes.items() if abs(vote) >= minimum_votes}
    return spread | valences


def read_names(paths: Sequence[Path], limit: int = 5_500) -> frozenset[str]:
    """The first `limit` names of each file: one a line, most frequent first, further columns ignored.

    This is the format of the lists of the United States Census of 1990.
    """
    names: set[str] = set()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()[:limit]
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError(
                f"{path}: cannot be read as a list of names ({type(error).__name__})"
            ) from error
        names.update(line.split()[0].lower() for line in lines if line.strip())
    return frozenset(names)


def read_polarity(path: Path) -> dict[str, int]:
    """Read `word<TAB>valence[<TAB>...]` lines (VADER's format) into +1 / -1; weak valences are left out."""
    polarity: dict[str, int] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            word, valence = line.split("\t")[:2]
            if abs(float(valence)) >= _MINIMUM_VALENCE:
                polarity[word] = 1 if float(valence) > 0 else -1
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PolicyError(f"{path}: expected lines of word<TAB>valence ({type(error).__name__})") from error
    return polarity
