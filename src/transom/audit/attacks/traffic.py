"""Traffic of obfuscated ids: what the host sees, what an attacker brings, and how a guess is scored.

Threat model: an honest-but-curious host that sees every id of every prompt and answer, and owns public text.
A fixed permutation of ids is a substitution cipher; it hides neither counts nor order. The attacks on it are
`tfma` (counts) and `sda` (counts and neighbours). Does not protect anything.
Source: AloePri, arXiv 2603.01499 (the two attacks' metrics).

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from transom.config import load_json
from transom.data.rows import decoded, opened
from transom.errors import MisconfiguredError
from transom.report.statistics import Ints

Texts = tuple[tuple[int, ...], ...]
Level = Literal["none", "domain", "distribution"]


@dataclass(frozen=True)
class Traffic:
    """The target: observed ids, one tuple a text; ids are below `vocabulary`."""

    texts: Texts
    vocabulary: int

    def __post_init__(self) -> None:
        if not self.texts or not all(self.texts):
            raise MisconfiguredError(
                f"traffic needs at least one text and no empty ones, got {len(self.texts)} texts"
            )
        low, high = min(map(min, self.texts)), max(map(max, self.texts))
        if low < 0 or high >= self.vocabulary:
            raise MisconfiguredError(
                f"traffic holds ids from {low} to {high}, outside the vocabulary of {self.vocabulary}; "
                "is it another model's?"
            )


@dataclass(frozen=True)
class Prior:
    """What the attacker knows: plain ids of text like the traffic, and some pairs {observed id: plain id}.

    `level` says how like: "none" has no text at all and takes the order of the ids for the order of
    frequency, which holds for byte-pair vocabularies, whose commoner merges come first; "domain" is other
    text of the language; "distribution" is held-out text of the same source. `known` comes from chat
    templates, whose tokens and places are public.
    """

    level: Level
    texts: Texts = ()
    known: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.level == "none") == bool(self.texts):
            raise MisconfiguredError(
                f"a prior of level {self.level!r} came with {len(self.texts)} texts; "
                "give none exactly for level 'none'"
            )


def reveal(texts: Texts, tau_V: Ints) -> Texts:
    """The plain texts behind observed `texts`, where tau_V[plain id] is the observed id."""
    return conceal(texts, np.argsort(tau_V))


def conceal(texts: Texts, tau_V: Ints) -> Texts:
    """The texts as the host sees them: each id through the permutation."""
    return tuple(tuple(int(tau_V[token]) for token in text) for text in texts)


def read_traffic(path: Path, vocabulary: int) -> Traffic:
    """Traffic from a file with one JSON list of ids a line. Raises MisconfiguredError, with the line."""
    texts = []
    with opened(path) as file:
        for number, line in enumerate(decoded(file, str(path)), 1):
            try:
                ids = load_json(line) if line.strip() else []
            except ValueError:
                ids = None
            if not isinstance(ids, list) or not all(type(token) is int for token in ids):
                raise MisconfiguredError(f"{path}, line {number}: not a JSON list of token ids")
            texts.append(tuple(ids))
    return Traffic(tuple(filter(None, texts)), vocabulary)


def flat(texts: Texts) -> Ints:
    """All ids in order [N]."""
    return np.fromiter((token for text in texts for token in text), dtype=np.int64)


def stream(texts: Texts) -> Ints:
    """All ids in order, with -1 before and after every text."""
    parts = [np.array([-1])]
    for text in texts:
        parts += [np.array(text), parts[0]]
    return np.concatenate(parts).astype(np.int64)


def by_frequency(texts: Texts, vocabulary: int) -> tuple[Ints, Ints]:
    """(ids by falling count, ties by id; counts by id [V])."""
    counts_V = np.bincount(flat(texts), minlength=vocabulary) if texts else np.zeros(vocabulary, np.int64)
    return np.argsort(-counts_V, kind="stable"), counts_V
