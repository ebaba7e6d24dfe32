"""What a client may ask: the OpenAI request models, strict. The published schema is generated from them.

Threat model: a hostile or merely newer client. A field that this gateway does not know could carry content
it would not protect, so unknown fields are refused, or dropped where the gateway was told so; a listed
harmless set that common clients send is accepted and dropped. What is dropped is never sent on, and named to
the client (`dropped`). Messages name fields and types, never values.
Does not protect: what the known fields hold; that is the text stage's business.
Source: OpenAI API reference, chat completions and completions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, PrivateAttr, ValidationError

from transom.config import load_json
from transom.errors import RefusedError
from transom.serving import dialect
from transom.serving.dialect import (
    Alternatives,
    Seed,
    Strict,
    TokenIds,
    Tokens,
    refuse_too_many,
)

_NOT_TEXT = "only text content is supported: images, audio and files cannot be protected"
REFUSED_BECAUSE = {
    "tools": "tool definitions and arguments are not supported yet; send none",
    "functions": "functions are not supported yet; send none",
    "tool_calls": "tool calls in messages are not supported yet; put the result into a user message",
    "tool_call_id": "tool messages are not supported yet; put the result into a user message",
    "function_call": "function calls are not supported yet",
    "response_format": "structured output is not supported yet; only {'type': 'text'} is",
    "modalities": _NOT_TEXT,
    "audio": _NOT_TEXT,
    "image_url": _NOT_TEXT,
    "input_audio": _NOT_TEXT,
    "file": _NOT_TEXT,
    "logit_bias": "token ids in logit_bias would tell the host words; it is not supported",
    "prediction": "a predicted output is content that cannot be protected here",
    "web_search_options": "web search would send content elsewhere; it is not supported",
    "suffix": "suffix is not supported by these engines",
}
_MOST_UNKNOWN = 64  # that are dropped
Fields = list[tuple[str, str]]
Choices = Annotated[int, Field(ge=1, le=16)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
_DROPPED = "Accepted and dropped: never sent to the engine."
Dropped = Annotated[Any, Field(description=_DROPPED)]
Unsupported = Annotated[None, Field(description="Not supported: any value but null is refused.")]


class TextPart(Strict):
    """A text part of a message; parts are joined without a separator."""

    type: Literal["text"]
    text: str
    transom_public: Annotated[
        bool, Field(description="The program's own text: passes as it is, at no cost. Never sent on.")
    ] = False


class Message(Strict):
    """One message; `developer` is the newer name of `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[
        Literal["example_assistant", "example_user"] | None,
        Field(description="Marks an example of the caller's own. Never sent on."),
    ] = None
    refusal: Dropped = None
    annotations: Dropped = None
    reasoning_content: Dropped = None
    audio: Unsupported = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Unsupported = None
    tool_call_id: Unsupported = None
    transom_example: Annotated[
        bool, Field(description="An assistant message of the caller's own, no answer. Never sent on.")
    ] = False

    @property
    def parts(self) -> Sequence[TextPart]:
        """The parts of the content; none where it is one text."""
        return () if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(dialect.StreamOptions):
    """As an engine's, and one that clients send."""

    include_obfuscation: Dropped = None


class TextFormat(Strict):
    """Plain text, the only format."""

    type: Literal["text"]


class Request(Strict):
    """What all endpoints share. `reasons` say why a named field is not supported."""

    reasons: ClassVar[Mapping[str, str]] = REFUSED_BECAUSE

    model: str
    _unknown: tuple[str, ...] = PrivateAttr(())

    @property
    def dropped(self) -> list[str]:
        """Names of what was sent and is not used, as `messages[].refusal`."""
        return sorted({*self._unknown, *_unused(self)})

    def check(self) -> None:
        """Raises RefusedError for what shows in several fields together."""


class Sampling(dialect.Drawn, Request):
    """What chat and completions share."""

    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Choices | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Dropped = None
    metadata: Dropped = None
    store: Dropped = None
    service_tier: Dropped = None
    prompt_cache_key: Dropped = None
    prompt_cache_retention: Dropped = None
    safety_identifier: Dropped = None

    def check(self) -> None:
        """See `Request.check`."""
        if self.stream_options is not None and not self.stream:
            raise dialect.invalid("stream_options", "stream_options goes with stream: true")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    chat: ClassVar = True
    content: ClassVar = "messages"

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: TextFormat | None = None
    parallel_tool_calls: Dropped = None
    reasoning_effort: Dropped = None
    verbosity: Dropped = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None

    def check(self) -> None:
        """See `Request.check`."""
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise dialect.invalid("top_logprobs", "top_logprobs goes with logprobs: true")
        if not any(message.text for message in self.messages):
            raise RefusedError("every message is empty; send text", param=self.content, code="empty_prompt")

    @property
    def output_tokens(self) -> int | None:
        """The limit on the answer, if one is given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def fields(self) -> Fields:
        """The messages as (role, text), with the roles that chat templates know."""
        roles = ["system" if one.role == "developer" else one.role for one in self.messages]
        return [(role, one.text) for role, one in zip(roles, self.messages, strict=True)]

    @property
    def alternatives(self) -> int | None:
        """How many alternatives a token are asked for; None without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    chat: ClassVar = False
    content: ClassVar = "prompt"

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=16)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=16)]
    )
    logprobs: Alternatives | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Unsupported = None

    def check(self) -> None:
        """See `Request.check`."""
        super().check()
        if self.prompt == "" or (isinstance(self.prompt, list) and "" in self.prompt):
            raise RefusedError("the prompt is empty; send text", param="prompt", code="empty_prompt")
        refuse_too_many(self.n or 1, self.prompts)

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return len(self.prompt) if several else 1

    @property
    def output_tokens(self) -> int | None:
        """The limit on the answer, if one is given."""
        return self.max_tokens

    @property
    def fields(self) -> Fields | None:
        """The prompts as (user, text); None for token ids."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [("user", str(text)) for text in prompts] if isinstance(prompts[0], str) else None

    @property
    def alternatives(self) -> int | None:
        """How many alternatives a token are asked for; None without log-probabilities."""
        return self.logprobs


AnyRequest = ChatRequest | CompletionRequest
Some = TypeVar("Some", bound=Request)


def parse(model: type[Some], body: bytes, *, drop_unknown: bool = False) -> Some:
    """Validate a request body. Raises RefusedError (400) naming the parameter, never its value."""
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        if not drop_unknown or any(one["type"] == "json_invalid" for one in _errors(error)):
            raise _refusal(error, model, len(body)) from None
        request = _without_unknown(model, body, error)
    _once(body)  # of a name that stands twice pydantic takes the last
    request.check()
    return request


def _once(body: bytes) -> Any:
    """Parsed, where each member of an object stands once."""
    try:
        return load_json(body.decode())
    except ValueError:
        raise RefusedError("an object of the body names a member twice", code="invalid_json") from None


def _without_unknown(model: type[Some], body: bytes, error: ValidationError) -> Some:
    """The request without the fields that are not known. Raises RefusedError for what else is wrong, and for
    a field that means something elsewhere, as `stop` at `/v1/responses`."""
    value, names = _once(body), set[str]()
    paths = [one["loc"] for one in _errors(error) if one["type"] == "extra_forbidden"]
    meant = {*model.reasons, *_meant(Request)}
    if len(paths) > _MOST_UNKNOWN or any(path[-1] in meant for path in paths if len(path) == 1):
        raise _refusal(error, model, len(body))
    for path in paths:
        owner, name = value, ""
        for part in _keys(path)[:-1]:
            if isinstance(part, int):
                name = f"{name.removesuffix('.')}[]."
            elif isinstance(owner, list):
                continue  # the name of a branch of a union
            else:
                name += f"{part}."
            owner = owner[part]
        del owner[path[-1]]
        names.add(f"{name}{path[-1]}")
    try:
        request = model.model_validate_json(json.dumps(value))
    except ValidationError as rest:
        raise _refusal(rest, model, len(body)) from None
    request._unknown = tuple(names)
    return request


def _keys(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location without the kind of an item of `input`, which stands behind its number."""
    return (*path[:3], *path[4:]) if path[0] == "input" else path


def _meant(model: type[Request]) -> set[str]:
    """Fields of a kind of request, and of those made of it, that are no mere ballast."""
    own = {name for name, field in model.model_fields.items() if field.description != _DROPPED}
    return own.union(*map(_meant, model.__subclasses__()))


def _unused(value: Strict, before: str = "") -> Iterator[str]:
    """The fields that were sent and are dropped, of a model and of those in it."""
    known = type(value).model_fields
    for name in value.model_fields_set:
        own = getattr(value, name)
        if known[name].description == _DROPPED:
            if own is not None:
                yield before + name
        elif isinstance(own, Strict):
            yield from _unused(own, f"{before}{name}.")
        elif isinstance(own, list) and own and isinstance(own[0], Strict):
            for one in own:
                yield from _unused(one, f"{before}{name}[].")


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False, include_context=False, include_input=False))


def _refusal(error: ValidationError, model: type[Request], size_bytes: int) -> RefusedError:
    first = error.errors(include_url=False, include_context=False)[0]  # its input is not told
    if first["type"] == "json_invalid":
        return RefusedError(f"the body ({size_bytes} bytes) is not valid JSON in UTF-8", code="invalid_json")
    param = _param(first["loc"])
    names = [part for part in first["loc"] if isinstance(part, str)]
    of_content = names[:2] == ["messages", "content"] or names[:4:3] == ["input", "content"]
    if of_content and first["input"] in (None, []):
        return dialect.invalid(param, "content is null or empty; give a text, or leave the message out")
    if of_content and not model.reasons.keys() & names:
        of_parts = [one for one in _errors(error) if "content" in one["loc"] and one["type"] != "string_type"]
        if of_parts and all(one["type"] == "extra_forbidden" for one in of_parts):
            return dialect.unknown(f"{param}[].{of_parts[0]['loc'][-1]}", "; remove it")
        return dialect.invalid(param, f"content must be text. {_NOT_TEXT}")
    if names == ["messages", "name"]:
        message = "a name would tell the host who speaks; write it into the content, which is protected"
        return dialect.invalid(param, message)
    if names[:2] == ["messages", "role"]:
        message = "role must be system, developer, user or assistant; tool messages are not supported yet"
        return dialect.invalid(param, message)
    if first["type"] == "union_tag_invalid":
        return dialect.invalid(param, "an item of this type is not supported; send messages")
    return dialect.refusal(error, model, model.reasons, param)


def _param(path: tuple[int | str, ...]) -> str | None:
    """`messages[0].content` from pydantic's location, without the names of union branches."""
    if not path:
        return None
    text = str(path[0])
    if text == "messages" and len(path) > 1:
        text += f"[{path[1]}]" + "".join(f".{part}" for part in path[2:3])
    if text == "input" and len(path) > 2:  # after the names of two branches of unions
        text += f"[{path[2]}]" + "".join(f".{part}" for part in path[4:5])
    return text[:80]
