"""What a reader of a sanitised text still sees, and what was changed without need: word for word.

A second opinion says of every word whether it is private, apart from what was done with it: names, numbers,
identifiers, words that no public list knows, words of sensitive fields, whatever holds a digit, and what the
user's own lists and recognisers claim. What is private and passes is *readable*. A common word with a capital
that may be somebody's name (`Rose`, `Mark`) where the place asks for a capital is told apart, as `namesake`,
unless the same text has it as a name elsewhere.
*Ordinary* are words of the vocabulary and of the public lists that are nothing of that; an ordinary word that
does not stand there any more was *changed*.

Threat model: the text is the auditor's own and stays on this machine. Does not prove that nothing else is
private: ordinary words say together what none says alone, and a name that no list knows, in lower case and
in a dictionary, is an ordinary word here.
Source: own; kinds of `transom.privacy.kinds`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from transom.audit.places import places
from transom.privacy.characters import normalise
from transom.privacy.claims import Claims
from transom.privacy.kinds import CLAIMED, FIELDS, SUBKINDS, Span, base_of
from transom.privacy.namewords import GREETINGS
from transom.privacy.policy import Policy
from transom.privacy.sanitize import Piece

NAMESAKE = "namesake"
_PART = re.compile(r"[^\W\d_]{2,}")
_PRIVATE_BASES = frozenset({"name", "number", "identifier", "foreign"})
_ORDINARY = frozenset({"word", "uncommon", "instruction", "dictionary"})
_NAMES = frozenset(kind for kind, (base, _) in SUBKINDS.items() if base == "name")


class Word(NamedTuple):
    """A token that is no white space or punctuation: where it stands in the text, and what became of it.

    `private` is the kind for which the second opinion takes it, empty for none; `claimed`: a list or a
    recogniser of the user's says so. `shown`: it stands in the sanitised text as it was.
    """

    start: int
    end: int
    kind: str
    action: str
    source: str
    output: str
    private: str
    claimed: bool
    ordinary: bool

    @property
    def shown(self) -> bool:
        """Whether it looks as it did; a drawn word may by chance, and no reader knows."""
        return self.action == "pass" or (
            self.action != "placeholder" and self.output.lower() == self.source.lower()
        )

    @property
    def readable(self) -> bool:
        """Whether it is private and passes."""
        return self.action == "pass" and bool(self.private)

    @property
    def changed(self) -> bool:
        """Whether it is ordinary and looks otherwise."""
        return self.ordinary and not self.shown


@dataclass(frozen=True, eq=False)
class Opinion:
    """The second opinion, from a policy's public lists and what `claims` find."""

    policy: Policy = field(repr=False)
    claims: Claims = field(default_factory=Claims, repr=False)

    def words(self, raw: str, pieces: Sequence[Piece]) -> tuple[Word, ...]:
        """The words of a text whose way is `pieces`; what it hides as a name is one wherever it stands."""
        found = tuple(self._words(raw, pieces))
        names = {
            part: word.private
            for word in found
            if word.action == "placeholder" and word.private and base_of(word.private) == "name"
            for part in _PART.findall(word.source.lower())
            if word.source[:1].isupper()
        }
        return tuple(
            word._replace(private=kind, ordinary=False)
            if word.action == "pass" and word.kind != "stop" and word.source[:1].isupper()
            and (kind := names.get(word.source.lower()))
            else word
            for word in found
        )  # fmt: skip

    def _words(self, raw: str, pieces: Sequence[Piece]) -> Iterator[Word]:
        spans = self.claims.find(raw)
        starts = [span.start for span in spans]
        for piece, (start, end) in zip(pieces, places(raw, [one.source for one in pieces]), strict=True):
            if piece.kind in ("space", "punct"):
                continue
            span = _over(spans, starts, start, end)
            private, ordinary = self._judged(piece, span)
            claimed = bool(private) and span is not None
            yield Word(
                start, end, piece.kind, piece.action, piece.source, piece.output, private, claimed, ordinary
            )

    def _judged(self, piece: Piece, span: Span | None) -> tuple[str, bool]:
        """The kind for which it is private, empty for none, and whether it is an ordinary word."""
        if piece.kind in CLAIMED or (span is not None and span.kind in CLAIMED):
            return "", False
        if span is not None:
            return span.kind, False
        word, kind = normalise(piece.source).lower(), piece.kind
        known = self.policy.kind_of.get(word, "")
        namesake = word in self.policy.namesakes and word not in GREETINGS  # `Dear` opens letters
        if namesake and piece.source[:1].isupper():
            return (kind if kind in _NAMES or kind == "name" else NAMESAKE), False
        if kind != "stop" and (
            known in _NAMES or (word in self.policy.names and known in ("", "word", "uncommon"))
        ):
            return known if known in _NAMES else "name", False
        if kind in FIELDS or known in FIELDS:
            return kind if kind in FIELDS else known, False
        ordinary = known in _ORDINARY or (word in self.policy.pass_words and piece.source.islower())
        if base_of(kind) == "name" and ordinary:  # a capital alone made it one
            return "", True
        if base_of(kind) in _PRIVATE_BASES or kind == "rare":
            return kind, False
        if any(character.isdigit() for character in piece.source):
            return "number", False
        return "", ordinary


def _over(spans: Sequence[Span], starts: Sequence[int], start: int, end: int) -> Span | None:
    """The claim that a token touches."""
    at = bisect_right(starts, start) - 1
    for span in spans[max(at, 0) : at + 2]:
        if span.start < end and start < span.end:
            return span
    return None
