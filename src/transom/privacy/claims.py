"""Who claims a stretch of a text: the caller's lists and public texts, and recognisers; and who wins.

One rule: public text first; then the lists' entries and patterns, the longer first and an allowed one before
others as long; then the recognisers in their order, the longer first. Of equals the first found counts.
Whatever nobody claims is read as always. Where a claim that hides loses a part of itself, the rest stays
hidden. Such a claim is widened to whole words, and to the whole of an address, path or number that it touches
(`smith@example.org`), so that no fragment shows; an allowed word inside one of these does not pass.
Threat model: a recogniser is the user's own code, and may be wrong: a span outside the text, of an unknown
kind, or one that would let text pass ends the request. What it raises is not repeated, as that may hold text.
Does not protect: what nobody claims and the policy lets pass. Where claims are is disclosed, so a guarantee
compares texts in which the same stretches are claimed.
Source: own.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from transom.errors import MisconfiguredError, TransomError
from transom.privacy.folded import MARKS
from transom.privacy.kinds import CLAIMED, KINDS, SUBKINDS, Recogniser, Span, unknown

if TYPE_CHECKING:
    from transom.files import Reread
    from transom.privacy.lists import Lists

PUBLIC, ALLOWED = CLAIMED
# Kinds of words that public lists tell.
_PASSING = {"stop", "word", "instruction", "uncommon", "part", "dictionary"}
CLAIMABLE = tuple(kind for kind in (*KINDS, *SUBKINDS) if kind not in _PASSING)
_RUN = re.compile(r"[^\s<>\"“”()\[\]{}|;*]+")
_JOINED = re.compile(r"[@\\#]|\w[/.]\w|://|\d[-:,'’]\d")  # what makes a run an address, a path or a number
_AFTER = ".,:!?'’"
_WORD = re.compile(rf"[^\W\u2e80-\U0003ffff]+[{MARKS}\w]*")  # not of scripts that are written without blanks


@dataclass(frozen=True)
class Claims:
    """Lists that are read again when they change, and recognisers by the name they are told by."""

    lists: Reread[Lists] | None = None
    recognisers: Mapping[str, Recogniser] = field(default_factory=dict)

    def find(self, text: str) -> tuple[Span, ...]:
        """The stretches of one message that are claimed, in order, apart from each other.

        Raises RefusedError where patterns take too long, MisconfiguredError for a recogniser that is wrong.
        """
        if self.lists is None and not self.recognisers:
            return ()
        own = [] if self.lists is None else list(self.lists.now().find(text))
        return resolve(text, own, *(asked(one, name, text) for name, one in self.recognisers.items()))

    def disclosed(self) -> tuple[str, ...]:
        """What claims disclose, for a guarantee; none without claims."""
        told = () if self.lists is None else self.lists.now().disclosed()
        found = (
            f"the stretches that the recogniser {name} finds, and their kinds" for name in self.recognisers
        )
        return (*told, *found)


def resolve(text: str, own: Iterable[Span], *others: Iterable[Span]) -> tuple[Span, ...]:
    """What the rule above leaves of the claims on a text: `own` are the lists', `others` the recognisers'."""
    ranked = [
        (0 if span.kind == PUBLIC else rank, span.start - span.end, span.kind != ALLOWED, span)
        for rank, spans in enumerate((own, *others), 1)
        for span in _whole(text, spans)
    ]
    taken = bytearray(len(text))
    left = []
    for *_, span in sorted(ranked, key=itemgetter(0, 1, 2)):
        for start, end in _free(text, taken, span):
            taken[start:end] = b"\1" * (end - start)
            left.append(Span(start, end, span.kind))
    return tuple(sorted(left))


def asked(recogniser: Recogniser, name: str, text: str) -> list[Span]:
    """What a recogniser finds, checked. Raises MisconfiguredError."""
    try:
        return [_checked(found, name, len(text)) for found in recogniser.find(text)]
    except TransomError:
        raise
    except Exception as error:  # a user's code may raise anything; its text may hold anything
        raise MisconfiguredError(
            f"the recogniser {name} raised {type(error).__name__}; nothing was sent"
        ) from None


def _checked(found: Span, name: str, length: int) -> Span:
    try:
        start, end, kind = found
    except (TypeError, ValueError):
        raise MisconfiguredError(
            f"the recogniser {name} found a {type(found).__name__}; it must find Span(start, end, kind)"
        ) from None
    if type(start) is not int or type(end) is not int or not 0 <= start <= end <= length:
        raise MisconfiguredError(f"the recogniser {name} found a span outside the text's {length} characters")
    if kind not in CLAIMABLE:
        raise MisconfiguredError(f"the recogniser {name}: {unknown('kind', kind, CLAIMABLE)}")
    return Span(start, end, kind)


def _free(text: str, taken: bytearray, span: Span) -> list[tuple[int, int]]:
    """What nobody has taken of a span, without white space around it; of one that passes, all or nothing."""
    start, end, kind = span
    pieces = []
    while (start := taken.find(0, start, end)) >= 0:
        stop = taken.find(1, start, end)
        stop = end if stop < 0 else stop
        pieces.append((start, stop))
        start = stop
    if pieces == [(span.start, end)]:
        return pieces
    return [] if kind in CLAIMED else list(filter(None, (_stripped(text, *piece) for piece in pieces)))


def _stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A stretch without what is no letter or digit around it; None where nothing else is there."""
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not text[end - 1].isalnum():
        end -= 1
    return (start, end) if start < end else None


def _whole(text: str, spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that hide, widened to whole words and addresses; allowed ones, where they are inside none."""
    given = [span for span in spans if span.start < span.end]
    if all(span.kind == PUBLIC for span in given):
        yield from given
        return
    starts, ends = _units(text)
    for start, end, kind in given:
        first, last = bisect_right(starts, start) - 1, bisect_left(starts, end) - 1
        low = starts[first] if first >= 0 and ends[first] > start else start
        high = ends[last] if last >= 0 and ends[last] > end else end
        if kind == PUBLIC:
            yield Span(start, end, kind)
        elif kind != ALLOWED:
            yield Span(low, high, kind)
        elif (low, high) == (start, end):
            yield Span(start, end, kind)


def _units(text: str) -> tuple[Sequence[int], Sequence[int]]:
    """Where words begin and end, and as one what is an address, a path or a number."""
    places: list[tuple[int, int]] = []
    for run in _RUN.finditer(text):
        if run[0].isascii() and run[0].isalpha():
            places.append(run.span())
        elif _JOINED.search(run[0]):
            places.append((run.start(), run.start() + len(run[0].rstrip(_AFTER))))
        else:
            places += [word.span() for word in _WORD.finditer(text, run.start(), run.end())]
    return [start for start, _ in places], [end for _, end in places]
