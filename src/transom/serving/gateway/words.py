"""The text stage of mode words: every content field sanitised, one set of placeholders a request.

Threat model: the host reads every text this returns, remembers all requests, and may write any answer. An
answer is restored for the user and resent as history. Were it sanitised like the user's own words, the host
could name candidates for a hidden value and watch which placeholder comes back equal; repeat a placeholder
until its value is drawn often; or write it where its value reads as an ordinary word, and have it pass. So an
assistant message goes back in the host's own words if it is exactly what was delivered at this point of the
conversation, and else as one placeholder for the whole of it. Nothing in a text tells an answer that a client
has edited, or resends after a restart or in a shortened history, from an example of the caller's own; and any
likeness to earlier answers that we could look for would answer the host's guesses. So only the caller's word
makes an example of it. A message that says so itself is read like the user's own. Where the gateway was told
so of all, each hidden value becomes a `[QUOTE_n]`, untyped and linked with nothing, and each drawn word is
charged. If that word is wrong, these attacks work on such messages, but for the first where it was about all.
What the caller marks as public passes; an answer that is recognised is not taken as public.
Draws are kept in the memo, and texts may be sent, only after the charge (`settle`). Whatever fails after the
draw fails after the charge too: a refusal that a draw can influence must not be a free redraw.
A request without a session that repeats an earlier one of the same account, byte by byte, within the retry
window reuses its draws: a client that resends after a failure would else show the host a fresh sample.
Requests of one session, and repeats of one request, take turns from draw to charge.
Does not protect: what the sanitiser's guarantee lists as disclosed, among it which messages of a session
were edited; what is public; that an answer is resent; and `REPEATS`, with a retry window. A text that is
public in one request and private in another shows in the first.
Source: `transom.privacy.sanitize`; the retries are those of OpenAI's official clients.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from transom.privacy.drawn_back import drawn_words
from transom.privacy.guarantee import Guarantee
from transom.privacy.kinds import Span
from transom.privacy.memo import PlaceMemo
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Sanitized, Sanitizer
from transom.serving.gateway.marks import Mark

LONG_CHARS, LONG_MESSAGES = 4_000, 40  # beyond these the work leaves the event loop
REPEATS = "that a request repeats an earlier one of the same account, within the retry window"
OWN_EXAMPLES = "an assistant message that is no answer of this gateway is the caller's own, as it was told"
NAMED_EXAMPLES = "assistant messages that are marked as examples are the caller's own"
_WORD = re.compile("[A-Za-z]+")
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
    public: tuple[str, ...] = field(default=(), repr=False)  # the stretches that passed as public
    answers: tuple[str, ...] = field(default=(), repr=False)  # and the host's own
    marks: tuple[Mark, ...] = field(default=(), repr=False)
    repeats: bool = False  # an earlier request, whose draws it reuses


class _Unlinked:
    """Placeholders for text that may be a host's: each hidden value a quote of its own."""

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders

    def hide(self, _kind: str, value: str) -> str:
        return self._placeholders.quote(value)


