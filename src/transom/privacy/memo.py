"""What a resent history costs: nothing. The memo keeps the released word of each place.

A place is (session, message index, word position). Its key is an HMAC-SHA256 under a random key of this
process; its value the HMAC of the private word there and the word that was released. Only the latest word
of a place is kept: an edited place is drawn and charged anew, also when it returns to an earlier word.
Never the word alone: a draw shared by equal words would tell "a a" from "a b" with certainty. Draws are
kept only after their charge (`keep`): what a spent ledger refused is not released free of charge by asking
again.
An answer is remembered by the digest of the conversation before it and of its text: an assistant message
that is resent exactly as it was delivered goes back in the host's own words, with or without a session.
Threat model: the host sees every request of a session; a reader of swapped memory finds no private word
here.
Does not protect: that a place was edited; released words and the host's answers, which the host knows. A
caller serves several tenants only with session names that it makes distinct.
Source: repeated releases, Dwork and Roth 2014, section 3.5; HMAC, RFC 2104.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple


class Draw(NamedTuple):
    """A fresh draw at a place, to be kept once it is paid for. Holds digests and the released word only."""

    place: bytes
    word: bytes
    released: str


class PlaceMemo:
    """Released words and delivered answers of the latest `capacity` places each; thread-safe."""

    def __init__(self, capacity: int = 1_000_000) -> None:
        if capacity < 1:
            raise ValueError(f"a memo needs room for one place or more, got {capacity}")
        self.capacity = capacity
        self._key = secrets.token_bytes(32)
        self._places: OrderedDict[bytes, tuple[bytes, str]] = OrderedDict()
        self._answers: OrderedDict[bytes, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PlaceMemo({len(self._places)} of {self.capacity})"

    def __len__(self) -> int:
        return len(self._places)

    def draw(self, session: str, message: int, position: int, word: str, released: str) -> Draw:
        """The entry for a fresh draw; it is not kept yet."""
        place = self._digest("place", session, str(message), str(position))
        return Draw(place, self._digest("word", place.hex(), word), released)

    def keep(self, draws: Iterable[Draw]) -> None:
        """Keep draws whose epsilon has been charged; each replaces what its place held before."""
        with self._lock:
            for draw in draws:
                self._put(self._places, draw.place, (draw.word, draw.released))

    def recall(self, session: str, message: int, position: int, word: str) -> str | None:
        """The word released at this place, if the place still holds `word`."""
        place = self._digest("place", session, str(message), str(position))
        return self._get(self._places, place, self._digest("word", place.hex(), word))

    def link(self, before: bytes, role: str, text: str) -> bytes:
        """The digest of a conversation that goes on with one more message; b"" and an account begin one."""
        return self._digest("message", before.hex(), role, text)

    def remember_answer(self, before: bytes, text_delivered: str, text_host: str) -> None:
        """Keep what the host wrote for what was delivered after the conversation `before`."""
        digest = self._digest("answer", before.hex(), text_delivered)
        with self._lock:
            self._put(self._answers, digest, (digest, text_host))

    def recall_answer(self, before: bytes, text_delivered: str) -> str | None:
        """The host's own words, if an answer is resent as it was delivered, after the same messages."""
        digest = self._digest("answer", before.hex(), text_delivered)
        return self._get(self._answers, digest, digest)

    def _put(
        self, table: OrderedDict[bytes, tuple[bytes, str]], place: bytes, entry: tuple[bytes, str]
    ) -> None:
        table[place] = entry
        table.move_to_end(place)
        if len(table) > self.capacity:
            table.popitem(last=False)

    def _get(self, table: OrderedDict[bytes, tuple[bytes, str]], place: bytes, digest: bytes) -> str | None:
        with self._lock:
            entry = table.get(place)
            if entry is None or not hmac.compare_digest(entry[0], digest):
                return None
            table.move_to_end(place)
            return entry[1]

    def _digest(self, *parts: str) -> bytes:
        encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
        message = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
        return hmac.digest(self._key, message, "sha256")
