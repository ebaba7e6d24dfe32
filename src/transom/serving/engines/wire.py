"""The few pieces of raw ASGI an engine needs: a bounded body, strict JSON, a JSON answer, the error envelope.

Raw, because the echo engine is the upstream of a throughput benchmark and must not be its bottleneck.
Threat model: a client that sends too much, or something else than JSON.
Does not protect against: slow clients (the server's own timeouts do) and clients with permission to connect.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from transom.config import load_json
from transom.errors import EngineError, RefusedError, TransomError

_PICKLE_OR_ZIP = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class ClientGoneError(EngineError):
    """The client closed the connection before it was answered; there is nobody left to tell."""


def is_pickle_or_zip(data: bytes) -> bool:
    """Whether the bytes begin as `torch.save`, a zip archive or a pickle does; none of them is ever read."""
    return data.startswith(_PICKLE_OR_ZIP)


Failure = tuple[Mapping[str, Any], int, Mapping[str, str]]  # the JSON of an error, its status and headers


async def answered(
    send: Send, work: Callable[[Send], Awaitable[None]], failure: Callable[[Exception], Failure]
) -> int:
    """Let `work` answer; the status of that, 499 if the client left.

    An error becomes what `failure` makes of it: JSON, or in mid-stream an event without [DONE].
    """
    status = 0  # of the response begun; 0 before

    async def tracked(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        await send(message)

    try:
        await work(tracked)
    except ClientGoneError:
        return 499
    except Exception as error:
        value, failed, headers = failure(error)
        if status:
            await send_event(send, value, last=True)
        else:
            await send_json(send, value, failed, headers)
        return failed
    return status


def require_json(scope: Scope, code: str) -> None:
    """Raises RefusedError (415, `code`) for another content type than JSON's, of which browsers ask first."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if kind.split(b";")[0].strip().lower() != b"application/json":
        raise RefusedError("the content type must be application/json", status=415, code=code)


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The request body, at most `limit_bytes` long.

    Raises RefusedError (413) when it is longer, before more of it is read, and ClientGoneError.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    least_bytes = int(declared) if declared.isdigit() else 0
    body, more = bytearray(), True
    while more and max(len(body), least_bytes) <= limit_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its request was complete")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if max(len(body), least_bytes) > limit_bytes:
        raise RefusedError(
            f"the request body is larger than {limit_bytes} bytes; send a shorter prompt",
            status=413,
            code="request_too_large",
        )
    return bytes(body)


@asynccontextmanager
async def until_gone(receive: Receive) -> AsyncIterator[None]:
    """Cancel the enclosed work when the client closes the connection; raises ClientGoneError then."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  we run inside one
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGoneError("the client left before its answer was complete") from None
        raise
    finally:
        watcher.cancel()


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: one object, UTF-8, no NaN or infinity. Raises RefusedError (400, or 415 for a pickle)."""
    if is_pickle_or_zip(body):
        raise RefusedError(
            "the body is a pickle or a zip archive; send JSON", status=415, code="unsupported_media"
        )
    try:
        value = load_json(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RefusedError("the body is not valid UTF-8", code="invalid_utf8") from None
    except ValueError:
        raise RefusedError(f"the body ({len(body)} bytes) is not valid JSON", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RefusedError(f"the body is a JSON {type(value).__name__}; send an object", code="invalid_json")
    return value


def _refuse_constant(_name: str) -> None:
    raise ValueError


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # json.dumps makes one a call


def dump(value: object) -> bytes:
    """Compact ASCII JSON."""
    return _ENCODER.encode(value).encode()


SSE_DONE = {"type": "http.response.body", "body": b"data: [DONE]\n\n"}
SSE_END = {"type": "http.response.body", "body": b""}
_SSE_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


async def send_event_start(send: Send) -> None:
    """Open a stream of server-sent events."""
    await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})


async def send_event(send: Send, value: Mapping[str, Any], *, last: bool = False) -> None:
    """One server-sent event, named where the value has a type; `last` closes the stream without [DONE]."""
    body = b"data: " + dump(value) + b"\n\n"
    if kind := value.get("type"):
        body = b"event: " + kind.encode() + b"\n" + body
    await send({"type": "http.response.body", "body": body, "more_body": not last})


async def send_json(
    send: Send, value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """One complete JSON response."""
    body = dump(value)
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    others = [(name.encode(), text.encode()) for name, text in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": own + others})
    await send({"type": "http.response.body", "body": body})


def envelope(error: TransomError) -> tuple[dict[str, Any], int]:
    """The OpenAI error object for an error of ours, and its HTTP status."""
    if isinstance(error, RefusedError):
        status, param, code = error.status, error.param, error.error_code
    else:
        status, param, code = error.http_status, None, error.code
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}, status


def no_such_route(where: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What answers a path or method that is none; `where` says which there are."""

    async def refuse(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  starlette calls this for no other
        message = f"{error.detail}; see {where}"
        refusal = RefusedError(message, status=error.status_code, code="no_such_route")
        value, status = envelope(refusal)
        return JSONResponse(value, status_code=status, headers=error.headers)

    return refuse
