"""The shapes of OpenAI's answers: whole objects and stream chunks, for chat and for completions.

Threat model: none; what is put in here goes to the client that asked.
Source: OpenAI API reference, chat completion and completion objects.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from transom.serving.engines.base import Json
from transom.serving.gateway.answer import Choice, Piece
from transom.serving.gateway.scores import Entry
from transom.serving.tokenizer import ChatTokenizer


@dataclass
class Writer:
    """Writes one response; `chat` chooses the endpoint's shapes."""

    chat: bool
    model: str
    tokenizer: ChatTokenizer | None
    logprobs: bool
    usage: bool = False  # at the end of a stream, and null before

    done = True  # a stream ends with [DONE]

    def __post_init__(self) -> None:
        prefix = "chatcmpl-" if self.chat else "cmpl-"
        self._head = {"id": prefix + secrets.token_hex(12), "created": int(time.time()), "model": self.model}
        self._opened: set[int] = set()
        self._offsets: dict[int, int] = {}

    def whole(self, choices: Sequence[Choice], usage: dict[str, int] | None) -> Json:
        """The response object of a request that does not stream."""
        head = {"role": "assistant"}
        written = [
            self._choice(choice.index, choice, "message", head | {"content": choice.text, "refusal": None})
            for choice in choices
        ]
        return self._object("", written, usage=usage)

    def opening(self) -> list[Json]:
        """What comes before the first piece: nothing."""
        return []

    def chunk(self, choice: Choice, piece: Piece, extra: Json | None) -> list[Json]:
        """One chunk of a stream."""
        delta = {} if choice.index in self._opened else {"role": "assistant"}
        self._opened.add(choice.index)
        if piece.text or delta:
            delta["content"] = piece.text
        made = self._object(".chunk", [self._choice(choice.index, piece, "delta", delta)])
        if self.usage:
            made["usage"] = None
        if extra is not None:
            made["transom"] = extra
        return [made]

    def closing(
        self, _choices: Sequence[Choice], usage: dict[str, int] | None, extra: Json | None
    ) -> list[Json]:
        """The chunk after the last choice, if there is anything to say in it."""
        said = {"usage": usage if self.usage else None, "transom": extra}
        more = {name: value for name, value in said.items() if value is not None}
        return [self._object(".chunk", [], **more)] if more else []

    def _object(self, part: str, choices: list[Json], **more: Any) -> Json:
        kind = "chat.completion" + part if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **more}

    def _choice(self, index: int, said: Choice | Piece, name: str, in_chat: Mapping[str, Any]) -> Json:
        """What a choice says: in a chat under this name and in this form, else as its text."""
        return {
            "index": index,
            "logprobs": self._scores(index, said.scores),
            "finish_reason": said.finish_reason,
            **({name: in_chat} if self.chat else {"text": said.text}),
        }

    def _scores(self, index: int, entries: Sequence[Entry]) -> Json | None:
        if not self.logprobs:
            return None
        scores = [entry.score for entry in entries]
        if self.chat:
            content = [
                {**self._entry(s.token, s.logprob), "top_logprobs": [self._entry(t, p) for t, p in s.top]}
                for s in scores
            ]
            return {"content": content, "refusal": None}
        lengths = (entry.chars for entry in entries)
        offsets = list(accumulate(lengths, initial=self._offsets.get(index, 0)))
        self._offsets[index] = offsets.pop()
        return {
            "tokens": [self._text(score.token) for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [{self._text(t): p for t, p in score.top} for score in scores],
            "text_offset": offsets,
        }

    def _entry(self, token: int | str, logprob: float) -> Json:
        text = self._text(token)
        encoded = None if "\ufffd" in text else list(text.encode("utf-8", "surrogatepass"))
        return {"token": text, "logprob": logprob, "bytes": encoded}

    def _text(self, token: int | str) -> str:
        if isinstance(token, str) or self.tokenizer is None:
            return str(token)
        return self.tokenizer.token_text(token)
