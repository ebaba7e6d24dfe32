"""`/v1/responses`, as a stateless translation to chat: what may be asked, and the shapes of the answers.

Threat model: that of `requests`. Nothing is stored here, so what points to something stored is refused by
name; so are tools that the host would run.
Does not protect: what the messages hold; they take the way of a chat request. Reasoning that comes back is
dropped, and not sent again.
Source: OpenAI API reference, responses and their streaming events.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from transom.errors import RefusedError
from transom.serving.dialect import Strict, Tokens, TopP
from transom.serving.engines.base import Json
from transom.serving.gateway.answer import Choice, Piece
from transom.serving.gateway.requests import (
    REFUSED_BECAUSE,
    ChatRequest,
    Dropped,
    Request,
    TextFormat,
)

_STATELESS = "nothing is stored here; send the whole conversation as input"
_REASONS = {
    **REFUSED_BECAUSE,
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "prompt": "no prompts are stored here; send the text as instructions and input",
    "background": "nothing runs in the background here; leave it out",
    "top_logprobs": "log-probabilities are at /v1/chat/completions and /v1/completions",
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _text_or(other: str) -> Discriminator:
    return Discriminator(lambda value: "text" if isinstance(value, str) else other)


class ResponsePart(Strict):
    """A text part of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Dropped = None
    logprobs: Dropped = None
    transom_public: Annotated[
        bool, Field(description="The program's own text: passes as it is, at no cost. Never sent on.")
    ] = False


class ResponseMessage(Strict):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[ResponsePart], Tag("parts"), Field(min_length=1)],
        _text_or("parts"),
    ]
    id: Dropped = None
    status: Dropped = None
    phase: Dropped = None

    @property
    def message(self) -> Json:
        """As a chat message."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        parts = [
            {"type": "text", "text": part.text, "transom_public": part.transom_public}
            for part in self.content
        ]
        return {"role": self.role, "content": parts}


class Reasoning(Strict):
    """What a model thought before, which clients send back; it goes nowhere."""

    type: Literal["reasoning"]
    id: Dropped = None
    summary: Dropped = None
    content: Dropped = None
    encrypted_content: Dropped = None
    status: Dropped = None


class TextSettings(Strict):
    """The form of the answer: plain text, the only one."""

    format: TextFormat | None = None
    verbosity: Dropped = None


class StreamOptions(Strict):
    """What clients send."""

    include_obfuscation: Dropped = None


Item = Annotated[
    Annotated[ResponseMessage, Tag("message")] | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(lambda value: value.get("type", "message") if isinstance(value, dict) else "message"),
]
Stored = Annotated[None, Field(description="Nothing is stored: any value but null is refused.")]


class ResponsesRequest(Request):
    """POST /v1/responses."""

    reasons: ClassVar = _REASONS

    input: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[Item], Tag("items"), Field(min_length=1, max_length=4095)],
        _text_or("items"),
    ]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    text: TextSettings | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    background: Literal[False] | None = None
    previous_response_id: Stored = None
    conversation: Stored = None
    prompt: Stored = None
    include: Dropped = None
    max_tool_calls: Dropped = None
    metadata: Dropped = None
    parallel_tool_calls: Dropped = None
    prompt_cache_key: Dropped = None
    prompt_cache_retention: Dropped = None
    reasoning: Dropped = None
    safety_identifier: Dropped = None
    service_tier: Dropped = None
    store: Dropped = None
    truncation: Dropped = None
    user: Dropped = None

    def chat(self) -> TranslatedRequest:
        """The same as a chat request. Raises RefusedError for one without text."""
        items = (
            [ResponseMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        )
        messages = [item.message for item in items if isinstance(item, ResponseMessage)]
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        if not messages:
            raise RefusedError("there is no message; send text", param="input", code="empty_prompt")
        made = TranslatedRequest.model_validate(
            {
                "model": self.model, "messages": messages, "max_tokens": self.max_output_tokens,
                "temperature": self.temperature, "top_p": self.top_p, "stream": self.stream,
            }
        )  # fmt: skip
        made.check()
        return made


class TranslatedRequest(ChatRequest):
    """A chat request whose answer has the shapes of `/v1/responses`."""

    content: ClassVar = "input"

    @property
    def include_usage(self) -> bool:
        """It always is."""
        return True


@dataclass
class ResponsesWriter:
    """Writes one response, or its events."""

    request: TranslatedRequest
    model: str
    _serial: int = 0
    _id: str = field(default_factory=lambda: secrets.token_hex(16))
    _created: int = field(default_factory=lambda: int(time.time()))

    done = False  # its last event says so

    def whole(self, choices: Sequence[Choice], usage: dict[str, int] | None) -> Json:
        """The response object."""
        (choice,) = choices
        reason = _INCOMPLETE.get(choice.finish_reason or "")
        status = "incomplete" if reason else "completed"
        return self._response(status, [self._item(status, [_part(choice.text)])], reason, usage)

    def opening(self) -> list[Json]:
        """What comes before the first piece."""
        begun, place = self._response("in_progress", [], None, None), {"output_index": 0}
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", **place, item=self._item("in_progress", [])),
            self._event("response.content_part.added", **self._place, part=_part("")),
        ]

    def chunk(self, _choice: Choice, piece: Piece, extra: Json | None) -> list[Json]:
        """The event of a piece."""
        if not piece.text and not extra:
            return []
        more = {"transom": extra} if extra else {}
        return [
            self._event("response.output_text.delta", **self._place, delta=piece.text, logprobs=[], **more)
        ]

    def closing(
        self, choices: Sequence[Choice], usage: dict[str, int] | None, extra: Json | None
    ) -> list[Json]:
        """What comes after the last piece."""
        response = self.whole(choices, usage) | ({} if extra is None else {"transom": extra})
        (item,) = response["output"]
        (part,) = item["content"]
        return [
            self._event("response.output_text.done", **self._place, text=part["text"], logprobs=[]),
            self._event("response.content_part.done", **self._place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{response['status']}", response=response),
        ]

    @property
    def _place(self) -> Json:
        return {"item_id": f"msg_{self._id}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **more: Any) -> Json:
        self._serial += 1
        return {"type": kind, "sequence_number": self._serial - 1, **more}

    def _item(self, status: str, content: list[Json]) -> Json:
        head = {"id": f"msg_{self._id}", "type": "message", "status": status}
        return head | {"role": "assistant", "content": content}

    def _response(
        self, status: str, output: list[Json], reason: str | None, usage: dict[str, int] | None
    ) -> Json:
        asked = self.request
        return {
            "id": f"resp_{self._id}", "object": "response", "created_at": self._created, "status": status,
            "background": False, "error": None, "incomplete_details": {"reason": reason} if reason else None,
            "instructions": None, "max_output_tokens": asked.output_tokens, "metadata": {},
            "model": self.model, "output": output, "parallel_tool_calls": False,
            "previous_response_id": None, "reasoning": {"effort": None, "summary": None}, "store": False,
            "temperature": asked.temperature, "text": {"format": {"type": "text"}}, "tool_choice": "auto",
            "tools": [], "top_p": asked.top_p, "truncation": "disabled", "usage": _usage(usage),
        }  # fmt: skip


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: dict[str, int] | None) -> Json | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage["prompt_tokens"], "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }  # fmt: skip
