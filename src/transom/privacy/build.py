"""Build a word policy: a public partition of a vocabulary into groups of similar words.

A group holds words of one word class (WordNet), one polarity (a public lexicon, spread by WordNet's synonyms
and a ridge regression on the public vectors) and similar meaning and frequency. Coherent groups are where
accuracy comes from at small epsilon; similar frequencies keep the attacker's guess without any observation
(chance) low. Neither costs epsilon, because group identity is public by declaration. Names and the lexer's
closed forms, which are never drawn, are taken out before: every word of a group can be drawn.

Threat model: everything read here is public. What it does not protect: the group of a word is disclosed, so
its word class and its polarity are too. Never build a policy from the text it is to protect.
Source: the partition idea of Chen et al. 2023 (CUSTEXT, arXiv 2207.01193), with other groups; recursive
bisection and k-means with capacities are textbook methods.

Shape suffixes: V vocabulary, N words of a class, E embedding, G groups, K words of a group, S flat scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from transom.errors import PolicyError
from transom.privacy.closed import CLOSED_FORMS, is_closed
from transom.privacy.lexicon import (
    FUNCTION_WORDS,
    Vectors,
    WordNet,
    read_names,
    read_polarity,
    read_vectors,
    read_wordnet,
    spread_by_synonyms,
)
from transom.privacy.listed import LIST_FILES, read_lists
from transom.privacy.partition import LARGEST_GROUP
from transom.privacy.policy import Policy, write_policy
from transom.privacy.text import is_plain_word

Floats = NDArray[np.float64]

_FREQUENCY_WEIGHT = 0.3  # weight of log frequency beside the unit vector of meaning when groups are formed
_POLARITY_THRESHOLD = 0.5  # ridge score above which a word outside the lexicon counts as polar
_COMMON_WORD_COUNT = 3  # a name met this often as a common word in WordNet's tagged texts stays a word
_ZIPF_OFFSET = 2.7  # Mandelbrot's correction: frequency is proportional to 1 / (rank + 2.7)
_DEFAULT_KINDS: dict[str, str | float] = {
    "stop": "pass", "name": "placeholder", "number": "placeholder", "identifier": "placeholder",
    "rare": "placeholder", "foreign": "placeholder", "symbol": "placeholder",
}  # fmt: skip


@dataclass(frozen=True)
class Groups:
    """Groups of vocabulary rows, with the table in policy order."""

    words: tuple[str, ...]
    starts_G1: NDArray[np.int32]
    scores_S: NDArray[np.uint8]
    prior_V: NDArray[np.float32]
    pass_share: float  # share of running text, by public frequency, that is function words
    names: frozenset[str]  # words left out because they name people


def build_policy(
    embeddings: Path,
    out: Path,
    *,
    name: str = "custom",
    language: str = "en",
    vocabulary_size: int = 20_000,
    group_size: int = 20,
    wordnet: Path | None = None,
    polarity: Path | None = None,
    names: Sequence[Path] = (),
    lists: Path | None = None,
    epsilon: float = 4.0,
    mechanism: str = "rnm",
    notices: list[str] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Policy:
    """Build the groups from public files and write the policy file `out`; returns the policy as loaded back.

    The vocabulary is the `vocabulary_size` most frequent words that can be drawn; the policy's list of names
    holds the people's names met on the way. `lists`: a folder of public lists (`listed.LIST_FILES`), by which
    words get kinds; it needs `wordnet`. `progress` is called with the share done, from 0 to 1. Raises
    `PolicyError` for unusable input.
    """
    if lists and not wordnet:
        raise PolicyError("lists of words by kind need WordNet besides: name its folder (--wordnet)")
    lexicon = read_wordnet(wordnet) if wordnet else None
    people = read_names(names) - FUNCTION_WORDS
    if lexicon:  # `hope` and `mark` are words first, `peter` and `marguerite` are not
        people = frozenset(word for word in people if lexicon.count(word) < _COMMON_WORD_COUNT)
    read = read_vectors(embeddings, vocabulary_size * 4 + len(people | CLOSED_FORMS | FUNCTION_WORDS))
    progress(0.3)
    valences = read_polarity(polarity) if polarity else {}
    if lexicon and valences:
        valences = spread_by_synonyms(valences, lexicon)
    groups = build_groups(read, lexicon, valences, vocabulary_size, group_size, people)
    progress(0.7)
    listed, phrases = read_lists(lists, wordnet, groups.words) if lists and wordnet else ({}, {})
    progress(0.9)
    sources = [path.name for path in (embeddings, wordnet, polarity, *names) if path]
    sources += LIST_FILES if lists else ()
    return write_policy(
        out,
        words=groups.words,
        starts_G1=groups.starts_G1,
        scores_S=groups.scores_S,
        prior_V=groups.prior_V,
        pass_words=sorted(FUNCTION_WORDS),
        name=name,
        language=language,
        kinds={**_DEFAULT_KINDS, "word": epsilon},
        mechanism=mechanism,
        sources=sources,
        licence_notices=notices or [],
        polarity_coherent=bool(valences),
        pass_share=groups.pass_share,
        names=groups.names,
        listed=listed,
        phrases=phrases,
    )


def build_groups(
    read: Vectors,
    lexicon: WordNet | None,
    valences: dict[str, int],
    vocabulary_size: int,
    group_size: int,
    names: frozenset[str] = frozenset(),
) -> Groups:
    """Choose the vocabulary, classify it, split each class into groups of about `group_size` words."""
    if not 2 <= group_size <= LARGEST_GROUP:
        raise PolicyError(f"group_size must lie between 2 and {LARGEST_GROUP}, got {group_size}")
    rows, classes, met = _vocabulary(read, lexicon, valences, vocabulary_size, names)
    if len(rows) < 2:
        raise PolicyError(f"only {len(rows)} usable words found; at least 2 are needed for a group")
    unit_VE = read.vectors_VE[rows].astype(np.float64)
    unit_VE -= unit_VE.mean(axis=0)  # the common direction says nothing about meaning (Mu and Viswanath 2018)
    unit_VE /= np.linalg.norm(unit_VE, axis=1, keepdims=True) + 1e-12
    rank_V = np.log(np.asarray(rows) + _ZIPF_OFFSET)
    frequency_V1 = _FREQUENCY_WEIGHT * ((rank_V - rank_V.mean()) / (rank_V.std() + 1e-12))[:, None]
    features_VF = np.hstack([unit_VE, frequency_V1])
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(classes):
        members[label].append(index)
    _merge_small_classes(members)
    groups = [
        g for label in sorted(members) for g in _cluster(np.array(members[label]), features_VF, group_size)
    ]
    weight_V = 1.0 / (np.asarray(rows) + 1 + _ZIPF_OFFSET)
    passing = sum(1.0 / (row + 1 + _ZIPF_OFFSET) for row, w in enumerate(read.words) if w in FUNCTION_WORDS)
    order_V = np.concatenate(groups)
    return Groups(
        words=tuple(read.words[rows[i]] for i in order_V),
        starts_G1=np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int32),
        scores_S=np.concatenate([_scores(unit_VE[g]) for g in groups]),
        prior_V=(weight_V[order_V] / weight_V.sum()).astype(np.float32),
        pass_share=float(passing / (passing + weight_V.sum())),
        names=met,
    )


def _vocabulary(
    read: Vectors, lexicon: WordNet | None, valences: dict[str, int], size: int, names: frozenset[str]
) -> tuple[list[int], list[str], frozenset[str]]:
    """Rows of the embedding file that become vocabulary, the public class of each, and the names left out."""
    rows: list[int] = []
    classes: list[str] = []
    lemmas: list[str] = []
    seen: set[str] = set()
    for row, word in enumerate(read.words):
        if len(rows) >= size:
            break
        usable = word.isalpha() and is_plain_word(word)
        if not usable or word in FUNCTION_WORDS or word in seen:
            continue
        reading = lexicon.word_class(word) if lexicon else ("word", word)
        if reading is None:
            continue  # proper names and misspellings: they stay out and are treated as rare
        seen.add(word)
        if word in names or is_closed(word):
            continue  # never drawn
        rows.append(row)
        classes.append(reading[0])
        lemmas.append(reading[1])
    if valences:
        signs = _spread_polarity(read, rows, lemmas, valences)
        classes = [f"{label}{sign:+d}" for label, sign in zip(classes, signs, strict=True)]
    return rows, classes, names & seen


def _spread_polarity(
    read: Vectors, rows: list[int], lemmas: list[str], valences: dict[str, int]
) -> NDArray[np.int64]:
    """+1, 0 or -1 a word: the lexicon's sign (of the word or its lemma), else a clear ridge regression's."""
    known_V = np.array(
        [valences.get(read.words[r], valences.get(lemma, 0)) for r, lemma in zip(rows, lemmas, strict=True)]
    )
    x_VE = read.vectors_VE[rows].astype(np.float64)
    x_VE = np.hstack([(x_VE - x_VE.mean(0)) / x_VE.std(0), np.ones((len(rows), 1))])
    polar = known_V != 0
    # The neutral majority would drown the polar words: weigh both sides equally.
    weight_V = np.where(polar, 0.5 / max(polar.sum(), 1), 0.5 / max((~polar).sum(), 1)) * len(rows)
    gram_EE = (x_VE * weight_V[:, None]).T @ x_VE + 10.0 * np.eye(x_VE.shape[1])
    score_V = x_VE @ np.linalg.solve(gram_EE, x_VE.T @ (weight_V * known_V))
    spread_V = np.where(np.abs(score_V) > _POLARITY_THRESHOLD, np.sign(score_V), 0).astype(np.int64)
    return np.where(polar, known_V, spread_V)


def _merge_small_classes(members: dict[str, list[int]], minimum: int = 6) -> None:
    """Fold classes with fewer than `minimum` words into the largest class of their polarity (or of all)."""
    for label in [label for label, indices in members.items() if len(indices) < minimum]:
        same_sign = [m for m in members if m != label and m[-2:] == label[-2:]] or [
            m for m in members if m != label
        ]
        if same_sign:
            members[max(same_sign, key=lambda m: len(members[m]))] += members.pop(label)


def _cluster(
    indices_N: NDArray[np.int64], features_VF: Floats, group_size: int, rounds: int = 8
) -> list[NDArray[np.int64]]:
    """Balanced k-means: parts of the bisection keep their sizes, words move to the nearest with room."""
    parts = list(_bisect(indices_N, features_VF, group_size))
    if len(parts) == 1:
        return parts
    order_N = np.concatenate(parts)
    x_NF = features_VF[order_N]
    sizes_G = np.array([len(part) for part in parts])
    labels_N = np.repeat(np.arange(len(parts)), sizes_G)
    for _ in range(rounds):
        centres_GF = np.stack([x_NF[labels_N == g].mean(axis=0) for g in range(len(parts))])
        distance_NG = (centres_GF**2).sum(axis=1) - 2 * x_NF @ centres_GF.T  # up to a constant per word
        labels_N = _assign(distance_NG, sizes_G)
    return [order_N[labels_N == g] for g in range(len(parts))]


def _assign(distance_NG: Floats, sizes_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """The nearest group with room for each word; words that lose most by a second choice come first."""
    two_N2 = np.partition(distance_NG, 1, axis=1)[:, :2]
    room_G = sizes_G.copy()
    labels_N = np.empty(len(distance_NG), dtype=np.int64)
    for word in np.argsort(two_N2[:, 0] - two_N2[:, 1], kind="stable"):
        group = int(np.where(room_G > 0, distance_NG[word], np.inf).argmin())
        labels_N[word] = group
        room_G[group] -= 1
    return labels_N


def _bisect(
    indices_N: NDArray[np.int64], features_VF: Floats, group_size: int
) -> Iterator[NDArray[np.int64]]:
    """Split by halves along the main direction until a part has at most `group_size` words.

    Parts hold a multiple of `group_size` words as long as possible, so most groups are full.
    """
    if len(indices_N) <= group_size:
        yield indices_N
        return
    x_NF = features_VF[indices_N] - features_VF[indices_N].mean(axis=0)
    covariance_FF = x_NF.T @ x_NF
    direction_F = np.linalg.eigh(covariance_FF)[1][:, -1]
    order_N = np.argsort(x_NF @ direction_F, kind="stable")
    full = -(-len(indices_N) // group_size)
    cut = full // 2 * len(indices_N) // full
    yield from _bisect(indices_N[order_N[:cut]], features_VF, group_size)
    yield from _bisect(indices_N[order_N[cut:]], features_VF, group_size)


def _scores(unit_KE: Floats) -> NDArray[np.uint8]:
    """Cosines of one group, stretched to [0, 1] within it (a public rescaling), quantised to 1/255."""
    cosine_KK = unit_KE @ unit_KE.T
    low = cosine_KK.min()
    scaled_KK = (cosine_KK - low) / max(1.0 - low, 1e-12)
    return np.asarray(np.rint(np.clip(scaled_KK, 0.0, 1.0) * 255).astype(np.uint8).ravel())
