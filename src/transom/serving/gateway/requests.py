"""What a client may ask: the OpenAI request models, strict. The published schema is generated from them.

Threat model: a hostile or merely newer client. A field that this gateway does not know could carry content
it would not protect, so unknown fields are refused; a listed harmless set that common clients send is
accepted and dropped, never sent on. Messages name fields and types, never values.
Does not protect: what the known fields hold; that is the text stage's business.
Source: OpenAI API reference, chat completions and completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from transom.config import load_json
from transom.errors import RefusedError
from transom.serving import dialect
from transom.serving.dialect import Alternatives, Seed, Strict, TokenIds, Tokens, TopP, refuse_too_many

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
Fields = list[tuple[str, str]]
Choices = Annotated[int, Field(ge=1, le=16)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Dropped = Annotated[Any, Field(description="Accepted and dropped: never sent to the engine.")]
Unsupported = Annotated[None, Field(description="Not supported: any value but null is refused.")]
Neutral = Annotated[float, Field(ge=0, le=0, description="Only the neutral value 0 is supported.")]


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
    name: Dropped = None
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


class Sampling(Strict):
    """What both endpoints share."""

    model: str
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    n: Choices | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Neutral | None = None
    frequency_penalty: Neutral | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Dropped = None
    metadata: Dropped = None
    store: Dropped = None
    service_tier: Dropped = None
    prompt_cache_key: Dropped = None
    prompt_cache_retention: Dropped = None
    safety_identifier: Dropped = None

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


def parse(model: type[AnyRequest], body: bytes) -> AnyRequest:
    """Validate a request body. Raises RefusedError (400) naming the parameter, never its value."""
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, model, len(body)) from None
    try:
        load_json(body.decode())  # of a name that stands twice pydantic takes the last
    except ValueError:
        raise RefusedError("an object of the body names a member twice", code="invalid_json") from None
    if request.stream_options is not None and not request.stream:
        raise dialect.invalid("stream_options", "stream_options goes with stream: true")
    if isinstance(request, ChatRequest):
        if request.top_logprobs is not None and not request.logprobs:
            raise dialect.invalid("top_logprobs", "top_logprobs goes with logprobs: true")
        if not any(message.text for message in request.messages):
            raise RefusedError("every message is empty; send text", param="messages", code="empty_prompt")
    elif request.prompt == "" or (isinstance(request.prompt, list) and "" in request.prompt):
        raise RefusedError("the prompt is empty; send text", param="prompt", code="empty_prompt")
    else:
        refuse_too_many(request.n or 1, request.prompts)
    return request


def _refusal(error: ValidationError, model: type[AnyRequest], size_bytes: int) -> RefusedError:
    first = error.errors(include_url=False, include_context=False)[0]  # its input is not told
    if first["type"] == "json_invalid":
        return RefusedError(f"the body ({size_bytes} bytes) is not valid JSON in UTF-8", code="invalid_json")
    param = _param(first["loc"])
    names = [part for part in first["loc"] if isinstance(part, str)]
    of_content = names[:2] == ["messages", "content"]
    if of_content and first["input"] in (None, []):
        return dialect.invalid(param, "content is null or empty; give a text, or leave the message out")
    if of_content and not REFUSED_BECAUSE.keys() & names:
        return dialect.invalid(param, f"content must be text. {_NOT_TEXT}")
    if names[:2] == ["messages", "role"]:
        message = "role must be system, developer, user or assistant; tool messages are not supported yet"
        return dialect.invalid(param, message)
    return dialect.refusal(error, model, REFUSED_BECAUSE, param)


def _param(path: tuple[int | str, ...]) -> str | None:
    """`messages[0].content` from pydantic's location, without the names of union branches."""
    if not path:
        return None
    text = str(path[0])
    if text == "messages" and len(path) > 1:
        text += f"[{path[1]}]" + "".join(f".{part}" for part in path[2:3])
    return text[:80]
