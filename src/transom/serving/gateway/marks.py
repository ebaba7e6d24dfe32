"""What the caller says of the messages of a request: what is the program's own, and what is an example.

Public are messages of the roles in `GatewayConfig.public`, and content parts with `"transom_public": true`.
An assistant message is an *example*, the caller's own writing and no answer of a host, if it says so
(`"transom_example": true`, or `"name": "example_assistant"`, as OpenAI's few-shot prompts have it), and an
*unnamed* example if the gateway was told so of all such messages (`--examples own`).
Threat model: the caller is trusted in what it says of its own text, and no more is taken as said: roles by
their exact name, parts one by one. The marks are read here and never sent on.
Does not protect: what is marked public, from anybody. What a word about examples risks says
`transom.serving.gateway.words`.
Source: own; the name is that of OpenAI's guide to few-shot prompts.
"""

from __future__ import annotations

from typing import NamedTuple

from transom.errors import RefusedError
from transom.privacy.kinds import Span
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.requests import AnyRequest, ChatRequest, Message

EXAMPLE_NAME = "example_assistant"


class Mark(NamedTuple):
    """Of one message: its stretches that are public, and whether the caller wrote it as an example.

    `public_role` is the role that makes it public, "" for none; `unnamed`: the word was about all messages.
    """

    public: tuple[Span, ...] = ()
    public_role: str = ""
    example: bool = False
    unnamed: bool = False


def marks_of(request: AnyRequest, config: GatewayConfig) -> tuple[Mark, ...]:
    """One mark a message or prompt. Raises RefusedError for a mark where it says nothing or must not."""
    if not isinstance(request, ChatRequest):
        return (Mark(),) * request.prompts
    return tuple(_mark(message, index, config) for index, message in enumerate(request.messages))


def _mark(message: Message, index: int, config: GatewayConfig) -> Mark:
    is_answer = message.role == "assistant"
    if message.transom_example and not is_answer:
        raise _refused(index, "transom_example is for messages of role assistant; other text is the caller's")
    public = _public(message)
    if config.mode == "enclave" and public:
        raise _refused(index, "mode enclave runs the attested word policy; transom_public would change it")
    role = message.role if message.role in config.public else ""
    if role:
        public = (Span(0, len(message.text), "public"),) if message.text else ()
    named = is_answer and (message.transom_example or message.name == EXAMPLE_NAME)
    return Mark(public, role, named, is_answer and not named and config.examples == "own")


def _public(message: Message) -> tuple[Span, ...]:
    """The stretches of the parts that are marked as public."""
    spans, end = [], 0
    for part in message.parts:
        start, end = end, end + len(part.text)
        if part.transom_public and part.text:
            spans.append(Span(start, end, "public"))
    return tuple(spans)


def _refused(index: int, message: str) -> RefusedError:
    return RefusedError(message, param=f"messages[{index}]", code="invalid_value")
