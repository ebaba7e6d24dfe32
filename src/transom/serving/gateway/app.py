"""The gateway: an OpenAI-compatible endpoint on the user's machine, between private words and an engine.

Threat model: the engine's host is curious; clients may be hostile or gone; web pages in a browser of this
machine may ask. The JSON content type is required, which makes browsers ask first, and nothing here says
yes; a page whose name was made to point here is refused by its `Host` or `Origin` header (`hosts` in the
configuration), on every path and before the body is read.
Nothing of a request is logged.
Does not protect against other local users without `--api-key-file`, nor the way from client to gateway.
Source: OpenAI API reference; ASGI specification.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from traceback import walk_tb
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from transom.enclave.evidence import Trust
from transom.errors import EngineBusyError, MisconfiguredError, RefusedError, TransomError
from transom.privacy.kinds import unknown
from transom.privacy.ledger import Ledger
from transom.privacy.sanitize import Sanitizer
from transom.serving.annotate import Annotator
from transom.serving.dialect import invalid
from transom.serving.engines.base import Engine, Json
from transom.serving.engines.wire import (
    Failure,
    answered,
    envelope,
    no_such_route,
    read_body,
    require_json,
    send_json,
    until_gone,
)
from transom.serving.gateway.annotations import check_annotators
from transom.serving.gateway.charge import Charger
from transom.serving.gateway.config import PUBLIC_ROLES, GatewayConfig
from transom.serving.gateway.deliver import Caller, Gateway
from transom.serving.gateway.enclave import Enclave
from transom.serving.gateway.exchange import names_beside, prepare
from transom.serving.gateway.metrics import Metrics
from transom.serving.gateway.obfuscated import Substitution
from transom.serving.gateway.requests import AnyRequest, ChatRequest, CompletionRequest, parse
from transom.serving.gateway.responses import ResponsesRequest
from transom.serving.gateway.schema import openapi
from transom.serving.gateway.words import Veil
from transom.serving.tokenizer import ChatTokenizer

_log = logging.getLogger("transom.gateway")
_SESSION_CHARS = 256
_FIELD, _MOST_NAMED = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}"), 32
_HOPELESS = ("privacy_budget_spent", "extraction_limit")  # 429s that a retry within minutes will meet again
_MARKS = {"public": (), "examples": "quote", "restore_words": False}  # the defaults
_AUTHORITY = re.compile(rb"(\[[^\[\]]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")  # a name or address, and a port


def create_gateway(
    config: GatewayConfig,
    engine: Engine,
    tokenizer: ChatTokenizer | None = None,
    sanitizer: Sanitizer | None = None,
    ledger: Ledger | None = None,
    enclave: Enclave | None = None,
    engine_trust: Callable[[], Trust] | None = None,
    substitution: Substitution | None = None,
    annotators: Sequence[Annotator] = (),
) -> Starlette:
    """The gateway application. Modes words, enclave and words+obfuscated need a sanitizer.

    Mode enclave needs an opened bundle, obfuscated and words+obfuscated the token map of the key. A ledger
    makes the spending durable and capped. `engine_trust` tells what the engine's evidence proves; it and the
    enclave's own trust stand in every response header. `annotators` say what they make of each answer.
    Raises MisconfiguredError for a combination that could not protect what its mode promises.
    """
    check_annotators(annotators)
    veil = None if sanitizer is None else veil_of(config, sanitizer)
    charger = Charger(ledger) if ledger is not None else None
    gateway = Gateway(
        config, engine, tokenizer, veil, charger, Metrics(), enclave, substitution, tuple(annotators)
    )
    _check_parts(gateway)
    own = None if enclave is None else enclave.trust
    trusts = own is not None or engine_trust is not None

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        if sanitizer is not None:
            await asyncio.to_thread(sanitizer.prepare)
        yield
        await engine.close()
        if enclave is not None:
            enclave.table.close()

    endpoints = {
        "/v1/chat/completions": _Endpoint(gateway, "chat", ChatRequest),
        "/v1/completions": _Endpoint(gateway, "completions", CompletionRequest),
        "/v1/responses": _Endpoint(gateway, "responses", ResponsesRequest),
    }
    return Starlette(
        routes=[
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()),
            *_pages(gateway),
        ],
        middleware=[
            Middleware(_Numbered),
            *([Middleware(_Trust, own, engine_trust)] if trusts else []),
            *([] if config.hosts is None else [Middleware(_KnownHosts, config.hosts)]),
            Middleware(_Direct, endpoints),
        ],
        exception_handlers={HTTPException: no_such_route("/openapi.json"), TransomError: _error},
        lifespan=lifespan,
    )


def veil_of(config: GatewayConfig, sanitizer: Sanitizer) -> Veil:
    """The text stage that a configuration asks for."""
    return Veil(
        sanitizer,
        retry_s=60 * config.retry_minutes,
        public=config.public,
        own_examples=config.examples == "own",
        restore_words=config.restore_words,
    )


def _check_parts(gateway: Gateway) -> None:
    mode = gateway.config.mode
    substitution = gateway.substitution
    tokenizer = gateway.tokenizer
    parts = {
        "sanitizer": (gateway.veil, mode not in ("plain", "obfuscated")),
        "bundle": (gateway.enclave, mode == "enclave"),
        "key": (substitution, mode in ("obfuscated", "words+obfuscated")),
    }
    for name, (part, wanted) in parts.items():
        if (part is not None) != wanted:
            raise MisconfiguredError(f"mode {mode!r} and the {name} do not go together; give both or none")
    _check_marks(gateway)
    if gateway.enclave is not None and not gateway.engine.takes_embeds:
        raise MisconfiguredError(
            "mode 'enclave' needs an engine that takes embeddings: the embedded engine, or vLLM"
        )
    if substitution is not None and gateway.engine.takes != "ids":
        raise MisconfiguredError(
            f"mode {mode!r} needs an engine that takes token ids: the embedded engine, vLLM or "
            "llama.cpp; a chat endpoint would be sent text"
        )
    if gateway.engine.takes == "ids" and tokenizer is None:
        raise MisconfiguredError("this engine takes token ids: give the model's tokenizer")
    if substitution is not None and tokenizer is not None and tokenizer.vocab_size > substitution.vocabulary:
        raise MisconfiguredError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the key's checkpoint {substitution.vocabulary}; "
            "one of them is for another model"
        )


def _check_marks(gateway: Gateway) -> None:
    config = gateway.config
    given = [
        name for name in ("public", "examples", "restore_words") if getattr(config, name) != _MARKS[name]
    ]
    if given and gateway.veil is None:
        raise MisconfiguredError(f"mode {config.mode!r} sanitises no text: leave out {', '.join(given)}")
    for role in config.public:
        if role not in PUBLIC_ROLES:
            raise MisconfiguredError(unknown("public role", role, PUBLIC_ROLES))
    if config.public and config.mode == "enclave":
        raise MisconfiguredError("mode enclave runs the attested word policy, which `public` would change")


class _Trust:
    def __init__(self, app: ASGIApp, own: Trust | None, engines: Callable[[], Trust] | None) -> None:
        self._app, self._own, self._engines = app, own, engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, _with_headers(send, self._headers()))

    def _headers(self) -> Iterator[tuple[bytes, bytes]]:
        if self._own is not None:
            yield b"x-transom-trust", self._own.encode()
        if self._engines is not None:
            yield b"x-transom-engine-trust", self._engines().encode()


class _KnownHosts:
    """Refuses (403) a request without one `Host` of `hosts`, or with an `Origin` that is not http or https on
    one of them. A host that the target names was made the `Host` by the server (`transom.net.door`).
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower().encode() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not self._knows(scope["headers"]):
            message = "the Host or Origin header names another machine; see the option --allow-host"
            await send_json(send, *envelope(RefusedError(message, status=403, code="forbidden_host")))
            return
        await self._app(scope, receive, send)

    def _knows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        given = {name: [value for key, value in headers if key == name] for name in (b"host", b"origin")}
        if len(given[b"host"]) != 1 or len(given[b"origin"]) > 1:
            return False
        origins = [value.partition(b"://") for value in given[b"origin"]]
        web = all(scheme in (b"http", b"https") for scheme, _, _ in origins)
        return web and all(map(self._is_known, (*given[b"host"], *(rest for _, _, rest in origins))))

    def _is_known(self, authority: bytes) -> bool:
        found = _AUTHORITY.fullmatch(authority)
        return found is not None and found[1].lower() in self._hosts and int(found[2] or 0) < 2**16


