"""From an engine's pieces to what the client reads: detokenise, put words and values back, stop strings.

Threat model: the engine may answer anything; stop strings may hold private text, so they are matched here,
after placeholders are restored, and never sent.
Does not protect: that a stop string was met shows to the host as a connection that closes early.
Source: OpenAI API reference (stop, logprobs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from transom.errors import EngineGarbageError
from transom.privacy.drawn_back import WordsBack
from transom.privacy.placeholders import Placeholders
from transom.serving.engines.base import Delta, TokenScore
from transom.serving.gateway.scores import Alignment, Entry, merged
from transom.serving.tokenizer import ChatTokenizer

ANSWER_CHARS = 1 << 22  # of all choices of one request, placeholders restored
_SLICE_TOKENS = 4096


class StopFilter:
    """Cuts a stream of text where a stop string first begins in the whole of it, whatever the chunks.

    `met` says whether there was one; everything from it on is dropped.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.met = False
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What may be shown, and whether a stop string was met.

        Held back is what may be the beginning of a stop string, even if another is complete behind it.
        """
        if not self._stops:
            return text, False
        text = self._held + text
        keep = min(self._beginning(text, stop) for stop in self._stops)
        found = self._first(text)
        self.met = found is not None and found <= keep
        if self.met:
            keep, text = found or 0, text[:found]
        self._held = text[keep:]
        return text[:keep], self.met

    def close(self) -> str:
        """What of the held tail may be shown, at the end of the text."""
        tail, self._held = self._held, ""
        found = self._first(tail)
        self.met = self.met or found is not None
        return tail[:found]

    def _first(self, text: str) -> int | None:
        return min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Where a tail of `text` begins that `stop` begins with; its end if there is none."""
        at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while at >= 0 and not stop.startswith(text[at:]):
            at = text.find(stop[0], at + 1)
        return len(text) if at < 0 else at


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of a choice for the client."""

    text: str
    scores: Sequence[Entry] = ()
    finish_reason: str | None = None


@dataclass
class Choice:
    """One answer in the making. Raises EngineGarbageError when it grows beyond ANSWER_CHARS."""

    index: int
    tokenizer: ChatTokenizer | None
    placeholders: Placeholders | None = None
    stops: Sequence[str] = ()
    drawn: Mapping[str, str] = field(default_factory=dict, repr=False)  # words to put back
    scored: bool = False
    scores: list[Entry] = field(default_factory=list, repr=False)
    tokens: int = 0
    finish_reason: str | None = None
    cut: bool = False  # by a stop string, while the engine went on

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer() if self.tokenizer else None
        self._restorer = self.placeholders.restorer(ANSWER_CHARS) if self.placeholders is not None else None
        self._words = WordsBack(self.drawn) if self.drawn else None
        self._filter = StopFilter(self.stops)
        self._alignment = Alignment() if self.scored else None
        self._delivered_chars = 0
        self._room_chars = ANSWER_CHARS
        self._delivered: list[str] = []
        self._written: list[str] = []

    @property
    def text(self) -> str:
        """What was delivered."""
        return "".join(self._delivered)

    @property
    def host_text(self) -> str:
        """What the host wrote."""
        return "".join(self._written)

    def feed(self, delta: Delta) -> Piece:
        """The piece that `delta` completes, possibly with empty text."""
        ids, scores = delta.ids, delta.scores
        self.tokens += len(ids)
        ended, met = delta.finish_reason is not None, False
        if delta.finish_reason == "stop" and ids and self.tokenizer and ids[-1] in self.tokenizer.eos_ids:
            ids, scores = ids[:-1], scores[: len(ids) - 1]
        parts = list(self._parts(delta.text, ids, scores, ended))
        shown = []
        for score, host in parts:
            text, met = self._filter.feed(self._made(score, host))
            shown.append(text)
            if met:
                break
        if ended and not met:
            text, met = self._filter.feed(self._made(None, "", ended=True))
            shown += [text, "" if met else self._filter.close()]
            met = met or self._filter.met
        self.cut = met and not ended
        self.finish_reason = "stop" if met else delta.finish_reason
        text = "".join(shown)
        self._delivered.append(text)
        self._written += [host for _, host in parts]
        self._delivered_chars += len(text)
        entries: list[Entry] = []
        if self._alignment is not None:
            entries = self._alignment.deliver(self._delivered_chars, last=self.finish_reason is not None)
        self.scores += entries
        return Piece(text, entries, self.finish_reason)

    def _made(self, score: TokenScore | None, host: str, *, ended: bool = False) -> str:
        """What words and values make of what the host wrote, as far as it is settled."""
        text, held = host, 0
        if self._words is not None:
            text = self._words.feed(text) + (self._words.close() if ended else "")
            held += self._words.held_chars
        if self._restorer is not None:
            text = self._restorer.feed(text) + (self._restorer.close() if ended else "")
            held += self._restorer.held_chars
        if self._alignment is not None:
            self._alignment.take(score, host, text, held)
        return text

    def _parts(
        self, text: str, ids: Sequence[int], scores: Sequence[TokenScore], ended: bool
    ) -> Iterator[tuple[TokenScore | None, str]]:
        """What the host wrote in this piece, with scores token by token; what grows too long is noticed
        before it is put together."""
        for score, part in self._read(text, ids, scores, ended):
            self._room_chars -= len(part)
            if self._room_chars < 0:
                raise EngineGarbageError(f"the engine's answer has more than {ANSWER_CHARS} characters")
            yield score, part

    def _read(
        self, text: str, ids: Sequence[int], scores: Sequence[TokenScore], ended: bool
    ) -> Iterator[tuple[TokenScore | None, str]]:
        if self._detokenizer is None:
            named = [str(score.token) for score in scores]
            if not scores:
                yield None, text
            elif "".join(named) == text:
                yield from zip(scores, named, strict=True)
            else:  # tokens that end inside a character, say
                yield merged(text, scores), text
            return
        if scores:
            for score, token in zip(scores, ids, strict=True):
                yield score, self._detokenizer.feed([token])
        else:
            for start in range(0, len(ids), _SLICE_TOKENS):
                yield None, self._detokenizer.feed(ids[start : start + _SLICE_TOKENS])
        if ended:
            yield None, self._detokenizer.close()
