"""Engines over TLS that note every request, keys to serve them with, and a scripted companion."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from transom.enclave.evidence import Evidence, engine_fields, report_data
from transom.enclave.source import EvidenceSource, InsecureDevEvidence
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import KeyPin, make_certificate
from transom.serving.engines.base import Call
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine


@dataclass(frozen=True)
class Key:
    """A TLS key of a test: the files to serve with, and its pin."""

    tls: Tls
    pin: KeyPin


def make_key(folder: Path) -> Key:
    pin = make_certificate(folder)
    return Key(Tls(folder / "tls.pem", folder / "tls.key"), pin)


@dataclass
class Noted:
    """A served app: where it is, and (client port, path) of each HTTP request that reached it."""

    url: str
    requests: list[tuple[int, str]] = field(default_factory=list)

    @property
    def connections(self) -> set[int]:
        return {port for port, _ in self.requests}


@asynccontextmanager
async def background(serving: AbstractContextManager[str]) -> AsyncIterator[str]:
    """A server that is started and stopped while this loop runs on, so that TLS clients can say goodbye."""
    url = await asyncio.to_thread(serving.__enter__)
    try:
        yield url
    finally:
        await asyncio.to_thread(serving.__exit__, None, None, None)


@asynccontextmanager
async def engine(key: Key, port: int = 0, app: ASGIApp | None = None) -> AsyncIterator[Noted]:
    """An echo (or `app`) over TLS. What is in `requests` is all that came through the handshake."""
    served = Noted("")
    inner = app or EchoEngine(embedding_size=4).app()

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            served.requests.append((scope["client"][1], scope["path"]))
        await inner(scope, receive, send)

    async with background(serve_in_thread(noting, port=port, tls=key.tls)) as url:
        served.url = url
        yield served


def port_of(url: str) -> int:
    return urlsplit(url).port or 0


async def ask(client: IdsEngine) -> tuple[int, ...]:
    """Three tokens of echo, as one answer."""
    call = Call(prompts=((7, 8),), max_tokens=3)
    return tuple([i async for delta in client.generate(call) for i in delta.ids])


@dataclass
class Companion:
    """Stands beside an engine and answers nonces by `script`, which a test may change at any time."""

    script: Callable[[bytes], Any]
    nonces: list[bytes] = field(default_factory=list)

    def app(self) -> Starlette:
        async def evidence(request: Request) -> Response:
            nonce = base64.b64decode((await request.json())["nonce"])
            self.nonces.append(nonce)
            answer = self.script(nonce)
            answer = await answer if hasattr(answer, "__await__") else answer
            return answer if isinstance(answer, Response) else JSONResponse(answer)

        return Starlette(routes=[Route("/v1/evidence", evidence, methods=["POST"])])


def honest(pin: KeyPin, source: EvidenceSource | None = None) -> Callable[[bytes], dict[str, Any]]:
    """The script of a companion that speaks for the key of `pin`."""
    source = source or InsecureDevEvidence()

    def script(nonce: bytes) -> dict[str, Any]:
        fields = engine_fields(nonce, pin.fingerprint)
        return shaped(source.collect(report_data(source.kind, *fields)), pin.fingerprint)

    return script


def shaped(evidence: Evidence, spki_sha256: bytes) -> dict[str, Any]:
    """An answer as the protocol wants it."""
    return {"evidence": evidence.to_json(), "spki_sha256": base64.b64encode(spki_sha256).decode()}