class _Numbered:
    """Gives each answer a number of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = [(b"x-request-id", b"req_" + secrets.token_hex(16).encode())]
        await self._app(scope, receive, _with_headers(send, number))


class _Direct:
    """Calls a generation endpoint past the router, which takes a tenth of a request's time."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST"
        await (self._endpoints.get(scope["path"], self._app) if posted else self._app)(scope, receive, send)


def _with_headers(send: Send, more: Iterable[tuple[bytes, bytes]]) -> Send:
    """`more` is looked at when the answer begins."""

    async def marked(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], *more]}
        await send(message)

    return marked


class _Endpoint:
    """A generation endpoint as raw ASGI: it stops the engine when the client leaves."""

    def __init__(self, gateway: Gateway, name: str, model: type[AnyRequest | ResponsesRequest]) -> None:
        self._gateway = gateway
        self._name = name
        self._model = model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = _response_failure if self._model is ResponsesRequest else _failure
        status = await answered(send, partial(self._answer, scope, receive), failure)
        self._gateway.metrics.request(self._name, status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        caller = _caller(self._gateway.config, headers)
        require_json(scope, "unsupported_media_type")
        body = await read_body(scope, receive, self._gateway.config.max_body_bytes)
        asked = parse(self._model, body, drop_unknown=self._gateway.config.unknown == "drop")
        request = asked.chat() if isinstance(asked, ResponsesRequest) else asked
        if dropped := asked.dropped:
            send = _with_headers(send, [(b"x-transom-dropped", _listed(dropped))])
        veil = self._gateway.veil
        if veil is not None and caller.session is None:
            caller = replace(caller, repeat=veil.repeatable(caller.account, self._name, body))
        async with until_gone(receive):
            exchange = await prepare(self._gateway, request, caller)
            await (exchange.stream if request.stream else exchange.complete)(send)


def _pages(gateway: Gateway) -> list[Route]:
    schema = openapi()

    def identified(request: Request) -> None:
        gateway.config.account(request.headers.get("authorization", ""))

    async def card(request: Request) -> Json:
        identified(request)
        told = await gateway.engine.probe()
        own = {
            "id": gateway.config.model or told.model,
            "object": "model",
            "created": 0,
            "owned_by": "transom",
        }
        return own | ({"sampling": told.sampling} if told.sampling else {})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [await card(request)]})

    async def model(request: Request) -> Response:
        name, own = request.path_params["name"], await card(request)
        if name not in (own["id"], *names_beside(gateway.config)):
            raise RefusedError(
                "no such model here; see /v1/models", param="model", status=404, code="model_not_found"
            )
        return JSONResponse(own | {"id": name})

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "mode": gateway.config.mode})  # and nothing of the engine

    async def metrics(request: Request) -> Response:
        identified(request)
        return PlainTextResponse(gateway.metrics.render(), media_type="text/plain; version=0.0.4")

    async def published(_request: Request) -> Response:
        return JSONResponse(schema)

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        Route("/openapi.json", published),
    ]


