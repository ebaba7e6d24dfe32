"""The messages of a key release: what is sealed, to what it is bound, what the owner signs, how it is read.

A data key is sealed by HPKE (base mode, X25519, HKDF-SHA256, AES-256-GCM) to the one-time key that the
evidence binds. Its `info` holds the nonce, the measurement and the manifest, so a sealed key opens for that
one question only. Base mode does not say who sealed, so the owner signs the answer with the manifest's key.
Threat model: an active network, and a host that answers in the broker's place. Does not protect: a one-time
key that leaves its enclave. Source: RFC 9180, sections 5.1.1 (base mode) and 9.1 (what it does not give).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.config import load_json
from transom.enclave.evidence import NONCE_BYTES, digest
from transom.errors import EvidenceError
from transom.net.pin import x509

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.hpke import Suite

CHALLENGE_PATH, RELEASE_PATH = "/v1/challenge", "/v1/release"
HPKE_PUBLIC_BYTES = DATA_KEY_BYTES = 32
SEALED_BYTES = 32 + DATA_KEY_BYTES + 16  # the sender's one-time key, the data key, the AEAD's tag
Fields = Mapping[str, type | int]  # a number is base64 of so many bytes
CHALLENGE: Fields = {"bundle": str}
RELEASE: Fields = {
    "bundle": str,
    "nonce": NONCE_BYTES,
    "hpke_public": HPKE_PUBLIC_BYTES,
    "policy_sha256": str,
    "evidence": dict,
}


class MessageError(Exception):
    """A message is not the JSON object it should be; the text names the fault and none of the content."""


@dataclass(frozen=True)
class Binding:
    """What one release is bound to: nonce, one-time key, measurement (hex) and manifest (hex), 32 bytes each.

    Raises EvidenceError when one of them is not.
    """

    nonce: bytes
    hpke_public: bytes
    measurement: str
    manifest_sha256: str

    def __post_init__(self) -> None:
        for name, value, size_bytes in (
            ("nonce", self.nonce, NONCE_BYTES),
            ("HPKE public key", self.hpke_public, HPKE_PUBLIC_BYTES),
            ("measurement", _unhex(self.measurement), 32),
            ("manifest hash", _unhex(self.manifest_sha256), 32),
        ):
            if len(value) != size_bytes:
                raise EvidenceError(f"a {name} has {size_bytes} bytes, got {len(value)}")

    @property
    def info(self) -> bytes:
        """HPKE's `info`: a key sealed for another question, attester or manifest does not open."""
        return self._digest("transom/release/v1")

    def signed(self, sealed: bytes) -> bytes:
        """The bytes the owner signs."""
        return self._digest("transom/release-signature/v1", self.hpke_public, sealed)

    def _digest(self, domain: str, *fields: bytes) -> bytes:
        named = bytes.fromhex(self.measurement), bytes.fromhex(self.manifest_sha256)
        return digest(domain, self.nonce, *fields, *named)


def new_key() -> tuple[X25519PrivateKey, bytes]:
    """A one-time HPKE key and its 32 public bytes. Raises MissingExtraError."""
    x509()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.generate()
    return private, private.public_key().public_bytes_raw()


def seal(data_key: bytes, binding: Binding) -> bytes:
    """The data key, sealed to the binding's one-time key. Raises EvidenceError for a key of low order."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        return _suite().encrypt(
            data_key, X25519PublicKey.from_public_bytes(binding.hpke_public), binding.info
        )
    except ValueError:
        raise EvidenceError("the HPKE public key is not usable; make a new one") from None


def open_sealed(
    sealed: bytes, signature: bytes, private: X25519PrivateKey, binding: Binding, owner_key: Ed25519PublicKey
) -> bytes:
    """The data key, 32 bytes, after the owner's signature has been verified.

    Raises EvidenceError if the signature is not the owner's for this binding, or the seal not for this key.
    """
    from cryptography.exceptions import InvalidSignature, InvalidTag

    try:
        owner_key.verify(signature, binding.signed(sealed))
    except InvalidSignature:
        raise EvidenceError(
            "the answer is not signed by the bundle's owner for this question; nothing was opened. "
            "Check the broker's address and the owner's public key"
        ) from None
    try:
        data_key = _suite().decrypt(sealed, private, binding.info)
    except (InvalidTag, ValueError):
        raise EvidenceError(
            "the released key does not open with this one-time key, measurement and manifest"
        ) from None
    if len(data_key) != DATA_KEY_BYTES:
        raise EvidenceError(f"a data key has {DATA_KEY_BYTES} bytes, got {len(data_key)}")
    return data_key


def read_message(body: bytes, fields: Fields) -> dict[str, Any]:
    """A JSON object with exactly these fields of exactly these types, base64 decoded. Raises MessageError."""
    try:
        value = load_json(body.decode("utf-8"))
    except ValueError:
        raise MessageError(f"{len(body)} bytes that are not a JSON object with unique names") from None
    if not isinstance(value, dict):
        raise MessageError(f"a JSON {type(value).__name__} instead of an object")
    missing = [name for name in fields if name not in value]
    unknown = len(value) - (len(fields) - len(missing))
    if missing or unknown:
        raise MessageError(
            f"the fields are {', '.join(fields)}; {unknown} unknown, missing: {', '.join(missing) or 'none'}"
        )
    for name, kind in fields.items():
        wanted = kind if isinstance(kind, type) else str
        if type(value[name]) is not wanted:
            raise MessageError(f"{name} must be a {wanted.__name__}, got {type(value[name]).__name__}")
        if not isinstance(kind, type):
            value[name] = unbase64(name, value[name], kind)
    return value


def unbase64(name: str, text: str, size_bytes: int) -> bytes:
    """The bytes of a base64 field. Raises MessageError unless there are `size_bytes`."""
    try:
        value = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise MessageError(f"{name} is not base64 ({len(text)} characters)") from None
    if len(value) != size_bytes:
        raise MessageError(f"{name} must have {size_bytes} bytes, got {len(value)}")
    return value


def base64_of(value: bytes) -> str:
    """Standard base64, as the messages carry it."""
    return base64.b64encode(value).decode()


def short(text: str, limit: int = 400) -> str:
    """Another side's words, fit for one line of a log or a terminal: printable ASCII of bounded length."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text[: limit + 1])
    return plain if len(plain) <= limit else plain[: limit - 3] + "..."


def _suite() -> Suite:
    x509()
    from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

    return Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def _unhex(text: str) -> bytes:
    """Lower-case hex only: `bytes.fromhex` also reads capitals and blanks, which spell the same bytes."""
    return bytes.fromhex(text) if re.fullmatch(r"(?:[0-9a-f]{2})*", text) else b""
