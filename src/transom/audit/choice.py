"""One text under several presets: what each leaves readable, what it changes without need, what it costs.

Every preset sanitises the same texts once, each a message of its own; nothing is sent or charged. Exposure is
counted by `exposure`, what is read by `recovery`. What a text is still good for is told by two cheap hints:
how many ordinary and instruction words stand there as they did, and the likeness of content words (ordinary
ones that are no pass words: cosine of their counts before and after, each weighted by its rarity; no model).
Neither is a task: `transom audit text --utility` measures one.

Threat model: that of `exposure` and `recovery`. Does not prove anything about other texts.
Source: own; cosine of weighted counts: Salton and Buckley 1988, "Term-weighting approaches".

Legend: S texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from transom.audit.exposure import NAMESAKE, Opinion, Word
from transom.audit.rarity import Rarity
from transom.audit.recovery import NAME, Attacker, recovery
from transom.privacy.kinds import base_of
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitizer
from transom.report.finding import Finding, measured, not_run
from transom.report.metrics import KEPT, LIKENESS, READ, READABLE
from transom.report.statistics import clustered_interval, mean_interval

ANOTHER_LANGUAGE = 0.25  # share of unknown letters from which a text reads like another language
_FEWEST_LETTERS, _LONGEST_WORD = 40, 30
_RARE = frozenset({"uncommon", "dictionary"})
Words = tuple[Word, ...]


@dataclass(frozen=True, eq=False)
class Exposure:
    """Texts under one preset: the words of each, and what its draws cost."""

    preset: str
    sanitizer: Sanitizer = field(repr=False)
    texts: tuple[Words, ...] = field(repr=False)
    epsilon_S: tuple[float, ...]
    read: Finding

    @cached_property
    def words(self) -> Words:
        """Those of all texts."""
        return tuple(word for words in self.texts for word in words)

    def count(self, which: Callable[[Word], bool]) -> int:
        """How many words are so."""
        return sum(map(which, self.words))

    @cached_property
    def private(self) -> Counter[str]:
        """Words that a second opinion takes for private, by kind."""
        return Counter(word.private for word in self.words if _certain(word))

    @cached_property
    def readable(self) -> Counter[str]:
        """Those of them that pass."""
        return Counter(word.private for word in self.words if word.readable and _certain(word))

    @cached_property
    def namesakes(self) -> tuple[int, int]:
        """Common words with a capital that may be names: how many pass, of how many."""
        found = [word for word in self.words if word.private == NAMESAKE]
        return sum(word.readable for word in found), len(found)

    @property
    def rare_passing(self) -> int:
        """Words that pass and are none of the most frequent ones."""
        return self.count(lambda word: word.kind in _RARE and word.action == "pass" and not word.private)

    @cached_property
    def likeness_S(self) -> tuple[float, ...]:
        """How alike the content words of each text are before and after; texts without any are left out."""
        rarity = Rarity(self.sanitizer.policy)
        return tuple(alike for words in self.texts if (alike := _likeness(words, rarity)) is not None)

    def findings(self) -> list[Finding]:
        """What is still readable, what is read, and what is kept."""
        return [
            self._share("second opinion", READABLE, _certain, lambda w: _certain(w) and w.readable),
            self.read,
            self._share("ordinary words", KEPT, lambda w: w.ordinary, lambda w: w.ordinary and w.shown),
            self._likeness(),
        ]

    def _share(
        self, name: str, metric: str, of: Callable[[Word], bool], which: Callable[[Word], bool]
    ) -> Finding:
        sizes_S = np.array([sum(map(of, words)) for words in self.texts])
        hits_S = np.array([sum(map(which, words)) for words in self.texts])
        sizes_S, hits_S = sizes_S[sizes_S > 0], hits_S[sizes_S > 0]
        if not len(sizes_S):
            return not_run(name, metric, "the text holds no such word")
        value = float(hits_S.sum() / sizes_S.sum())
        interval = clustered_interval(hits_S, sizes_S)
        return measured(name, metric, value, interval, baseline=0.0, n=int(sizes_S.sum()))

    def _likeness(self) -> Finding:
        if not self.likeness_S:
            return not_run("content words", LIKENESS, "the text holds no content word")
        alike_S = np.clip(np.array(self.likeness_S), 0.0, 1.0)
        value = float(alike_S.mean())
        return measured(
            "content words", LIKENESS, value, mean_interval(alike_S), baseline=0.0, n=len(alike_S)
        )


def expose(
    preset: str,
    sanitizer: Sanitizer,
    texts: Sequence[str],
    opinion: Opinion,
    attacker: Attacker | None = None,
) -> Exposure:
    """Sanitise `texts`, ask the second opinion, and let the attacker, if any, read.

    Raises MisconfiguredError.
    """
    made = [sanitizer.sanitize(text, placeholders=Placeholders()) for text in texts]
    pieces = [one.pieces for one in made]
    words = tuple(opinion.words(text, some) for text, some in zip(texts, pieces, strict=True))
    costs = tuple(one.epsilon for one in made)
    asked = not_run(NAME, READ, "no attacker was asked")
    read = asked if attacker is None else recovery(sanitizer, pieces, attacker)
    return Exposure(preset, sanitizer, words, costs, read)


def _certain(word: Word) -> bool:
    """Whether it is private, and not only a word that may be somebody's name."""
    return bool(word.private) and word.private != NAMESAKE


def unknown_share(texts: Iterable[Words]) -> float:
    """The share of letters, of words in lower case, that stand in words which nothing public knows."""
    known = unknown = 0
    for words in texts:
        for word in words:
            letters = min(len(word.source), _LONGEST_WORD)
            if word.source.isalpha() and word.source == word.source.lower():
                odd = word.kind == "rare" or base_of(word.kind) == "foreign"
                known, unknown = known + letters * (not odd), unknown + letters * odd
    return unknown / (known + unknown) if known + unknown >= _FEWEST_LETTERS else 0.0


def _likeness(words: Words, rarity: Rarity) -> float | None:
    """Cosine of the weighted counts of content words, before and after; None where there is none before."""
    content = [word for word in words if word.ordinary and word.kind != "stop"]
    before = Counter(word.source.lower() for word in content)
    after = Counter(word.output if word.action == "placeholder" else word.output.lower() for word in content)
    if not before:
        return None
    weight = {word: rarity.weight(word) ** 2 for word in before | after}
    dot = sum(before[word] * after[word] * weight[word] for word in before)
    norms = (
        math.sqrt(sum(count**2 * weight[word] for word, count in some.items())) for some in (before, after)
    )
    return dot / math.prod(norms)
