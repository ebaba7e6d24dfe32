"""The vendor's side of private inference: its tuned blocks, for states that a customer computes and noises.

A session is one text that grows: states of new tokens come, and the last one's top state goes back, or its
logits where the vendor has the head. Each keeps a key-value cache. Sessions are bounded in number and in
tokens, all of which a session reserves when it begins; one that is idle is dropped. One thread runs the
model, one message at a time.
Threat model: anyone who reaches the port sends anything: bodies are bounded and checked before they are used
(see `split_wire`), and sessions have names that nobody guesses. A message that comes twice is applied once.
Does not protect: the vendor reads what it is sent, and knows the answers' odds: it computes them. There is no
authentication, and TLS only with a certificate.
Source: own. Nothing of a request is logged.

Shapes: T new tokens, D width, V vocabulary.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from transom.checkpoint.cut import Middle, Tail, new_cache
from transom.errors import EngineError, RefusedError, TransomError
from transom.link.codec import decode, encode
from transom.serving.engines.wire import (
    envelope,
    no_such_route,
    parse_json_object,
    read_body,
    require_json,
)
from transom.serving.split_wire import (
    CHUNK_TOKENS,
    MESSAGE,
    OWNER,
    PATH,
    SESSION,
    STATES,
    SplitTerms,
    header,
    states_limits,
)

if TYPE_CHECKING:
    from torch import Tensor

_BODY_BYTES = 1024


@dataclass
class _Session:
    """A text so far: its cache, how many tokens it may have, and the answer to its latest message."""

    tokens: int
    cache: Any = field(default_factory=new_cache, repr=False)
    length: int = 0
    busy: bool = False
    used_s: float = 0.0
    latest: tuple[bytes, bytes] | None = field(
        default=None, repr=False
    )  # digest of a message, and its answer


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a vendor gives: tokens of one session, sessions, tokens of all together, and idle seconds."""

    context_tokens: int
    sessions: int = 32
    tokens: int = 65_536
    idle_s: float = 120.0


