"""The text stage of mode words: every content field sanitised, one set of placeholders a request.

Threat model: the host reads every text this returns, remembers all requests, and may write any answer. An
answer is restored for the user and resent as history. Were it sanitised like the user's own words, the host
could name candidates for a hidden value and watch which placeholder comes back equal, or repeat a placeholder
until its value is drawn often. So an assistant message goes back in the host's own words if it is exactly
what was delivered at this point of the conversation, and else as one placeholder for the whole of it. Draws
are kept in the memo, and texts may be sent, only after the charge (`settle`).
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
    conversation: bytes = field(repr=False)  # a keyed digest of account and messages


class Veil:
    """Sanitises the texts of a request; remembers what sessions have released and what was answered."""

    def __init__(self, sanitizer: Sanitizer, memo: PlaceMemo | None = None) -> None:
        self.sanitizer, self._memo = sanitizer, memo or PlaceMemo()

    async def cover(self, texts: Sequence[tuple[str, str]], account: str, session: str | None) -> Veiled:
        """Sanitise (role, text) pairs in order. Nothing is kept or charged yet."""
        if sum(len(text) for _, text in texts) > LONG_CHARS:
            return await asyncio.to_thread(self._cover, texts, account, session)
        return self._cover(texts, account, session)

    def _cover(self, texts: Sequence[tuple[str, str]], account: str, session: str | None) -> Veiled:
        placeholders, parts, covered = Placeholders(), [], []
        conversation = self._memo.link(b"", "account", account)
        for place, (role, text) in enumerate(texts):
            before, conversation = conversation, self._memo.link(conversation, role, text)
            if role == "assistant":
                own = self._memo.recall_answer(before, text)
                covered.append(placeholders.quote(text) if own is None else own)
                continue
            part = self.sanitizer.sanitize(
                text, placeholders=placeholders, memo=self._memo, session=session, place=place
            )
            parts.append(part)
            covered.append(part.text)
        epsilon = sum(part.epsilon for part in parts)
        return Veiled(tuple(covered), epsilon, placeholders, tuple(parts), conversation)

    def settle(self, veiled: Veiled) -> None:
        """Keep the draws of a request whose epsilon has been charged."""
        for part in veiled.parts:
            self._memo.keep(part.pending)

    def remember(self, veiled: Veiled, delivered: str, host: str) -> None:
        """An answer to this request, so that it can be resent in the host's own words."""
        self._memo.remember_answer(veiled.conversation, delivered, host)

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