def _listed(names: Sequence[str]) -> bytes:
    """For a header; a name that does not belong into one is `?`."""
    known = (name if _FIELD.fullmatch(name) else "?" for name in names[:_MOST_NAMED])
    return ", ".join(known).encode()


def _caller(config: GatewayConfig, headers: Mapping[bytes, str]) -> Caller:
    account = config.account(headers.get(b"authorization", ""))
    session = headers.get(b"x-transom-session") or None
    if session is not None and len(session) > _SESSION_CHARS:
        message = f"a session name has at most {_SESSION_CHARS} characters, got {len(session)}"
        raise invalid("X-Transom-Session", message)
    if session is not None:
        session = f"{len(account)}:{account}:{session}"  # one account cannot name another's session
    return Caller(account, session, headers.get(b"x-transom-show-host") == "1")


def known(error: Exception) -> TransomError:
    """`error` itself if it is ours; else a bare internal error, logged by type and place alone."""
    if isinstance(error, TransomError):
        return error
    where = "?"
    for frame, line in walk_tb(error.__traceback__):
        where = f"{frame.f_code.co_name}:{line}"
    _log.error("internal error %s in %s", type(error).__name__, where)
    return TransomError("the gateway failed on this request; its log names the place")


def _failure(error: Exception) -> Failure:
    ours = known(error)
    value, status = envelope(ours)
    return value, status, _advice(ours, status)


def _response_failure(error: Exception) -> Failure:
    """The same, also as an event of `/v1/responses`."""
    value, status, headers = _failure(error)
    told = {name: value["error"][name] for name in ("code", "message", "param")}
    return {"type": "error", **value, **told}, status, headers


def _advice(error: TransomError, status: int) -> dict[str, str]:
    """Headers that the official clients obey: whether, and after how long, a retry may succeed."""
    code = error.error_code if isinstance(error, RefusedError) else error.code
    if status == 501 or code in _HOPELESS:
        return {"x-should-retry": "false"}
    if isinstance(error, EngineBusyError) and error.retry_after_s is not None:
        return {"retry-after": str(error.retry_after_s)}
    return {}


async def _error(_request: Request, error: Exception) -> Response:
    value, status, headers = _failure(error)
    return JSONResponse(value, status_code=status, headers=headers)
