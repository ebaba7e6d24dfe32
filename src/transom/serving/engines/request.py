"""From a JSON object to validated jobs: every field is known and in range, or the request is refused.

Threat model: a hostile client. Refused before any work: unknown parameters, ids outside the vocabulary,
prompts longer than the context, pickles, embeddings that are not finite. Messages give sizes, no content.
Does not protect against: expensive but valid requests beyond the limits given here.

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from transom.errors import RefusedError
from transom.serving.dialect import (
    Drawn,
    Limits,
    Seed,
    StreamOptions,
    Tokens,
    refusal,
    refuse_too_many,
)
from transom.serving.engines.base import sampling_of
from transom.serving.engines.job import Generator, Job
from transom.serving.engines.wire import is_pickle_or_zip

_BY_ID = "is not supported here; stop by id, with stop_token_ids"
_REASONS = {name: f"{name} {_BY_ID}" for name in ("stop", "suffix", "echo", "best_of", "logit_bias")}
_Ids = list[int]  # that they are in the vocabulary is seen faster all at once


class EngineRequest(Drawn):
    """POST /v1/completions of an engine."""

    model: str
    prompt: Annotated[_Ids | list[_Ids | str] | str | None, Field(union_mode="left_to_right")] = None
    prompt_embeds: str | Annotated[list[str], Field(min_length=1)] | None = None
    max_tokens: Tokens = 16  # as in the OpenAI completions API
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    seed: Seed | None = None
    stop_token_ids: _Ids = Field(default_factory=list)
    ignore_eos: bool = False
    logprobs: Annotated[int, Field(ge=0)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    return_state_features: bool = False
    cache_salt: str = ""

    @property
    def encoded(self) -> Sequence[str]:
        """The embeddings, each in base64."""
        if isinstance(self.prompt_embeds, str):
            return [self.prompt_embeds]
        return self.prompt_embeds or []

    @property
    def prompts(self) -> Sequence[list[int] | str]:
        """The prompts, as ids or text."""
        if isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int):
            return self.prompt
        return [] if self.prompt is None else [self.prompt]  # type: ignore[list-item]


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request: one job a choice, in the order of their indices."""

    jobs: tuple[Job, ...]
    prompt_tokens: int
    asked: EngineRequest


def parse_completion(body: dict[str, Any], generator: Generator, limits: Limits) -> Work:
    """Validate a `/v1/completions` body. Raises RefusedError naming the parameter."""
    try:
        asked = EngineRequest.model_validate(
            {name: value for name, value in body.items() if value is not None}
        )
    except ValidationError as error:
        raise refusal(error, EngineRequest, _REASONS) from None
    _check(asked, generator, limits)
    prompts: list[dict[str, Any]] = [{"prompt_embeds": _embeds(one, generator)} for one in asked.encoded]
    prompts += [{"prompt_ids": _prompt_ids(one, generator)} for one in asked.prompts]
    refuse_too_many(asked.n, len(prompts), limits.choices)
    lengths = [_fitting(len(one), asked.max_tokens, generator) for (one,) in map(dict.values, prompts)]
    several = asked.n > 1 and asked.seed is not None
    seeds = [asked.seed + i if several else asked.seed for i in range(asked.n)]  # type: ignore[operator]
    sampling: dict[str, Any] = {
        "max_tokens": asked.max_tokens,
        **generator.sampling,
        **{name: value for name, value in sampling_of(asked).items() if value is not None},
        "stop_ids": frozenset(asked.stop_token_ids),
        "ignore_eos": asked.ignore_eos,
        "logprobs": asked.logprobs,
        "features": asked.return_state_features,
    }
    jobs = tuple(Job(**prompt, **sampling, seed=seed) for prompt in prompts for seed in seeds)
    return Work(jobs, sum(lengths), asked)


def _bad(param: str, problem: str, status: int = 400, code: str = "invalid_value") -> RefusedError:
    return RefusedError(f"{param} {problem}", param=param, status=status, code=code)


