"""Evidence, what it claims, and the bytes that tie it to one key and one question.

Evidence is a value: its kind and named binary parts, as a platform produced them. A verifier turns it into
`Claims`; a policy decides on the claims. Report data binds evidence to a nonce and a key: it is a hash over
length-prefixed fields under a domain, SHA-512 where the platform has 64 bytes for it, SHA-256 for a TPM.
Threat model: evidence comes from the network and may be anything; its size, kind and part names are checked
before a parser sees it. Does not protect: nothing here is verified yet; see `verify`.
Source: RFC 9334 (roles and terms).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from transom.errors import EvidenceError

Kind = Literal["sgx", "tdx", "snp", "tpm2", "insecure-dev"]
Trust = Literal["hardware", "boot-state", "none"]

NONCE_BYTES = 32
_MAX_PART_BYTES = 256 * 1024
PARTS: Mapping[Kind, tuple[frozenset[str], frozenset[str]]] = {  # kind: (required parts, optional parts)
    "sgx": (frozenset({"quote"}), frozenset({"collateral"})),
    "tdx": (frozenset({"quote"}), frozenset({"collateral"})),
    "snp": (frozenset({"report", "vcek", "ask", "ark"}), frozenset()),
    "tpm2": (frozenset({"quote", "signature", "attestation_key", "pcrs"}), frozenset()),
    "insecure-dev": (frozenset({"report_data"}), frozenset()),
}
TRUST: Mapping[Kind, Trust] = {
    "sgx": "hardware",
    "tdx": "hardware",
    "snp": "hardware",
    "tpm2": "boot-state",
    "insecure-dev": "none",
}


@dataclass(frozen=True)
class Evidence:
    """What an attester hands over: `parts` by name, as listed in PARTS for its kind.

    Raises EvidenceError for an unknown kind, and for a missing, unknown or oversized part.
    """

    kind: Kind
    parts: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.kind not in PARTS:
            raise EvidenceError(f"evidence of kind {self.kind[:40]!r} is not one of {', '.join(PARTS)}")
        required, optional = PARTS[self.kind]
        names = set(self.parts)
        if not required <= names or not names <= required | optional:
            raise EvidenceError(
                f"{self.kind} evidence has the parts {', '.join(sorted(required))}; got {len(names)} parts"
                + (f", without {', '.join(sorted(required - names))}" if required - names else "")
            )
        for name, part in self.parts.items():
            if not part or len(part) > _MAX_PART_BYTES:
                raise EvidenceError(
                    f"the part {name} of {self.kind} evidence has {len(part)} bytes; "
                    f"1 to {_MAX_PART_BYTES} are expected"
                )

    def to_json(self) -> dict[str, Any]:
        """A JSON object: the kind, and the parts in base64."""
        parts = {name: base64.b64encode(part).decode() for name, part in sorted(self.parts.items())}
        return {"kind": self.kind, "parts": parts}

    @classmethod
    def from_json(cls, value: object) -> Evidence:
        """The reverse of `to_json`. Raises EvidenceError."""
        if (
            not isinstance(value, dict)
            or set(value) != {"kind", "parts"}
            or not isinstance(value["parts"], dict)
        ):
            raise EvidenceError(
                "evidence must be an object with 'kind' and 'parts'; the other side sent none"
            )
        if not isinstance(value["kind"], str):
            raise EvidenceError(f"the kind of evidence must be a string, got {type(value['kind']).__name__}")
        try:
            parts = {str(k): base64.b64decode(v, validate=True) for k, v in value["parts"].items()}
        except (TypeError, ValueError, binascii.Error):
            raise EvidenceError("a part of the evidence is not base64") from None
        return cls(cast(Kind, value["kind"]), parts)


@dataclass(frozen=True)
class Claims:
    """What verified evidence says. `registers` are the platform's measurements by name, lower-case hex.

    `svn` is the security version of the measured code where the platform has one, `tcb` the versions of the
    platform's parts, one a byte, where it tells them (SNP: reported_tcb, TDX: tee_tcb_svn), `tcb_status` the
    vendor's word on the platform ("UpToDate" where it has none), `trust` what the kind can prove at all.
    """

    kind: Kind
    registers: Mapping[str, str]
    report_data: bytes = field(repr=False)
    svn: int = 0
    tcb: bytes = b""
    debug: bool = False
    tcb_status: str = "UpToDate"
    advisories: tuple[str, ...] = ()

    @property
    def trust(self) -> Trust:
        """What this kind of evidence can prove: isolation by hardware, boot state, or nothing."""
        return TRUST[self.kind]

    @property
    def measurement(self) -> str:
        """One SHA-256 in hex over kind and registers, to name this attester by."""
        named = [f"{name}={value}".encode() for name, value in sorted(self.registers.items())]
        return digest("transom/measurement/v1", self.kind.encode(), *named).hex()


def report_data(kind: Kind, domain: str, *fields: bytes) -> bytes:
    """The bytes evidence must carry: 64, or 32 for a TPM, over a domain and length-prefixed fields."""
    return digest(domain, *fields, algorithm="sha256" if kind == "tpm2" else "sha512")


def enclave_fields(nonce: bytes, hpke_public: bytes, policy_sha256: str) -> tuple[str, bytes, bytes, bytes]:
    """Domain and fields with which an enclave asks for a key: its one-time HPKE key and its word policy."""
    return "transom/enclave/v1", nonce, hpke_public, bytes.fromhex(policy_sha256)


def engine_fields(nonce: bytes, spki_sha256: bytes) -> tuple[str, bytes, bytes]:
    """Domain and fields with which an engine proves its TLS key: SHA-256 of the SubjectPublicKeyInfo."""
    return "transom/engine/v1", nonce, spki_sha256


def digest(domain: str, *fields: bytes, algorithm: Literal["sha256", "sha512"] = "sha256") -> bytes:
    """A hash over a domain and fields, each behind its length, so that no two lists collide."""
    state = hashlib.new(algorithm)
    for part in (domain.encode(), *fields):
        state.update(len(part).to_bytes(8, "big") + part)
    return state.digest()
