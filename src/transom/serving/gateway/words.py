"""The text stage of mode words: every content field sanitised, one set of placeholders a request.

Threat model: the host reads every text this returns and remembers all requests of a session. Draws are kept
in the memo, and texts may be sent, only after the charge (`settle`).
Does not protect: what the sanitiser's guarantee lists as disclosed, among it which messages of a session
were edited.
Source: `transom.privacy.sanitize`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transom.privacy.memo import PlaceMemo
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitized, Sanitizer

LONG_CHARS = 20_000  # beyond this the work leaves the event loop


@dataclass(frozen=True)
class Veiled:
    """Texts as the host may see them, once `epsilon` is charged."""

    texts: tuple[str, ...] = field(repr=False)
    epsilon: float
    placeholders: Placeholders
    parts: tuple[Sanitized, ...] = field(repr=False)


class Veil:
    """Sanitises the texts of a request; remembers what sessions have released."""

    def __init__(self, sanitizer: Sanitizer, memo: PlaceMemo | None = None) -> None:
        self.sanitizer, self._memo = sanitizer, memo or PlaceMemo()

    async def cover(self, texts: Sequence[tuple[str, str]], session: str | None) -> Veiled:
        """Sanitise (role, text) pairs in order. Nothing is kept or charged yet."""
        if sum(len(text) for _, text in texts) > LONG_CHARS:
            return await asyncio.to_thread(self._cover, texts, session)
        return self._cover(texts, session)

    def _cover(self, texts: Sequence[tuple[str, str]], session: str | None) -> Veiled:
        placeholders, parts, covered = Placeholders(), [], []
        for place, (role, text) in enumerate(texts):
            own = None
            if role == "assistant" and session is not None:
                own = self._memo.recall_answer(session, place, text)
            if own is not None:  # the host's own words, which it knows
                covered.append(own)
                continue
            part = self.sanitizer.sanitize(
                text, placeholders=placeholders, memo=self._memo, session=session, place=place
            )
            parts.append(part)
            covered.append(part.text)
        return Veiled(tuple(covered), sum(part.epsilon for part in parts), placeholders, tuple(parts))

    def settle(self, veiled: Veiled) -> None:
        """Keep the draws of a request whose epsilon has been charged."""
        for part in veiled.parts:
            self._memo.keep(part.pending)

    def remember(self, session: str, place: int, delivered: str, host: str) -> None:
        """The answer at `place`, so that resending it costs nothing."""
        self._memo.remember_answer(session, place, delivered, host)

    def explain(self, veiled: Veiled) -> dict[str, Any]:
        """Guarantee, counts and the exact Bayes attacker's success for this request, JSON-ready."""
        drawn = sum(part.drawn for part in veiled.parts)
        guarantee = self.sanitizer.guarantee()
        if self.sanitizer.mechanism is not None:
            unit = f"one request with {drawn} fresh draws"
            guarantee = replace(guarantee, unit=unit, epsilon=veiled.epsilon)
        guesses = [self.sanitizer.bayes_guess(part) for part in veiled.parts]
        words = sum(guess.words for guess in guesses)
        counts: Counter[str] = Counter()
        for part in veiled.parts:
            counts.update(part.counts)
        return {
            "guarantee": guarantee.to_dict(),
            "counts": dict(counts),
            "bayes": {
                "success": sum(guess.success * guess.words for guess in guesses) / max(1, words),
                "chance": sum(guess.chance * guess.words for guess in guesses) / max(1, words),
                "recovered": sum(guess.recovered for guess in guesses),
                "words": words,
            },
        }
