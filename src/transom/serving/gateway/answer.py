"""From an engine's pieces to what the client reads: detokenise, restore placeholders, stop strings.

Threat model: the engine may answer anything; stop strings may hold private text, so they are matched here,
after placeholders are restored, and never sent.
Does not protect: that a stop string was met shows to the host as a connection that closes early.
Source: OpenAI API reference (stop, logprobs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transom.privacy.placeholders import Placeholders
from transom.serving.engines.base import Delta, TokenScore
from transom.serving.tokenizer import ChatTokenizer


class StopFilter:
    """Cuts a stream of text at the first stop string, also one split over chunks."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What may be shown, and whether a stop string was met (everything from it on is dropped)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = next(
            (k for k in range(min(self._longest - 1, len(text)), 0, -1) if self._may_begin(text[-k:])), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def close(self) -> str:
        """The held tail, which was no stop string after all."""
        tail, self._held = self._held, ""
        return tail

    def _may_begin(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self._stops)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of a choice for the client."""

    text: str
    scores: tuple[TokenScore, ...] = ()
    finish_reason: str | None = None


@dataclass
class Choice:
    """One answer in the making; `text` is what was delivered, `host_text` what the host wrote."""

    index: int
    tokenizer: ChatTokenizer | None
    placeholders: Placeholders | None = None
    stops: Sequence[str] = ()
    text: str = field(default="", repr=False)
    host_text: str = field(default="", repr=False)
    scores: list[TokenScore] = field(default_factory=list, repr=False)
    tokens: int = 0
    finish_reason: str | None = None
    cut: bool = False  # by a stop string

    def __post_init__(self) -> None:
        self._detokenizer = self.tokenizer.detokenizer() if self.tokenizer else None
        self._restorer = self.placeholders.restorer() if self.placeholders is not None else None
        self._filter = StopFilter(self.stops)

    def feed(self, delta: Delta) -> Piece:
        """The piece that `delta` completes, possibly with empty text."""
        ids, scores = delta.ids, delta.scores
        self.tokens += len(ids)
        ended = delta.finish_reason is not None
        if delta.finish_reason == "stop" and ids and self.tokenizer and ids[-1] in self.tokenizer.eos_ids:
            ids, scores = ids[:-1], scores[: len(ids) - 1]
        host = delta.text
        if self._detokenizer is not None:
            host = self._detokenizer.feed(ids)
            if ended:
                host += self._detokenizer.close()
        text = host
        if self._restorer is not None:
            text = self._restorer.feed(host) + (self._restorer.close() if ended else "")
        text, met = self._filter.feed(text)
        if ended and not met:
            text += self._filter.close()
        self.cut = met
        self.finish_reason = "stop" if met else delta.finish_reason
        self.text += text
        self.host_text += host
        self.scores += scores
        return Piece(text, scores, self.finish_reason)
