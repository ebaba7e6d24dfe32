"""From a JSON object to validated jobs: every field is known and in range, or the request is refused.

Written by hand, without a schema library: the echo engine is the upstream of a throughput benchmark.
Threat model: a hostile client. Refused before any work: unknown parameters, ids outside the vocabulary,
prompts longer than the context, pickles, embeddings that are not finite. Messages give sizes, no content.
Does not protect against: expensive but valid requests beyond the limits given here.

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transom.errors import RefusedError
from transom.serving.engines.job import Generator, Job
from transom.serving.engines.wire import is_pickle_or_zip

_KNOWN = frozenset(
    {
        "model",
        "prompt",
        "prompt_embeds",
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "seed",
        "stop_token_ids",
        "ignore_eos",
        "logprobs",
        "stream",
        "stream_options",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "cache_salt",
    }
)
_DEFAULT_MAX_TOKENS = 16  # as in the OpenAI completions API


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 64 * 2**20  # 3,000 tokens of embeddings that are 4,096 wide
    choices: int = 128
    logprobs: int = 20
    stop_ids: int = 64


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A validated request: one job a choice, in the order of their indices."""

    jobs: tuple[Job, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    return_ids: bool
    tokens_as_ids: bool


def parse_completion(body: dict[str, Any], generator: Generator, limits: Limits) -> CompletionRequest:
    """Validate a `/v1/completions` body. Raises RefusedError naming the parameter."""
    body = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(body)
    _check_model(body, generator)
    prompts = _prompts(body, generator)
    n = _integer(body, "n", 1, 1, limits.choices)
    if len(prompts) * n > limits.choices:
        raise _bad("n", f"asks for {len(prompts) * n} choices in all, more than {limits.choices}")
    sampling = _sampling(body, generator, limits)
    jobs = []
    for prompt in prompts:
        length = _check_length(prompt, sampling.max_tokens, generator)
        content = {"prompt_embeds": prompt} if isinstance(prompt, np.ndarray) else {"prompt_ids": prompt}
        jobs.append((replace(sampling, **content), length))
    seeds = [None if sampling.seed is None else sampling.seed + i for i in range(n)]
    return CompletionRequest(
        jobs=tuple(job if n == 1 else replace(job, seed=seed) for job, _ in jobs for seed in seeds),
        prompt_tokens=sum(length for _, length in jobs),
        stream=(stream := _flag(body, "stream")),
        include_usage=_include_usage(body, stream),
        return_ids=_flag(body, "return_token_ids"),
        tokens_as_ids=_flag(body, "return_tokens_as_token_ids"),
    )


def _bad(param: str, problem: str, status: int = 400, code: str = "invalid_value") -> RefusedError:
    return RefusedError(f"{param} {problem}", param=param, status=status, code=code)


def _refuse_unknown(body: dict[str, Any]) -> None:
    unknown = body.keys() - _KNOWN
    if not unknown:
        return
    name = min(unknown)
    if name in ("stop", "suffix", "echo", "best_of", "logit_bias"):
        raise _bad(name, "is not supported here; stop by id, with stop_token_ids", code="unknown_parameter")
    close = difflib.get_close_matches(name, _KNOWN, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    shown = repr(name) if name.isidentifier() and len(name) <= 40 else f"of {len(name)} characters"
    raise RefusedError(f"unknown parameter {shown}{hint}", param=name[:40], code="unknown_parameter")


def _check_model(body: dict[str, Any], generator: Generator) -> None:
    name = body.get("model")
    if not isinstance(name, str):
        raise _bad("model", "is required and must be a string")
    if name != generator.model:
        raise _bad(
            "model", f"{name[:80]!r} is not served here; use {generator.model!r}", 404, "model_not_found"
        )


def _integer(body: dict[str, Any], name: str, default: int | None, low: int, high: int) -> Any:
    value = body.get(name, default)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise _bad(name, f"must be an integer from {low} to {high}")
    return value


def _number(body: dict[str, Any], name: str, low: float, high: float) -> float:
    value = body.get(name, 1.0)
    if type(value) not in (int, float) or not low <= value <= high:
        raise _bad(name, f"must be a number from {low:g} to {high:g}")
    return float(value)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _bad(name, "must be true or false")
    return value


def _include_usage(body: dict[str, Any], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise _bad("stream_options", "goes with stream: true and has one member, include_usage")
    return _flag(options, "include_usage")


def _sampling(body: dict[str, Any], generator: Generator, limits: Limits) -> Job:
    stops = body.get("stop_token_ids", [])
    if stops:
        _check_ids("stop_token_ids", stops, generator.vocabulary_size)
        if len(stops) > limits.stop_ids:
            raise _bad("stop_token_ids", f"has {len(stops)} ids, more than {limits.stop_ids}")
    elif stops != []:
        raise _bad("stop_token_ids", "must be a list of token ids")
    if not isinstance(body.get("cache_salt", ""), str):
        raise _bad("cache_salt", "must be a string")
    top_p = _number(body, "top_p", 0.0, 1.0)
    if top_p == 0.0:
        raise _bad("top_p", "must be above 0")
    return Job(
        max_tokens=_integer(body, "max_tokens", _DEFAULT_MAX_TOKENS, 1, generator.context_tokens),
        temperature=_number(body, "temperature", 0.0, 100.0),
        top_p=top_p,
        seed=_integer(body, "seed", None, -(2**63), 2**63 - 1 - limits.choices),
        stop_ids=frozenset(stops),
        ignore_eos=_flag(body, "ignore_eos"),
        logprobs=_integer(body, "logprobs", None, 0, limits.logprobs),
    )


def _check_ids(param: str, ids: object, vocabulary_size: int) -> None:
    if not isinstance(ids, list) or set(map(type, ids)) != {int}:
        raise _bad(param, "must be a non-empty list of token ids")
    if min(ids) < 0 or max(ids) >= vocabulary_size:
        raise _bad(
            param, f"holds an id outside the vocabulary of {vocabulary_size}", code="token_out_of_range"
        )


def _prompts(body: dict[str, Any], generator: Generator) -> list[Any]:
    """The prompts, all as tuples of ids or all as arrays [T, D]."""
    if ("prompt" in body) == ("prompt_embeds" in body):
        raise _bad("prompt", "or prompt_embeds is required, one of the two")
    if "prompt_embeds" in body:
        encoded = body["prompt_embeds"]
        return [
            _embeds(one, generator)
            for one in (encoded if isinstance(encoded, list) and encoded else [encoded])
        ]
    prompt = body["prompt"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (list, str)):
        return [_prompt_ids(one, generator) for one in prompt]
    return [_prompt_ids(prompt, generator)]


def _prompt_ids(prompt: object, generator: Generator) -> tuple[int, ...]:
    if isinstance(prompt, str):
        prompt = _encode(prompt, generator)
    _check_ids("prompt", prompt, generator.vocabulary_size)
    return tuple(prompt)  # type: ignore[arg-type]


def _encode(text: str, generator: Generator) -> list[int]:
    if generator.tokenizer is None:
        raise _bad("prompt", "must be token ids: this engine has no tokenizer")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad("prompt", "holds a lone surrogate, which is not text", code="invalid_utf8") from None
    return generator.tokenizer.encode(text).ids


def _check_length(prompt: tuple[int, ...] | np.ndarray, max_tokens: int, generator: Generator) -> int:
    length = len(prompt)
    if length + max_tokens > generator.context_tokens:
        raise _bad(
            "prompt",
            f"({length} tokens) and max_tokens {max_tokens} exceed the context of {generator.context_tokens}",
            code="context_length_exceeded",
        )
    return length


def _embeds(encoded: object, generator: Generator) -> np.ndarray:
    """float32 [T, D] from base64 of safetensors bytes holding the one tensor `prompt_embeds`."""
    if generator.embedding_size is None:
        raise _bad("prompt_embeds", "is not taken by this engine; send prompt ids")
    if not isinstance(encoded, str):
        raise _bad("prompt_embeds", "must be a base64 string")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
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
