"""The guard that lets nothing reach an engine before the engine has proved what it runs.

    guard = EvidenceGuard("https://gpu.example:8443", load_evidence_policy("engine-policy.yaml"))
    engine = IdsEngine("https://gpu.example:8000", guard=guard)

A companion beside the engine (`transom attest serve`) answers a fresh nonce with evidence for the engine's
TLS key. The guard verifies it and from then on names that key as the pin of each new connection, for
`policy.max_age_s` seconds after the nonce was made; then it asks anew. Another key in newer evidence is
another pin, under which no older connection is used. An engine that changes its key in between is refused
until the evidence has grown old.
Threat model: the companion, the engine's host and the network may answer anything, late, or not at all. What
is fetched is nobody's secret and proves itself, so the certificate of the companion is not checked.
Does not protect: evidence says which code holds the key now; code that hands its key out is not detected. The
clock is this machine's: in an enclave whose host runs the clock, `max_age_s` is the host's to stretch.
Source: RFC 9334, section 10 (freshness by nonce); TLS key binding as in Knauth et al., arXiv 1801.05863.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any
from weakref import WeakKeyDictionary

from transom.config import load_json
from transom.enclave.evidence import NONCE_BYTES, Claims, Evidence, Trust, engine_fields, report_data
from transom.enclave.policy import EvidencePolicy
from transom.enclave.verify import verify
from transom.errors import EvidenceError
from transom.net.ask import JsonClient
from transom.net.http import LongAnswerError
from transom.net.pin import KeyPin
from transom.net.urls import split_url

_log = logging.getLogger("transom.engine")
_PATH = "/v1/evidence"
_ANSWER_BYTES = 2 << 20
_SPKI_BYTES = 32


def seconds_since_boot() -> float:
    """A clock that goes on while the machine sleeps, where there is one: evidence grows old then too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class EvidenceGuard:
    """A `Guard` over the evidence served at `url`. `claims` are those of the evidence it relies on now.

    `keys` are the only keys (SHA-256 of the SubjectPublicKeyInfo) that evidence may be for; None: any.
    Evidence of kind insecure-dev needs `allow_insecure_dev` as well as a rule in the policy. `clock` gives
    seconds that never run backwards.
    """

    def __init__(
        self,
        url: str,
        policy: EvidencePolicy,
        *,
        keys: Collection[bytes] | None = None,
        allow_insecure_dev: bool = False,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = seconds_since_boot,
    ) -> None:
        split_url(url, "the URL that evidence is fetched from")
        self._url = url.rstrip("/")
        self._policy = policy
        self._allow_insecure_dev = allow_insecure_dev
        self._keys = keys
        self._timeout_s = timeout_s
        self._clock = clock
        self._pin: KeyPin | None = None
        self._expires_s = float("-inf")
        # One renewal at a time; a lock belongs to one event loop, the guard does not.
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.claims: Claims | None = None

    async def ready(self) -> KeyPin:
        """The attested key, asked for again when its evidence is older than the policy allows.

        Raises EvidenceError when there is no evidence or it does not convince.
        """
        async with self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self._pin is None or self._clock() >= self._expires_s:
                await self._renew()
            assert self._pin is not None  # noqa: S101  just made
            return self._pin

    async def _renew(self) -> None:
        old, self._pin, self.claims = self._pin, None, None
        nonce = secrets.token_bytes(NONCE_BYTES)
        asked_s = self._clock()
        evidence, spki_sha256 = _parse(await self._fetch(nonce))
        if evidence.kind == "insecure-dev" and not self._allow_insecure_dev:
            raise EvidenceError(
                "the engine's evidence is of kind insecure-dev, which proves nothing; it was not allowed"
            )
        if self._keys is not None and spki_sha256 not in self._keys:
            raise EvidenceError("the engine's evidence is for a TLS key that the bundle's owner did not sign")
        expected = report_data(evidence.kind, *engine_fields(nonce, spki_sha256))
        claims = await asyncio.to_thread(verify, evidence, self._policy, expected)
        same_key = old is not None and old.fingerprint == spki_sha256
        self._pin = old if same_key else KeyPin(spki_sha256)
        self.claims = claims
        self._expires_s = asked_s + self._policy.max_age_s
        level = logging.WARNING if claims.trust == "none" else logging.INFO
        _log.log(level, "engine evidence accepted, trust=%s measurement=%s", claims.trust, claims.measurement)

    @property
    def trust(self) -> Trust:
        """What the evidence relied on now can prove; `none` before there is any."""
        return "none" if self.claims is None else self.claims.trust

    async def _fetch(self, nonce: bytes) -> bytes:
        client = JsonClient(
            self._url, timeout_s=self._timeout_s, limit_bytes=_ANSWER_BYTES, any_certificate=True
        )
        where = f"from {self._url}{_PATH}"
        try:
            status, body = await client.post(_PATH, {"nonce": base64.b64encode(nonce).decode()})
        except TimeoutError:
            raise EvidenceError(
                f"no evidence {where} within {self._timeout_s:g} s; nothing was sent to the engine"
            ) from None
        except LongAnswerError:
            raise EvidenceError(
                f"evidence is at most {_ANSWER_BYTES} bytes long; the rest was not read"
            ) from None
        except (OSError, ValueError) as error:
            raise EvidenceError(
                f"no evidence {where} ({type(error).__name__}); is transom attest serve running there? "
                "Nothing was sent to the engine"
            ) from None
        finally:
            await client.aclose()
        if status != 200:
            raise EvidenceError(
                f"no evidence {where}: it answered HTTP {status}; nothing was sent to the engine"
            )
        return body


def _parse(data: bytes) -> tuple[Evidence, bytes]:
    try:
        value: Any = load_json(data)
        evidence, spki_sha256 = value["evidence"], base64.b64decode(value["spki_sha256"], validate=True)
    except (ValueError, TypeError, KeyError):
        raise EvidenceError(
            f"the answer ({len(data)} bytes) is not evidence and the hash of a key; nothing was sent to the "
            "engine"
        ) from None
    if len(spki_sha256) != _SPKI_BYTES:
        raise EvidenceError(f"the hash of a key has {_SPKI_BYTES} bytes, got {len(spki_sha256)}")
    return Evidence.from_json(evidence), spki_sha256
