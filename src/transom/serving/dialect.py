"""What the requests to gateway and engine have in common: strict models, one set of limits, one refusal.

Threat model: a hostile or merely newer client. What a model does not name is refused; messages name fields
and sizes, never values.
Does not protect: what the known fields hold.
Source: OpenAI API reference, completions, and vLLM's additions to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transom.errors import RefusedError

_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]]{1,80}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; `choices` of all its prompts together."""

    body_bytes: int = 64 * 2**20  # 3,000 tokens of embeddings that are 4,096 wide
    choices: int = 128
    logprobs: int = 20
    stop_ids: int = 64
    features: int = 1024  # numbers a token that an engine may tell of the model's states


TOP_LOGPROBS = Limits().logprobs
CHOICES = Limits().choices
FEATURES = Limits().features
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**62)]
Alternatives = Annotated[int, Field(ge=0, le=TOP_LOGPROBS)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0, le=2**31 - 1, description="0 for all.")]
MinP = Annotated[float, Field(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=2)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Strict(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Drawn(Strict):
    """How tokens are drawn, as `engines.base.Sampling` has it; each kind of request bounds temperature."""

    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class StreamOptions(Strict):
    """`include_usage` adds a last chunk with the token counts."""

    include_usage: bool = False


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The token counts of one request."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def invalid(param: str | None, message: str) -> RefusedError:
    """For a known field of a value that it cannot have."""
    return RefusedError(message, param=param, code="invalid_value")


def unknown(param: str | None, hint: str) -> RefusedError:
    """For a field that is none. The message names it too, as some clients show that alone."""
    named = f" {param}" if _PLAIN.fullmatch(param or "") else ""
    return RefusedError(f"unknown parameter{named}{hint}", param=(param or "")[:80], code="unknown_parameter")


def refuse_too_many(n: int, prompts: int, limit: int = CHOICES) -> None:
    """Raises RefusedError when `prompts` times `n` are more choices than one request may have."""
    if n * prompts > limit:
        raise invalid("n", f"n asks for {n * prompts} choices in all, more than {limit}")


def refusal(
    error: ValidationError, model: type[BaseModel], reasons: Mapping[str, str], param: str | None = None
) -> RefusedError:
    """The first problem as a refusal; `reasons` say why a named field is not supported."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(part) for part in first["loc"] if isinstance(part, str)]
    param = param or (names[0][:80] if names else None)
    reason = next((reasons[name] for name in names if name in reasons), None)
    if reason is not None:
        return RefusedError(reason, param=param, code="unsupported_parameter")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], model.model_fields, 1) if len(names) == 1 else []
        hint = f"; did you mean {near[0]}?" if near else "; remove it"
        return unknown(param, hint)
    return invalid(param, f"{param or 'the body'}: {first['msg']}")
