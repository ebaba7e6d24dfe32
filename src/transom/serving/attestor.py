"""The companion of an engine: evidence that ties this machine's measurement to the engine's TLS key.

POST /v1/evidence {"nonce": base64 of 32 bytes} -> {"evidence": ..., "spki_sha256": base64}
Threat model: anyone may ask, and asks too often: evidence is collected one at a time and few may wait. The
companion knows no secret; it must run inside what it attests, beside the engine, and be measured with it.
Does not protect: that the engine really uses the key is for the measured image to see to; whoever
verifies sees only that this machine vouches for it.
"""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Send

from transom.enclave.evidence import NONCE_BYTES, Evidence, engine_fields, report_data
from transom.errors import MisconfiguredError, RefusedError
from transom.net.pin import spki_sha256 as spki_sha256_of
from transom.net.pin import x509
from transom.serving.dialect import invalid
from transom.serving.engines.server import JsonEndpoint
from transom.serving.engines.wire import send_json

if TYPE_CHECKING:
    from transom.enclave.source import EvidenceSource

_BODY_BYTES = 1024
_MAX_WAITING = 16


def create_attestor(source: EvidenceSource, spki_sha256: bytes) -> Starlette:
    """The server; `spki_sha256` is SHA-256 over the SubjectPublicKeyInfo of the engine's certificate."""
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transom-evidence")
    waiting = 0

    def left(_: object) -> None:
        nonlocal waiting
        waiting -= 1

    async def collect(nonce: bytes) -> Evidence:
        nonlocal waiting
        if waiting >= _MAX_WAITING:
            raise RefusedError("too many ask for evidence; try again later", status=429, code="busy")
        wanted = report_data(source.kind, *engine_fields(nonce, spki_sha256))
        waiting += 1
        collecting = asyncio.get_running_loop().run_in_executor(worker, source.collect, wanted)
        collecting.add_done_callback(left)
        return await collecting

    async def answer(body: dict[str, Any], send: Send) -> None:
        evidence = await collect(_nonce(body))
        spki = base64.b64encode(spki_sha256).decode()
        await send_json(send, {"evidence": evidence.to_json(), "spki_sha256": spki})

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "kind": source.kind})

    endpoint = JsonEndpoint(answer, _BODY_BYTES)
    return Starlette(routes=[Route("/v1/evidence", endpoint, methods=["POST"]), Route("/healthz", healthz)])


def spki_of(certificate: Path) -> bytes:
    """SHA-256 over the SubjectPublicKeyInfo of the first certificate in a PEM file.

    Raises MisconfiguredError, and MissingExtraError without `cryptography`.
    """
    names = x509()
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        first = names.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise MisconfiguredError(
            f"cannot read the certificate {certificate} ({type(error).__name__})"
        ) from None
    return spki_sha256_of(first.public_bytes(Encoding.DER))


def _nonce(body: dict[str, Any]) -> bytes:
    try:
        nonce = base64.b64decode(body["nonce"], validate=True) if set(body) == {"nonce"} else b""
    except (TypeError, ValueError):
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise invalid("nonce", f"send one field, nonce, base64 of {NONCE_BYTES} random bytes")
    return nonce
