"""The text stage of mode words: every content field sanitised, one set of placeholders a request.

Threat model: the host reads every text this returns, remembers all requests, and may write any answer. An
answer is restored for the user and resent as history. Were it sanitised like the user's own words, the host
could name candidates for a hidden value and watch which placeholder comes back equal, or repeat a placeholder
until its value is drawn often. So an assistant message goes back in the host's own words if it is exactly
what was delivered at this point of the conversation, and else as one placeholder for the whole of it. Draws
are kept in the memo, and texts may be sent, only after the charge (`settle`). Whatever fails after the draw
fails after the charge too: a refusal that a draw can influence must not be a free redraw.
A request without a session that repeats an earlier one of the same account, byte by byte, within the retry
window reuses its draws: a client that resends after a failure would else show the host a fresh sample.
Requests of one session, and repeats of one request, take turns from draw to charge.
Does not protect: what the sanitiser's guarantee lists as disclosed, among it which messages of a session
were edited; and `REPEATS`, with a retry window.
Source: `transom.privacy.sanitize`; the retries are those of OpenAI's official clients.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from transom.privacy.guarantee import Guarantee
from transom.privacy.memo import PlaceMemo
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitized, Sanitizer

LONG_CHARS, LONG_MESSAGES = 4_000, 40  # beyond these the work leaves the event loop
REPEATS = "that a request repeats an earlier one of the same account, within the retry window"
_RETRY_PLACES = 400_000
_Result = TypeVar("_Result")


def is_long(fields: Sequence[tuple[str, str]]) -> bool:
    """Whether work whose time grows with these (role, text) pairs should leave the event loop."""
    return len(fields) > LONG_MESSAGES or sum([len(text) for _, text in fields]) > LONG_CHARS


async def aside(fields: Sequence[tuple[str, str]], work: Callable[[], _Result]) -> _Result:
    """Do work whose time grows with the fields; in a thread if they are long, as others wait for answers."""
    return await asyncio.to_thread(work) if is_long(fields) else work()


@dataclass(frozen=True)
class Veiled:
    """Texts as the host may see them, once `epsilon` is charged."""

    texts: tuple[str, ...] = field(repr=False)
    epsilon: float
    placeholders: Placeholders
    parts: tuple[Sanitized, ...] = field(repr=False)
    conversation: bytes = field(repr=False)  # a keyed digest of account and messages
    memo: PlaceMemo = field(repr=False)  # where its draws are kept once charged,
    name: str | None = field(repr=False)  # and under which name
    repeats: bool = False  # an earlier request, whose draws it reuses


class Veil:
    """Sanitises the texts of a request; remembers what sessions have released and what was answered.

    `retry_s` is how long a request without a session may be repeated at no cost; 0 switches that off.
    """

    def __init__(self, sanitizer: Sanitizer, memo: PlaceMemo | None = None, retry_s: float = 600.0) -> None:
        self.sanitizer = sanitizer
        self._memo = memo or PlaceMemo()
        self.retry_s = retry_s
        self._retries = PlaceMemo(_RETRY_PLACES, lifetime_s=retry_s)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def repeatable(self, account: str, endpoint: str, body: bytes) -> str | None:
        """The name that a request without a session shares with its repeats; None with no retry window."""
        if not self.retry_s:
            return None
        return f"{len(account)}:{account}:{endpoint}:{sha256(body).hexdigest()}"

    def turn(self, name: str | None) -> AbstractAsyncContextManager[None]:
        """One request of a session at a time, from its draw to its charge."""
        return nullcontext() if name is None else self._turns.setdefault(name, asyncio.Lock())

    async def cover(
        self,
        texts: Sequence[tuple[str, str]],
        account: str,
        session: str | None,
        repeat: str | None = None,
    ) -> Veiled:
        """Sanitise (role, text) pairs in order. Nothing is kept or charged yet.

        `repeat` is the name from `repeatable`; it is for requests without a session.
        """
        return await aside(texts, partial(self._cover, texts, account, session, repeat))

    def _cover(
        self, texts: Sequence[tuple[str, str]], account: str, session: str | None, repeat: str | None
    ) -> Veiled:
        placeholders, parts, covered = Placeholders(), [], []
        memo, name = (self._memo, session) if session is not None else (self._retries, repeat)
        repeats = session is None and repeat is not None and self._retries.knows(repeat)
        conversation = self._memo.link(b"", "account", account)
        for place, (role, text) in enumerate(texts):
            before, conversation = conversation, self._memo.link(conversation, role, text)
            if role == "assistant":
                own = self._memo.recall_answer(before, text)
                covered.append(placeholders.quote(text) if own is None else own)
                continue
            part = self.sanitizer.sanitize(
                text, placeholders=placeholders, memo=memo, session=name, place=place
            )
            parts.append(part)
            covered.append(part.text)
        epsilon = sum(part.epsilon for part in parts)
        return Veiled(tuple(covered), epsilon, placeholders, tuple(parts), conversation, memo, name, repeats)

    def settle(self, veiled: Veiled) -> None:
        """Keep the draws of a request whose epsilon has been charged."""
        veiled.memo.keep(*(part.pending for part in veiled.parts), session=veiled.name)

    def remember(self, veiled: Veiled, delivered: str, host: str) -> None:
        """An answer to this request, so that it can be resent in the host's own words."""
        self._memo.remember_answer(veiled.conversation, delivered, host)

    def guarantee(self) -> Guarantee:
        """What one drawn word is promised, with what the retry window discloses."""
        promise = self.sanitizer.guarantee()
        return replace(promise, discloses=(*promise.discloses, REPEATS)) if self.retry_s else promise

    def explain(self, veiled: Veiled) -> dict[str, Any]:
        """Guarantee, counts and the exact Bayes attacker's success for this request, JSON-ready."""
        drawn = sum(part.drawn for part in veiled.parts)
        guarantee = self.guarantee()
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
            "repeats": veiled.repeats,
            "counts": dict(counts),
            "bayes": {
                "success": sum(guess.success * guess.words for guess in guesses) / max(1, words),
                "chance": sum(guess.chance * guess.words for guess in guesses) / max(1, words),
                "recovered": sum(guess.recovered for guess in guesses),
                "words": words,
            },
        }
