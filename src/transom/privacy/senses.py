"""WordNet's senses: which one a word mostly has, what lies below a concept, and names of single things.

`lexicon.read_wordnet` reads word classes; here are the relations between senses that the lists of sensitive
fields and of names are made from. A word belongs to a field by its *main* senses: `cold` is mostly no
illness, `asthma` is nothing else.
Threat model: none of its own. It reads public text files, and what it yields is public.
Does not protect: WordNet 3.0 is of 2006 and counts senses in a small corpus; younger words and meanings are
missing.
Source: Fellbaum 1998, WordNet; file formats wndb(5WN) and senseidx(5WN).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from transom.errors import PolicyError

_POS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
_NUMBER = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_KIN = frozenset({"+", "\\", "<"})  # derived from, pertains to, participle of


@dataclass(frozen=True)
class Senses:
    """Synsets by identity (part of speech and offset), and the senses of each lower-case lemma.

    `members`: the words of a synset as they are spelled. `below`: its kinds; `single`: single things of this
    kind (Paris is one of the cities). `weights`: lemma to its synsets and how much of its
    use each is. `kin`: (synset, lower-case word) to the synsets of words derived from that sense.
    """

    members: dict[str, tuple[str, ...]] = field(repr=False)
    below: dict[str, tuple[str, ...]] = field(repr=False)
    single: dict[str, tuple[str, ...]] = field(repr=False)
    kin: dict[tuple[str, str], tuple[tuple[str, str], ...]] = field(repr=False)
    weights: dict[str, dict[str, float]] = field(repr=False)

    def subtree(self, roots: Iterable[str]) -> set[str]:
        """The synsets at and below these senses, each named as `disease.n.1`."""
        found: set[str] = set()
        waiting = [self.sense(root) for root in roots]
        while waiting:
            synset = waiting.pop()
            if synset not in found:
                found.add(synset)
                waiting += self.below.get(synset, ())
        return found

    def sense(self, name: str) -> str:
        """The synset of `lemma.pos.number`, as WordNet numbers the senses of a word."""
        lemma, pos, number = name.rsplit(".", 2)
        ordered = [synset for synset in self.weights.get(lemma, ()) if synset[0] == pos]
        if not 0 < int(number) <= len(ordered):
            raise PolicyError(f"WordNet has no sense {name}; the lists need WordNet 3.0")
        return ordered[int(number) - 1]

    def words(self, synsets: set[str], least_share: float) -> set[str]:
        """Single words, in lower case, of which these senses and their kin are this share of the use."""
        near = set(synsets)
        spelled = ((synset, word) for synset in synsets for word in self.members[synset])
        pairs = {(synset, word.lower()) for synset, word in spelled if not word.isupper()}
        own: dict[str, set[str]] = defaultdict(set)
        for synset, word in pairs:
            own[word].add(synset)
            for other, derived in self.kin.get((synset, word), ()):
                if other not in near:
                    own[derived].add(other)
        return {
            word
            for word, theirs in own.items()
            if word.isalpha() and self._share(word, theirs) >= least_share
        }

    def proper(self, roots: Iterable[str]) -> set[str]:
        """Single words, in lower case, that are of single things of these kinds."""
        synsets = (one for synset in self.subtree(roots) for one in self.single.get(synset, ()))
        found = (word for synset in synsets for word in self.members[synset])
        return {word.lower() for word in found if word.istitle() and word.isalpha()}

    def _share(self, word: str, theirs: set[str]) -> float:
        weights = self.weights.get(word, {})
        return sum(weights.get(synset, 0.0) for synset in theirs) / (sum(weights.values()) or 1.0)


def read_senses(folder: Path) -> Senses:
    """Read a folder of WordNet 3.0 database files (data.*, index.*, cntlist.rev)."""
    members: dict[str, tuple[str, ...]] = {}
    below: dict[str, tuple[str, ...]] = {}
    single: dict[str, tuple[str, ...]] = {}
    links: list[tuple[str, int, str, int]] = []
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    try:
        counts = _counts(folder / "cntlist.rev")
        for name, pos in _POS.items():
            for line in _rows(folder / f"data.{name}"):
                synset, words, pointers = _parsed(line, pos)
                members[synset] = words
                below[synset] = tuple(to for kind, to, _, _ in pointers if kind == "~")
                single[synset] = tuple(to for kind, to, _, _ in pointers if kind == "~i")
                links += [(synset, one, to, two) for kind, to, one, two in pointers if kind in _KIN]
            for line in _rows(folder / f"index.{name}"):
                fields = line.split()
                for number, offset in enumerate(fields[-int(fields[2]) :], start=1):
                    met = counts.get((pos, fields[0], number), 0)
                    weights[fields[0]][pos + offset] = met + 0.5 / number**2
        kin = _kin(members, links)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, IndexError) as error:
        raise PolicyError(f"{folder}: not a WordNet 3.0 database folder ({type(error).__name__})") from error
    return Senses(members, below, single, kin, dict(weights))


def _rows(path: Path) -> list[str]:
    """The lines without the licence, which is indented."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != " "]


def _counts(path: Path) -> dict[tuple[str, str, int], int]:
    """How often (part of speech, lemma, sense number) was met in WordNet's tagged texts."""
    counts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, number, count = line.split(" ")
        lemma, _, sense = key.partition("%")
        counts[_NUMBER[sense[0]], lemma, int(number)] = int(count)
    return counts


def _parsed(line: str, pos: str) -> tuple[str, tuple[str, ...], list[tuple[str, str, int, int]]]:
    """Synset, its words, and its pointers: (kind, synset, number of the own word, of the other's or 0)."""
    fields = line.split(" ")
    end = 4 + 2 * int(fields[3], 16)
    words = tuple(word.split("(")[0] for word in fields[4:end:2])
    rest = fields[end + 1 : end + 1 + 4 * int(fields[end])]
    pointers = [
        (kind, to_pos.replace("s", "a") + offset, int(numbers[:2], 16), int(numbers[2:], 16))
        for kind, offset, to_pos, numbers in zip(rest[::4], rest[1::4], rest[2::4], rest[3::4], strict=True)
    ]
    return pos + fields[0], words, pointers


def _kin(
    members: dict[str, tuple[str, ...]], links: list[tuple[str, int, str, int]]
) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    """Both ways: an adjective points to its noun, and the noun's field is the adjective's too."""
    kin: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for synset, one, other, two in links:
        if one and two:
            word, derived = members[synset][one - 1].lower(), members[other][two - 1].lower()
            kin[synset, word].add((other, derived))
            kin[other, derived].add((synset, word))
    return {key: tuple(sorted(found)) for key, found in kin.items()}
