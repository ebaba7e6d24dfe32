"""The attester's side of a key release: from a fresh one-time key to the data key in memory.

Nothing is sent for evidence that the bundle cannot open for. The connection is HTTPS, to a pinned key if one
is given; but what is believed is the owner's signature over nonce, one-time key and measurement, checked
before anything is opened. Keys live in memory only.
Threat model: an active network, and a host that answers in the broker's place, slowly, or with anything.
Does not protect: availability; whoever carries the messages can drop them. Source: RFC 9334, section 5.2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transom.enclave import release
from transom.enclave.evidence import NONCE_BYTES, TRUST, Trust, enclave_fields, report_data
from transom.enclave.release import Binding, MessageError
from transom.errors import BrokerError, EvidenceError
from transom.net.ask import JsonClient
from transom.net.http import LongAnswerError
from transom.net.urls import split_url

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from transom.enclave.manifest import Manifest
    from transom.enclave.source import EvidenceSource
    from transom.net.pin import KeyPin

_MAX_ANSWER_BYTES = 16 * 1024
_CHALLENGED: release.Fields = {"nonce": NONCE_BYTES, "expires_s": float}
_RELEASED: release.Fields = {"sealed": release.SEALED_BYTES, "measurement": str, "signature": 64}


@dataclass(frozen=True)
class Released:
    """A data key of 32 bytes, the measurement (hex) it was released to, and what the evidence could prove."""

    data_key: bytes = field(repr=False)
    measurement: str
    trust: Trust


async def obtain_key(
    url: str,
    manifest: Manifest,
    owner_key: Ed25519PublicKey,
    source: EvidenceSource,
    policy_sha256: str,
    *,
    ssl: KeyPin | None = None,
    timeout_s: float = 10.0,
    allow_insecure_dev: bool = False,
) -> Released:
    """Ask the broker at `url` for the bundle's data key. `ssl=None` trusts the system's authorities.

    Raises EvidenceError if the bundle cannot open here, if the broker refuses, or if its answer is not the
    owner's; BrokerError if it is down, slow, another server or unintelligible; MisconfiguredError for a bad
    URL. `timeout_s` bounds each of the two requests.
    """
    split_url(url, "the URL of a key broker, asked over https,", ("https",))
    _allowed(manifest, source, policy_sha256, allow_insecure_dev)
    private, hpke_public = release.new_key()
    client = JsonClient(url.rstrip("/"), pin=ssl, timeout_s=timeout_s, limit_bytes=_MAX_ANSWER_BYTES)
    async with aclosing(client):
        named = {"bundle": manifest.bundle}
        nonce = (await _post(client, release.CHALLENGE_PATH, named, _CHALLENGED, timeout_s))["nonce"]
        bound = report_data(source.kind, *enclave_fields(nonce, hpke_public, policy_sha256))
        evidence = await asyncio.to_thread(source.collect, bound)
        ask = {
            **named,
            "nonce": release.base64_of(nonce),
            "hpke_public": release.base64_of(hpke_public),
            "policy_sha256": policy_sha256,
            "evidence": evidence.to_json(),
        }
        answer = await _post(client, release.RELEASE_PATH, ask, _RELEASED, timeout_s)
    binding = Binding(nonce, hpke_public, answer["measurement"], manifest.sha256)
    data_key = release.open_sealed(answer["sealed"], answer["signature"], private, binding, owner_key)
    return Released(data_key, binding.measurement, TRUST[evidence.kind])


def _allowed(
    manifest: Manifest, source: EvidenceSource, policy_sha256: str, allow_insecure_dev: bool
) -> None:
    """Raises EvidenceError when the broker could only say no."""
    if source.kind == "insecure-dev" and not allow_insecure_dev:
        raise EvidenceError("insecure-dev evidence proves nothing; it must be allowed in so many words")
    if manifest.production and TRUST[source.kind] != "hardware":
        raise EvidenceError(
            f"a production bundle opens for hardware evidence only; {source.kind} has "
            f"trust={TRUST[source.kind]}"
        )
    if policy_sha256 != manifest.policy_sha256:
        raise EvidenceError(
            f"the bundle was packed for the word policy {manifest.policy_sha256}; got {policy_sha256}"
        )


async def _post(
    client: JsonClient, path: str, ask: Mapping[str, Any], fields: release.Fields, timeout_s: float
) -> dict[str, Any]:
    """The fields of an answer. Raises EvidenceError for a refusal, BrokerError for all else."""
    try:
        status, body = await client.post(path, ask)
    except EvidenceError:
        raise BrokerError(
            "the broker's TLS key is not the pinned one; nothing was sent. Ask the owner for the new pin, "
            "or suspect the network"
        ) from None
    except TimeoutError:
        raise BrokerError(f"the key broker did not answer within {timeout_s:g} s") from None
    except LongAnswerError:
        raise BrokerError(f"the key broker's answer is longer than {_MAX_ANSWER_BYTES} bytes") from None
    except (OSError, ValueError) as error:
        raise BrokerError(
            f"the key broker cannot be reached ({type(error).__name__}); check its address"
        ) from None
    if 300 <= status < 400:
        raise BrokerError(f"the key broker answered a redirect ({status}), which is not followed")
    try:
        if status == 200:
            return release.read_message(body, fields)
        reason = release.short(release.read_message(body, {"error": str})["error"])
    except MessageError as error:
        raise BrokerError(
            f"the key broker's answer (status {status}) is outside its protocol: {error}"
        ) from None
    if 400 <= status < 500:
        raise EvidenceError(f"the key broker refused: {reason}")
    raise BrokerError(f"the key broker failed (status {status}): {reason}")
