"""The owner's key broker: it asks for evidence under a fresh nonce, judges it, and releases one data key.

    POST /v1/challenge {"bundle": hex}  ->  {"nonce": base64 of 32 bytes, "expires_s": seconds}
    POST /v1/release {"bundle", "nonce", "hpke_public", "policy_sha256", "evidence"}
        ->  {"sealed": base64, "measurement": hex, "signature": base64}
    a refusal  ->  {"error": reason}, status 4xx; 503 when the broker itself cannot

A nonce serves one attempt for one bundle within its time; the oldest make room when there are too many. Every
attempt is an entry of the release log before its answer leaves: no entry, no key.
Threat model: anyone on the network may ask anything, at any rate; bodies are bounded, and evidence is judged
in threads, so that slow collateral does not stop the rest. Does not protect: an owner who allows a
measurement of code that gives keys away; a flood, which fills the log's disk and then stops all releases.
Source: RFC 9334, sections 5.1 (passport and background check; this is the latter) and 10.2 (nonces).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from transom.enclave import release
from transom.enclave.evidence import NONCE_BYTES, PARTS, Claims, Evidence, enclave_fields, report_data
from transom.enclave.log import Attempt, ReleaseLog
from transom.enclave.manifest import Manifest
from transom.enclave.owner import Owner
from transom.enclave.policy import EvidencePolicy, accept
from transom.enclave.release import Binding, MessageError
from transom.enclave.verify import verify
from transom.errors import EvidenceError, MisconfiguredError, TransomError

TRUST_HEADER = "x-transom-trust"
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_NONCES = 4096
MAX_JUDGED = 4  # at a time: fewer than there are threads, so that slow evidence does not keep the log waiting
BODY_TIMEOUT_S = 10.0
_log = logging.getLogger("transom.enclave.broker")


@dataclass(frozen=True)
class Question:
    """One request for a key, well formed and for a bundle the broker holds; nothing else is checked yet."""

    bundle: str
    nonce: bytes
    hpke_public: bytes
    policy_sha256: str
    evidence: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Broker:
    """What decides about a release. See `create_broker`."""

    owner: Owner
    bundles: Mapping[str, Manifest]
    policy: EvidencePolicy
    log: ReleaseLog
    allow_insecure_dev: bool

    def claims(self, question: Question) -> Claims:
        """What the evidence says, verified and accepted by the evidence policy. Raises EvidenceError."""
        if question.policy_sha256 != self.bundles[question.bundle].policy_sha256:
            raise EvidenceError("the word policy is not the one the bundle was packed for")
        evidence = Evidence.from_json(question.evidence)
        if evidence.kind == "insecure-dev" and not self.allow_insecure_dev:
            raise EvidenceError("insecure-dev evidence proves nothing; this broker was not told to accept it")
        fields = enclave_fields(question.nonce, question.hpke_public, question.policy_sha256)
        return verify(evidence, self.policy, report_data(evidence.kind, *fields))

    def answer(self, question: Question, claims: Claims) -> dict[str, str]:
        """The release, if the manifest too accepts the claims. Raises EvidenceError, BundleError."""
        manifest = self.bundles[question.bundle]
        if manifest.production and claims.trust != "hardware":
            raise EvidenceError(
                f"a production bundle opens for hardware evidence only; {claims.kind} is trust={claims.trust}"
            )
        accept(manifest.rules, claims)
        binding = Binding(question.nonce, question.hpke_public, claims.measurement, manifest.sha256)
        sealed = release.seal(self.owner.data_key(manifest.bundle), binding)
        return {
            "sealed": release.base64_of(sealed),
            "measurement": claims.measurement,
            "signature": release.base64_of(self.owner.sign(binding.signed(sealed))),
        }

    def note(self, attempt: Attempt) -> None:
        """One entry in the log, then one log line. Raises MisconfiguredError."""
        self.log.append(attempt)
        _log.log(
            logging.INFO if attempt.decision == "released" else logging.WARNING,
            "key %(decision)s bundle=%(bundle)s kind=%(kind)s trust=%(trust)s measurement=%(measurement)s "
            "reason=%(reason)s",
            vars(replace(attempt, measurement=attempt.measurement or "-")),
        )


class Nonces:
    """Nonces that were handed out and not yet used; each is good for one bundle, once, for `ttl_s`."""

    def __init__(self, ttl_s: float, clock: Callable[[], float]) -> None:
        self.ttl_s, self._clock = ttl_s, clock
        self._open: dict[bytes, tuple[str, float]] = {}

    def give(self, bundle: str) -> bytes:
        """A fresh nonce; when there are MAX_NONCES, the oldest is forgotten."""
        while len(self._open) >= MAX_NONCES:
            del self._open[next(iter(self._open))]
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._open[nonce] = bundle, self._clock() + self.ttl_s
        return nonce

    def take(self, nonce: bytes, bundle: str) -> None:
        """Use a nonce up. Raises EvidenceError if it is unknown, used, expired or another bundle's."""
        bound, until = self._open.pop(nonce, ("", 0.0))
        if not bound:
            raise EvidenceError("the nonce is unknown, used already or forgotten; ask for a new one")
        if self._clock() >= until:
            raise EvidenceError(f"the nonce is older than {self.ttl_s:g} s; ask for a new one")
        if bound != bundle:
            raise EvidenceError("the nonce was given out for another bundle; ask for a new one")