def _check(asked: EngineRequest, generator: Generator, limits: Limits) -> None:
    """What depends on this engine and on more than one field."""
    if asked.model != generator.model:
        raise _bad(
            "model",
            f"{asked.model[:80]!r} is not served here; use {generator.model!r}",
            404,
            "model_not_found",
        )
    if (asked.prompt is None) == (asked.prompt_embeds is None):
        raise _bad("prompt", "or prompt_embeds is required, one of the two")
    if "stream_options" in asked.model_fields_set and not asked.stream:
        raise _bad("stream_options", "goes with stream: true")
    if len(asked.stop_token_ids) > limits.stop_ids:
        raise _bad("stop_token_ids", f"has {len(asked.stop_token_ids)} ids, more than {limits.stop_ids}")
    if asked.stop_token_ids:
        _check_ids("stop_token_ids", asked.stop_token_ids, generator.vocabulary_size)
    if asked.n > limits.choices or asked.max_tokens > generator.context_tokens:
        param = "n" if asked.n > limits.choices else "max_tokens"
        raise _bad(param, f"must be at most {limits.choices if param == 'n' else generator.context_tokens}")
    if asked.return_state_features and not generator.feature_size:
        raise _bad("return_state_features", "is for engines that tell of states; this one does not")
    if (asked.logprobs or 0) > limits.logprobs:
        raise _bad("logprobs", f"must be at most {limits.logprobs}")


def _check_ids(param: str, ids: list[int], vocabulary_size: int) -> None:
    if min(ids) < 0 or max(ids) >= vocabulary_size:
        raise _bad(
            param, f"holds an id outside the vocabulary of {vocabulary_size}", code="token_out_of_range"
        )


def _prompt_ids(prompt: list[int] | str, generator: Generator) -> tuple[int, ...]:
    if isinstance(prompt, str):
        prompt = _encode(prompt, generator)
    if not prompt:
        raise _bad("prompt", "must be a non-empty list of token ids")
    _check_ids("prompt", prompt, generator.vocabulary_size)
    return tuple(prompt)


def _encode(text: str, generator: Generator) -> list[int]:
    if generator.tokenizer is None:
        raise _bad("prompt", "must be token ids: this engine has no tokenizer")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad("prompt", "holds a lone surrogate, which is not text", code="invalid_utf8") from None
    return generator.tokenizer.encode(text).ids


def _fitting(length: int, max_tokens: int, generator: Generator) -> int:
    if length + max_tokens > generator.context_tokens:
        raise _bad(
            "prompt",
            f"({length} tokens) and max_tokens {max_tokens} exceed the context of {generator.context_tokens}",
            code="context_length_exceeded",
        )
    return length


def _embeds(encoded: str, generator: Generator) -> np.ndarray:
    """float32 [T, D] from base64 of safetensors bytes holding the one tensor `prompt_embeds`."""
    if generator.embedding_size is None:
        raise _bad(
            "prompt_embeds", "is not taken by this engine; send prompt ids, or start it with --backend torch"
        )
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise _bad("prompt_embeds", "is not valid base64") from None
    if is_pickle_or_zip(data):
        raise _bad("prompt_embeds", "is a pickle or torch.save; send safetensors", 415, "unsupported_media")
    embeds_TD = _dense(data)
    if embeds_TD.shape[1] != generator.embedding_size:
        raise _bad("prompt_embeds", f"has width {embeds_TD.shape[1]}, the model {generator.embedding_size}")
    if not np.isfinite(embeds_TD).all():
        raise _bad("prompt_embeds", "holds a value that is not finite")
    return embeds_TD


def _dense(data: bytes) -> np.ndarray:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except SafetensorError:
        raise _bad("prompt_embeds", f"({len(data)} bytes) is not valid safetensors") from None
    if tensors.keys() != {"prompt_embeds"}:
        raise _bad("prompt_embeds", f"must hold one tensor named prompt_embeds, got {len(tensors)} tensors")
    view = tensors["prompt_embeds"]
    shape, dtype = view["shape"], view["dtype"]
    if len(shape) != 2 or not math.prod(shape):
        raise _bad("prompt_embeds", f"must have shape [tokens, width], got {shape}")
    if dtype == "BF16":  # numpy has none: its bits are the upper half of a float32
        wide = np.frombuffer(view["data"], dtype="<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(shape)
    if dtype not in ("F16", "F32"):
        raise _bad("prompt_embeds", f"must be F32, F16 or BF16, got {dtype}")
    return np.frombuffer(view["data"], dtype=f"<f{int(dtype[1:]) // 8}").astype("<f4").reshape(shape)
