"""What a resent history costs: nothing. The memo keeps what the latest charged request of a session released.

A place is (session, message index, word position). For each place with a drawn word the memo holds a keyed
digest (BLAKE2b, under a random key of this process) of the private word, and the word that was released. A
session holds exactly the places of its latest kept request, no more: a place that then held another word, a
pass word, a name or nothing at all has forgotten its draw, so a word that returns is drawn and charged anew,
and so is a conversation begun anew under an old name. Never the word alone: a draw shared by equal words
would tell "a a" from "a b" with certainty. Draws are kept only after their charge (`keep`): what a spent
ledger refused is not released free of charge by asking again.
An answer is remembered by the digest of the conversation before it and of its text: an assistant message
that is resent exactly as it was delivered goes back in the host's own words, with or without a session. But
not where the host wrote two answers at that point that might have been delivered as the same text: which of
them comes back would tell it whether it guessed a hidden value. Whether they might is read off its own words.
Both stores are bounded: places and messages are counted, answers are weighed.
Threat model: the host sees every request of a session; a reader of swapped memory finds no private word
here.
Does not protect: that a place was edited; released words and the host's answers, which the host knows. A
caller serves several tenants only with session names that it makes distinct, and keeps a session's requests
in order: what is recalled is kept before the next request of the session recalls.
Source: repeated releases, Dwork and Roth 2014, section 3.5; BLAKE2b, RFC 7693.
"""

from __future__ import annotations

import math
import secrets
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from transom.privacy import forms

_ENTRY_BYTES = 256  # what an entry takes beside its text, roughly
Places = Mapping[int, tuple[bytes, str]]


@dataclass(frozen=True, slots=True)
class Message:
    """What one message of a session releases: position to (digest of the private word, released word).

    To be kept once it is paid for; holds no private word.
    """

    session: str = field(repr=False)
    index: int
    places: Places = field(repr=False)


@dataclass(slots=True)
class _Session:
    """The latest kept request: its messages, how much room they take, and when they are forgotten."""

    messages: dict[int, Places]
    weight: int
    ends_s: float