def create_broker(
    owner: Owner,
    bundles: Mapping[str, Manifest],
    policy: EvidencePolicy,
    log: ReleaseLog,
    *,
    allow_insecure_dev: bool = False,
    nonce_ttl_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Starlette:
    """The broker as an ASGI app, to be served over TLS. `bundles` maps a manifest's `bundle` to it.

    Raises MisconfiguredError when a production bundle opens for SEV-SNP and no revocation list is at hand.
    """
    for manifest in bundles.values():
        if manifest.production and policy.crl is None and any(rule.kind == "snp" for rule in manifest.rules):
            raise MisconfiguredError(
                f"bundle {manifest.bundle} is for production on SEV-SNP: name AMD's revocation list (DER) as "
                "snp.crl in the evidence policy, so that revoked signing keys are refused"
            )
    broker = Broker(owner, dict(bundles), policy, log, allow_insecure_dev)
    nonces = Nonces(nonce_ttl_s, clock)
    judging = asyncio.Semaphore(MAX_JUDGED)

    async def challenge(request: Request) -> Response:
        ask = _read(await _body(request), release.CHALLENGE)
        _known(broker, ask["bundle"])
        nonce = release.base64_of(nonces.give(ask["bundle"]))
        return _json({"nonce": nonce, "expires_s": float(nonce_ttl_s)})

    async def released(request: Request) -> Response:
        seen = Attempt()
        try:
            question = Question(**_read(await _body(request), release.RELEASE))
            _known(broker, question.bundle)
            nonces.take(question.nonce, question.bundle)
            seen = replace(seen, bundle=question.bundle, kind=_kind(question))
            async with judging:
                claims = await asyncio.to_thread(broker.claims, question)
            seen = replace(seen, trust=claims.trust, measurement=claims.measurement)
            answer = await asyncio.to_thread(broker.answer, question, claims)
        except Exception as error:
            refused = replace(seen, decision="refused", reason=release.short(_reason(error)))
            await asyncio.to_thread(broker.note, refused)
            raise
        await asyncio.to_thread(broker.note, replace(seen, decision="released", reason="accepted"))
        return _json(answer, trust=seen.trust)

    return Starlette(
        routes=[
            Route(release.CHALLENGE_PATH, _guarded(challenge), methods=["POST"]),
            Route(release.RELEASE_PATH, _guarded(released), methods=["POST"]),
        ]
    )


def _kind(question: Question) -> str:
    kind = question.evidence.get("kind")
    if not isinstance(kind, str) or kind not in PARTS:
        raise EvidenceError(f"the kind of evidence is not one of {', '.join(PARTS)}")
    return kind


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except HTTPException as error:
            return _json({"error": error.detail}, status=error.status_code)
        except EvidenceError as error:
            return _json({"error": release.short(str(error))}, status=403)
        except Exception as error:  # not the asker's business: the reason may name the owner's files
            _log.error("trust=none no answer: %s", _reason(error))
            return _json({"error": f"the broker cannot release now ({type(error).__name__})"}, status=503)

    return guarded


def _reason(error: Exception) -> str:
    """For the log: the text of an error of ours, and only the type of any other, which may hold content."""
    if isinstance(error, HTTPException):
        return error.detail
    return str(error) if isinstance(error, TransomError) else type(error).__name__


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    declared = request.headers.get("content-length", "0")
    body = bytearray()
    try:
        if declared.isdigit() and len(declared) < 19 and int(declared) <= MAX_BODY_BYTES:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        break
                else:
                    return bytes(body)
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left before its request was complete") from None
    raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")


def _read(body: bytes, fields: release.Fields) -> dict[str, Any]:
    try:
        return release.read_message(body, fields)
    except MessageError as error:
        raise HTTPException(400, f"not a request: {error}") from None


def _known(broker: Broker, bundle: str) -> None:
    if bundle not in broker.bundles:
        raise HTTPException(404, "this broker holds no key for that bundle")


def _json(value: Mapping[str, Any], *, status: int = 200, trust: str = "none") -> Response:
    return JSONResponse(value, status, headers={TRUST_HEADER: trust, "cache-control": "no-store"})
