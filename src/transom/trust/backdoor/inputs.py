"""Which inputs look as if they carried a trigger: those whose heads agree as they do on no trusted text.

Threat model: see the room. A flag is a suspicion; the word that heads agree on says what to look at.
Does not protect: inputs of fewer than three words are not scored, and said to be so; what stands beyond
`most_tokens` is not seen.
Source: `measures`, `normal`.

Shapes: N texts, L layers, M measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.measures import Floats, seen
from transom.trust.backdoor.normal import Normal, fit
from transom.trust.backdoor.words import PLAIN, Frame, Words, is_causal, words_of

MOST_TOKENS = 256
_SHOWN = 40  # characters of a word


@dataclass(frozen=True)
class Scanned:
    """One input by its number, from 1: its statistic, the share of trusted texts that reach it, whether it
    is flagged, and the word that most heads of the last layer look at. Of one that was not scored `reason`
    says why."""

    row: int
    statistic: float | None = None
    p_value: float | None = None
    flagged: bool = False
    word: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Scanner:
    """Scans texts for a model, each in `frame`. `heard` is called after each text that was read."""

    model: Any
    tokenizer: TokenizerFiles
    frame: Frame = PLAIN
    heard: Callable[[], None] = bool  # type: ignore[assignment]

    def normal(self, trusted: Sequence[str]) -> Normal:
        """What is usual; a text that stands there again counts once. Raises MisconfiguredError for too few
        texts of three words and more."""
        words = self.distinct(trusted)
        measures_NLM = self._measures(words)[0]
        return fit(measures_NLM, [len(one.ids) for one in words])

    def distinct(self, texts: Sequence[str]) -> list[Words]:
        """Texts of three words and more, each once."""
        return list({one.ids: one for one in map(self._words, texts) if isinstance(one, Words)}.values())

    def scan(self, normal: Normal, texts: Sequence[str], rate: float) -> list[Scanned]:
        """Each text in order; one is flagged where at most the share `rate` of trusted texts is as far."""
        if not 1 / (1 + len(normal.held)) <= rate < 1:
            raise MisconfiguredError(
                f"a false-positive rate of {rate:g} cannot be told by {len(normal.held)} held-out texts; "
                f"give more trusted texts, or a rate of at least {1 / (1 + len(normal.held)):.2g}"
            )
        words = list(map(self._words, texts))
        read = [one for one in words if isinstance(one, Words)]
        measures_NLM, agreed = self._measures(read)
        statistics_N = (
            normal.statistics(measures_NLM, [len(one.ids) for one in read]) if read else np.empty(0)
        )
        found = iter(zip(read, statistics_N, normal.p_values(statistics_N), agreed, strict=True))
        return [
            Scanned(row, reason=one) if isinstance(one, str) else _scanned(row, *next(found), rate=rate)
            for row, one in enumerate(words, 1)
        ]

    def _words(self, text: str) -> Words | str:
        """Its words, or why it has too few."""
        try:
            return words_of(
                self.tokenizer, text,
                causal=is_causal(self.model), most_tokens=self._most_tokens, frame=self.frame,
            )  # fmt: skip
        except MisconfiguredError as error:
            return str(error)

    @property
    def _most_tokens(self) -> int:
        return min(MOST_TOKENS, getattr(self.model.config, "max_position_embeddings", MOST_TOKENS))

    def _measures(self, words: Sequence[Words]) -> tuple[Floats, list[tuple[int, ...]]]:
        measures, agreed = [], []
        for one in seen(self.model, words):
            measures.append(one.measures_LM)
            agreed.append(one.agreed_L)
            self.heard()
        return np.array(measures), agreed


def _scanned(
    row: int, words: Words, statistic: float, p_value: float, agreed_L: tuple[int, ...], *, rate: float
) -> Scanned:
    word = words.words[agreed_L[-1]][:_SHOWN]
    return Scanned(row, float(statistic), float(p_value), bool(p_value <= rate), word)