class PlaceMemo:
    """Released words of the latest sessions, `capacity` places in all, and delivered answers; thread-safe.

    `answer_bytes` bounds the memory of the answers. A session is forgotten after `lifetime_s` of silence.
    """

    def __init__(
        self,
        capacity: int = 1_000_000,
        *,
        answer_bytes: int = 64 << 20,
        lifetime_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a memo needs room for one place or more, got {capacity}")
        self.capacity, self.answer_bytes, self.lifetime_s = capacity, answer_bytes, lifetime_s
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._weight = 0
        self._answers: OrderedDict[bytes, dict[bytes, str]] = (
            OrderedDict()
        )  # by point, then by what was delivered
        self._answers_weight = 0
        self._latest = ("", self._digest("session", ""))
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PlaceMemo({len(self._sessions)} sessions, {self._weight} of {self.capacity})"

    def digester(self, session: str, message: int) -> Callable[[int, str], bytes]:
        """The digest of a (position, word) of this message; equal words at two places differ."""
        key = self._digest("message", session, str(message))

        def digest(position: int, word: str) -> bytes:
            text = f"{position} {word}".encode("utf-8", "surrogatepass")
            return blake2b(text, digest_size=16, key=key).digest()

        return digest

    def knows(self, session: str) -> bool:
        """Whether an earlier request of this session is kept."""
        with self._lock:
            return self._session(session) is not None

    def recall(self, session: str, message: int) -> Places:
        """The places of this message as the session's latest kept request released them."""
        with self._lock:
            known = self._session(session)
            return known.messages.get(message, {}) if known is not None else {}

    def keep(self, *messages: Message | None, session: str | None = None) -> None:
        """Keep the messages of one request, once charged, in place of what its session held.

        None, which stands for a message without a session, is left out. Name the `session` of a request that
        may have no message to keep.
        """
        sessions: dict[str, dict[int, Places]] = {} if session is None else {session: {}}
        for message in messages:
            if message is not None:
                places = sessions.setdefault(message.session, {})
                if message.places:
                    places[message.index] = message.places
        with self._lock:
            for session, places in sessions.items():
                self._put(self._name(session), places)

    def link(self, before: bytes, role: str, text: str) -> bytes:
        """The digest of a conversation that goes on with one more message; b"" and an account begin one."""
        return self._digest("link", before.hex(), role, text)

    def remember_answer(self, before: bytes, text_delivered: str, text_host: str) -> None:
        """Keep what the host wrote for what was delivered after the conversation `before`.

        An answer larger than the whole room for answers is not kept.
        """
        weight = _answer_weight(text_host)
        if weight > self.answer_bytes:
            return
        digest = self._digest("answer", before.hex(), text_delivered)
        with self._lock:
            here = self._answers.setdefault(before, {})
            self._answers.move_to_end(before)
            twin = here.get(digest, text_host) != text_host  # both are kept: they make this point ambiguous
            key = digest if not twin else self._digest("twin", before.hex(), text_host)
            self._answers_weight += weight - _answer_weight(here.get(key))
            here[key] = text_host
            while self._answers_weight > self.answer_bytes:
                _, oldest = self._answers.popitem(last=False)
                self._answers_weight -= sum(map(_answer_weight, oldest.values()))

    def recall_answer(self, before: bytes, text_delivered: str, *, strict: bool = False) -> str | None:
        """The host's own words, if an answer is resent as it was delivered, after the same messages.

        None also where another answer at that point might have been delivered as the same text; `strict`: any
        other, because words were put back in it.
        """
        digest = self._digest("answer", before.hex(), text_delivered)
        with self._lock:
            here = self._answers.get(before, {})
            own = here.get(digest)
            if own is None or any(
                other != own and (strict or may_collide(own, other)) for other in here.values()
            ):
                return None
            self._answers.move_to_end(before)
            return own

    def _name(self, session: str) -> bytes:
        known, name = self._latest  # one request asks several times for its session
        if known != session:
            name = self._digest("session", session)
            self._latest = session, name
        return name

    def _session(self, session: str) -> _Session | None:
        name = self._name(session)
        known = self._sessions.get(name)
        if known is None or known.ends_s <= self._clock():
            return None
        self._sessions.move_to_end(name)
        return known

    def _put(self, name: bytes, messages: dict[int, Places]) -> None:
        """The one entry of a session, the newest; the longest unused make room."""
        if name in self._sessions:
            self._weight -= self._sessions.pop(name).weight
        weight = 1 + sum(1 + len(places) for places in messages.values())
        now_s = self._clock()
        self._sessions[name] = _Session(messages, weight, now_s + self.lifetime_s)
        self._weight += weight
        while self._sessions and (self._weight > self.capacity or self._oldest().ends_s <= now_s):
            self._weight -= self._sessions.popitem(last=False)[1].weight

    def _oldest(self) -> _Session:
        return next(iter(self._sessions.values()))

    def _digest(self, *parts: str) -> bytes:
        text = "".join([f"{len(part)}:{part}" for part in parts])  # no two lists of parts give the same
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._key, digest_size=32).digest()


def may_collide(one: str, other: str) -> bool:
    """Whether two different texts of a host may be delivered as one, for some hidden values.

    They cannot where they first differ in a character that belongs to no placeholder of either, in any form
    that is restored or marked. A text may be cut at its end, so the beginning of another may be delivered as
    that one.
    """
    for a, b in zip(forms.units(one), forms.units(other), strict=False):
        if a != b:
            return len(a) > 1 or len(b) > 1
    return True


def _answer_weight(text: str | None) -> int:
    return 0 if text is None else _ENTRY_BYTES + sys.getsizeof(text)
