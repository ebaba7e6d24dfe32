"""What an engine's HTTP status means, in words that quote nothing of its answer.

Threat model: that of `http`; of the headers `Retry-After` alone is read, and bounded.
Source: RFC 9110, sections 10.2.3 (Retry-After) and 15.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from transom.errors import EngineBusyError, EngineError, EngineGarbageError

_RETRY_S = 3600


def refusal(status: int, retry_after: str = "") -> EngineError:
    """The error for a status that is not 200."""
    if 300 <= status < 400:
        return EngineGarbageError(
            f"the engine answered with a redirect (HTTP {status}), which is never followed"
        )
    hints = {
        400: "it refuses the request; is the prompt longer than its context, or are embeddings switched off "
        "there, or of another width?",
        401: "it wants an API key; name the key file",
        403: "it rejects the API key",
        404: "it lacks this path or model; check the engine kind and the model's name",
        413: "it takes no request of this size",
    }
    if status == 429:
        return EngineBusyError(
            "the engine is busy (HTTP 429); try again later", retry_after_s=retry_after_s(retry_after)
        )
    return EngineError(f"the engine answered HTTP {status}: {hints.get(status, 'its log says more')}")


def retry_after_s(value: str) -> int | None:
    """Seconds from a `Retry-After` header, a number or an HTTP date; at most an hour, None if unreadable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(int("0" + value.lstrip("0")[:9]), _RETRY_S)
    try:
        moment = parsedate_to_datetime(value)
        wait_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0, math.ceil(wait_s)), _RETRY_S)