class SplitServer:
    """The vendor's model and its sessions. Close it, or use its app, which does.

    `tail` is the head's part, None in layout `customer`. `on_states` is told what comes, [T, D]: for audits.
    """

    def __init__(
        self,
        terms: SplitTerms,
        middle: Middle,
        tail: Tail | None,
        bounds: Bounds,
        *,
        on_states: Callable[[Tensor], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.terms, self.bounds = terms, bounds
        self._middle, self._tail = middle, tail
        self._sessions: dict[str, _Session] = {}
        self._on_states, self._clock = on_states, clock
        self._worker = ThreadPoolExecutor(1, "transom-split")

    def __len__(self) -> int:
        """How many sessions there are."""
        return len(self._sessions)

    def close(self) -> None:
        """Drop all sessions, and wait for the message that is being computed."""
        self._sessions.clear()
        self._worker.shutdown(cancel_futures=True)

    def open(self, name: str, tokens: int) -> None:
        """Begin a session of up to so many tokens. Raises RefusedError, 429 where no room is left."""
        if not SESSION.fullmatch(name):
            raise RefusedError("a session's name is 32 hex digits, drawn by whoever begins it")
        if not 1 <= tokens <= self.bounds.context_tokens:
            raise RefusedError(
                f"a session has 1 to {self.bounds.context_tokens} tokens, got {tokens}", param="tokens"
            )
        now_s = self._clock()
        for other, one in list(self._sessions.items()):
            if not one.busy and now_s - one.used_s > self.bounds.idle_s:
                self.drop(other)
        if (known := self._sessions.get(name)) is not None:
            if (known.tokens, known.length) == (tokens, 0):  # it was asked for twice
                return
            raise RefusedError("there is a session of this name", status=409, code="session_exists")
        reserved = sum(one.tokens for one in self._sessions.values())
        if len(self._sessions) >= self.bounds.sessions or reserved + tokens > self.bounds.tokens:
            raise RefusedError(
                "as many sessions are running as there is room for; try again later",
                status=429,
                code="engine_busy",
            )
        self._sessions[name] = _Session(tokens, used_s=now_s)

    def drop(self, name: str) -> None:
        """End a session; one that is not there has ended."""
        self._sessions.pop(name, None)

    async def rise(self, name: str, message: bytes) -> bytes:
        """The answer to a session's next message. Raises RefusedError, LinkRefusedError and EngineError."""
        session = self._sessions.get(name)
        if session is None:
            raise RefusedError(
                "there is no such session, or it was idle too long", status=404, code="no_session"
            )
        if session.busy:
            raise RefusedError("this session is at work", status=409, code="session_busy")
        session.busy, digest = True, hashlib.sha256(message).digest()
        try:
            if session.latest is not None and session.latest[0] == digest:  # it came twice
                return session.latest[1]
            states_TD = self._states(name, session, message)
            run = partial(self._answer, name, session, states_TD)
            answer = await asyncio.get_running_loop().run_in_executor(self._worker, run)
            session.latest = digest, answer
            return answer
        finally:
            session.busy, session.used_s = False, self._clock()

    def _states(self, name: str, session: _Session, message: bytes) -> Tensor:
        got, tensors = decode(message, states_limits(self.terms))
        states_TD = tensors[STATES]
        if got != header(self.terms, name, "customer", session.length):
            raise RefusedError(
                f"not the next message of this session, which has {session.length} tokens, or of another "
                "split tuning",
                status=409,
                code="out_of_order",
            )
        if not 1 <= len(states_TD) <= min(CHUNK_TOKENS, session.tokens - session.length):
            raise RefusedError(
                f"{len(states_TD)} tokens are none, more than {CHUNK_TOKENS} in a message, or more than the "
                f"session's {session.tokens}"
            )
        return states_TD

    def _answer(self, name: str, session: _Session, states_TD: Tensor) -> bytes:
        """Through the blocks; a session whose cache may be half written ends."""
        try:
            if self._on_states is not None:
                self._on_states(states_TD)
            out, _numbers = self.terms.answer
            reply = header(self.terms, name, "vendor", session.length)
            answer = encode(reply, {out: self._top(session.cache, states_TD)}, self.terms.wire)
        except Exception as error:
            self.drop(name)
            raise EngineError(f"the model failed on this session ({type(error).__name__})") from None
        session.length += len(states_TD)
        return answer

    def _top(self, cache: Any, states_TD: Tensor) -> Tensor:
        """The last token's top state [1, D], or its logits [1, V]."""
        import torch

        some: Any = next(iter(self._middle.parts.model.parameters()))
        with torch.inference_mode():
            top_1TD = self._middle(states_TD[None].to(some.device, some.dtype), None, cache)[:, -1:]
            return (top_1TD if self._tail is None else self._tail(top_1TD))[0]


def create_split_app(server: SplitServer) -> Starlette:
    """The server over HTTP; it closes the server at its end."""

    async def begin(request: Request) -> Response:
        require_json(request.scope, "unsupported_media")
        asked = parse_json_object(await read_body(request.scope, request.receive, _BODY_BYTES))
        tokens = asked.get("tokens")
        if asked.keys() != {"tokens", "terms"} or type(tokens) is not int:
            raise RefusedError("a session is asked for by tokens, a number, and terms", param="tokens")
        if asked["terms"] != server.terms.digest:
            raise RefusedError("another split tuning is served here", status=409, code="other_terms")
        server.open(request.path_params["session"], tokens)
        return JSONResponse({})

    async def go_on(request: Request) -> Response:
        if request.headers.get("content-type") != MESSAGE:
            raise RefusedError(f"states are sent as {MESSAGE}", status=415, code="unsupported_media")
        limit_bytes = states_limits(server.terms).max_bytes
        message = await read_body(request.scope, request.receive, limit_bytes)
        return Response(await server.rise(request.path_params["session"], message), media_type=MESSAGE)

    async def end(request: Request) -> Response:
        server.drop(request.path_params["session"])
        return JSONResponse({})

    async def models(_request: Request) -> Response:
        terms = server.terms
        card = {"id": terms.model, "object": "model", "created": 0, "owned_by": OWNER}
        card |= {"max_model_len": server.bounds.context_tokens, "hidden_size": terms.width}
        return JSONResponse({"object": "list", "data": [card | {"split": asdict(terms)}]})

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    return Starlette(
        routes=[
            Route(PATH + "/{session}", begin, methods=["PUT"]),
            Route(PATH + "/{session}", go_on, methods=["POST"]),
            Route(PATH + "/{session}", end, methods=["DELETE"]),
            Route("/v1/models", models),
            Route("/healthz", healthz),
        ],
        exception_handlers={HTTPException: no_such_route("/v1/models"), TransomError: _refused},
        lifespan=lifespan,
    )


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TransomError)  # noqa: S101  starlette calls this for no other
    value, status = envelope(error)
    return JSONResponse(value, status_code=status)