class Veil:
    """Sanitises the texts of a request; remembers what sessions have released and what was answered.

    `retry_s` is how long a request without a session may be repeated at no cost; 0 switches that off.
    `public` are roles and `own_examples` is what the caller's marks say in general, for the guarantee.
    `restore_words`: drawn words are put back in answers, so of two answers at a point none is recalled.
    """

    def __init__(
        self,
        sanitizer: Sanitizer,
        memo: PlaceMemo | None = None,
        retry_s: float = 600.0,
        *,
        public: Sequence[str] = (),
        own_examples: bool = False,
        restore_words: bool = False,
    ) -> None:
        self.sanitizer = sanitizer
        self._memo = memo or PlaceMemo()
        self.retry_s = retry_s
        self._public, self._own_examples = tuple(dict.fromkeys(public)), own_examples
        self.restore_words = restore_words
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
        marks: Sequence[Mark] = (),
    ) -> Veiled:
        """Sanitise (role, text) pairs in order. Nothing is kept or charged yet.

        `repeat` is the name from `repeatable`; it is for requests without a session. `marks`, one a text, say
        what is public and what is an example.
        """
        marks = tuple(marks) or (Mark(),) * len(texts)
        return await aside(texts, partial(self._cover, texts, account, session, repeat, marks))

    def _cover(
        self,
        texts: Sequence[tuple[str, str]],
        account: str,
        session: str | None,
        repeat: str | None,
        marks: tuple[Mark, ...],
    ) -> Veiled:
        placeholders, parts, covered = Placeholders(), [], []
        public: list[str] = []
        answers: list[str] = []
        memo, name = (self._memo, session) if session is not None else (self._retries, repeat)
        repeats = session is None and repeat is not None and self._retries.knows(repeat)
        conversation = self._memo.link(b"", "account", account)
        for (_, text), mark in zip(texts, marks, strict=True):
            for span in mark.public:
                placeholders.reserve(text[span.start : span.end])
        for place, ((role, text), mark) in enumerate(zip(texts, marks, strict=True)):
            before = conversation
            said = role if mark == Mark() else f"{role} {mark!r}"
            conversation = self._memo.link(conversation, said, text)
            if role == "assistant":
                own = self._memo.recall_answer(before, text, strict=self.restore_words)
                if own is not None:
                    covered.append(own)
                    answers.append(own)
                    continue
                if not (mark.example or mark.unnamed):
                    covered.append(_quoted(text, mark.public, placeholders))
                    public += [text[span.start : span.end] for span in mark.public]
                    continue
            part = self.sanitizer.sanitize(
                text,
                placeholders=_Unlinked(placeholders) if mark.unnamed else placeholders,
                memo=memo,
                session=name,
                place=place,
                spans=mark.public,
            )
            parts.append(part)
            covered.append(part.text)
            public += part.public
        return Veiled(
            tuple(covered),
            sum(part.epsilon for part in parts),
            placeholders,
            tuple(parts),
            conversation,
            memo,
            name,
            tuple(public),
            tuple(answers),
            marks,
            repeats,
        )

    def settle(self, veiled: Veiled) -> None:
        """Keep the draws of a request whose epsilon has been charged."""
        veiled.memo.keep(*(part.pending for part in veiled.parts), session=veiled.name)

    def remember(self, veiled: Veiled, delivered: str, host: str) -> None:
        """An answer to this request, so that it can be resent in the host's own words."""
        self._memo.remember_answer(veiled.conversation, delivered, host)

    def drawn(self, veiled: Veiled) -> dict[str, str]:
        """The words to put back in an answer, by the word that was sent; none unless that was asked for."""
        if not (self.restore_words and any(part.drawn or part.recalled for part in veiled.parts)):
            return {}
        pieces = (piece for part in veiled.parts for piece in part.pieces)
        way = ((piece.action, piece.output, piece.source) for piece in pieces)
        by_themselves = (
            word[0] for text in (*veiled.public, *veiled.answers) for word in _WORD.finditer(text)
        )
        return drawn_words(chain(way, (("pass", word, word) for word in by_themselves)))

    def guarantee(self, veiled: Veiled | None = None) -> Guarantee:
        """What one drawn word is promised, with what the retry window and the caller's marks disclose.

        Of a request it says which marks there are, and what its draws cost together.
        """
        promise = self.sanitizer.guarantee()
        told = [f"messages of role {role}, unchanged: they are public" for role in self._public]
        assumed = [OWN_EXAMPLES] if self._own_examples else []
        if veiled is not None:
            marked = sum(len(mark.public) for mark in veiled.marks if not mark.public_role)
            told += [f"content parts that the caller marks as public ({marked}), unchanged"] if marked else []
            assumed += [NAMED_EXAMPLES] if any(mark.example for mark in veiled.marks) else []
            if self.sanitizer.mechanism is not None:
                drawn = sum(part.drawn for part in veiled.parts)
                unit = f"one request with {drawn} fresh draws"
                promise = replace(promise, unit=unit, epsilon=veiled.epsilon)
        told += [REPEATS] if self.retry_s else []
        discloses, assumptions = (*promise.discloses, *told), (*promise.assumptions, *assumed)
        return replace(promise, discloses=discloses, assumptions=assumptions)

    def explain(self, veiled: Veiled) -> dict[str, Any]:
        """Guarantee, counts and the exact Bayes attacker's success for this request, JSON-ready."""
        guesses = [self.sanitizer.bayes_guess(part) for part in veiled.parts]
        words = sum(guess.words for guess in guesses)
        counts: Counter[str] = Counter()
        for part in veiled.parts:
            counts.update(part.counts)
        return {
            "guarantee": self.guarantee(veiled).to_dict(),
            "public": list(veiled.public),
            "repeats": veiled.repeats,
            "counts": dict(counts),
            "bayes": {
                "success": sum(guess.success * guess.words for guess in guesses) / max(1, words),
                "chance": sum(guess.chance * guess.words for guess in guesses) / max(1, words),
                "recovered": sum(guess.recovered for guess in guesses),
                "words": words,
            },
        }


def _quoted(text: str, public: Sequence[Span], placeholders: Placeholders) -> str:
    """A text of which everything that is not public is one placeholder a stretch."""
    pieces, end = [], 0
    for span in (*public, Span(len(text), len(text), "public")):
        if text[end : span.start] or not text:
            pieces.append(placeholders.quote(text[end : span.start]))
        pieces.append(text[span.start : span.end])
        end = span.end
    return "".join(pieces)
