"""The shapes of OpenAI's answers: whole objects and stream chunks, for chat and for completions.

Threat model: none; what is put in here goes to the client that asked.
Source: OpenAI API reference, chat completion and completion objects.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transom.serving.engines.base import TokenScore
from transom.serving.gateway.answer import Choice, Piece
from transom.serving.tokenizer import ChatTokenizer


@dataclass
class Writer:
    """Writes one response; `chat` chooses the endpoint's shapes."""

    chat: bool
    model: str
    tokenizer: ChatTokenizer | None
    logprobs: bool

    def __post_init__(self) -> None:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": self.model}
        self._opened: set[int] = set()
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], usage: dict[str, int] | None) -> dict[str, Any]:
        """The response object of a request that does not stream."""
        kind = "chat.completion" if self.chat else "text_completion"
        written = [self._choice(choice) for choice in choices]
        return {**self._head, "object": kind, "choices": written, "usage": usage}

    def chunk(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        """One chunk of a stream."""
        return self._chunk([self._delta(choice, piece)])

    def closing(self, usage: dict[str, int] | None, extra: dict[str, Any] | None) -> dict[str, Any] | None:
        """The chunk after the last choice, if there is anything to say in it."""
        if usage is None and extra is None:
            return None
        chunk = self._chunk([])
        if usage is not None:
            chunk["usage"] = usage
        if extra is not None:
            chunk["transom"] = extra
        return chunk

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}

    def _choice(self, choice: Choice) -> dict[str, Any]:
        written: dict[str, Any] = {
            "index": choice.index,
            "logprobs": self._scores(choice.index, choice.scores),
            "finish_reason": choice.finish_reason,
        }
        if self.chat:
            written["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            written["text"] = choice.text
        return written

    def _delta(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        written: dict[str, Any] = {
            "index": choice.index,
            "logprobs": self._scores(choice.index, piece.scores),
            "finish_reason": piece.finish_reason,
        }
        if not self.chat:
            written["text"] = piece.text
            return written
        delta: dict[str, Any] = {}
        if choice.index not in self._opened:
            self._opened.add(choice.index)
            delta["role"] = "assistant"
        if piece.text or "role" in delta:
            delta["content"] = piece.text
        written["delta"] = delta
        return written

    def _scores(self, index: int, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            entries = [
                {**self._entry(s.token, s.logprob), "top_logprobs": [self._entry(t, p) for t, p in s.top]}
                for s in scores
            ]
            return {"content": entries, "refusal": None}
        texts = [self._text(score.token) for score in scores]
        offsets, at = [], self._offsets.get(index, 0)
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{self._text(t): p for t, p in score.top} for score in scores],
            "text_offset": offsets,
        }

    def _entry(self, token: int | str, logprob: float) -> dict[str, Any]:
        text = self._text(token)
        encoded = None if "\ufffd" in text else list(text.encode("utf-8", "surrogatepass"))
        return {"token": text, "logprob": logprob, "bytes": encoded}

    def _text(self, token: int | str) -> str:
        if isinstance(token, str) or self.tokenizer is None:
            return str(token)
        return self.tokenizer.token_text(token)
