"""Every number and name that an engine says, checked before it is used.

Threat model: the engine's host may put anything where a number belongs: text, thousands of digits, NaN,
infinity, less than nothing. Whatever is not what the dialect says raises EngineGarbageError, which quotes
nothing of it.
Does not protect: a number in range may still be a lie.

Shapes: T tokens, F features of a token.
"""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

import numpy as np

from transom.errors import EngineGarbageError
from transom.serving.engines.base import FinishReason

_BELOW = 2**31  # token ids and counts are smaller
_ROUNDING = 1e-3  # a log-probability above zero by less is a rounded zero
_NAMED_ID = re.compile(r"(?:token_id:)?([0-9]{1,10})")
_NAME_CHARS = 512


def _refuse_constant(_name: str) -> None:
    raise ValueError


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def loads(data: bytes) -> Any:
    """Strict JSON in UTF-8. Raises EngineGarbageError, also for NaN and infinity."""
    try:
        return _DECODER.decode(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise EngineGarbageError(f"the engine sent {len(data)} bytes that are not JSON") from None


def count(value: object, *, least: int = 0) -> int:
    """A whole number of tokens, positions or dimensions."""
    if type(value) is not int or not least <= value < _BELOW:
        raise EngineGarbageError("the engine's answer holds no number where a count belongs")
    return value


def number(value: object) -> float:
    """A finite number of moderate size."""
    if type(value) not in (int, float) or not -_BELOW < value < _BELOW:  # type: ignore[operator]
        raise EngineGarbageError("the engine's answer holds no number where one belongs")
    return float(value)  # type: ignore[arg-type]


def logprob(value: object) -> float:
    """A natural log-probability; an impossible token has a large negative one, never infinity."""
    if type(value) not in (int, float) or not -math.inf < value <= _ROUNDING:  # type: ignore[operator]
        raise EngineGarbageError("the engine's answer holds no log-probability where one belongs")
    try:
        return min(0.0, float(value))  # type: ignore[arg-type]
    except OverflowError:
        raise EngineGarbageError("the engine's answer holds a log-probability of too many digits") from None


def features(value: object, tokens: int, size: int) -> np.ndarray:
    """Finite float32 [T, F] of so many tokens and features, from base64."""
    try:
        data = base64.b64decode(value, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        data = b""
    if len(data) != 4 * tokens * size:
        raise EngineGarbageError("the engine sent no state features, or too few or too many of them")
    found_TF = np.frombuffer(data, "<f4").reshape(tokens, size)
    if not np.isfinite(found_TF).all():
        raise EngineGarbageError("the engine's state features hold a number that is not finite")
    return found_TF


def named_id(name: object) -> int:
    """A token id that stands in a text, as `7` or `token_id:7`."""
    match = _NAMED_ID.fullmatch(name) if isinstance(name, str) else None
    return count(None if match is None else int(match[1]))


def token_ids(value: object) -> tuple[int, ...]:
    """A list of token ids as an engine sent it."""
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < _BELOW for i in value):
        raise EngineGarbageError("the engine sent no token ids; does it support return_token_ids?")
    return tuple(value)


def text(value: object, *, most_chars: int = _NAME_CHARS) -> str:
    """A text of bounded length."""
    if not isinstance(value, str) or len(value) > most_chars:
        raise EngineGarbageError("the engine's answer holds no text where one belongs, or one too long")
    return value


def finish_reason(value: object) -> FinishReason | None:
    """The reason as OpenAI names it; an empty one is none, an unknown one that ends an answer is stop."""
    if value is None or value == "":
        return None
    reason = text(value)
    if reason == "length":
        return "length"
    return "content_filter" if reason == "content_filter" else "stop"


def garbage(error: Exception) -> EngineGarbageError:
    """For an answer that lacks a field or has one of the wrong type; quotes nothing of it."""
    return EngineGarbageError(f"the engine's answer is outside its dialect ({type(error).__name__})")
