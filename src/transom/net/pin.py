"""TLS to one public key: a connection whose certificate holds another key is closed before a byte is sent.

Pins are written as curl writes them, `sha256//` and the base64 of SHA-256 over the SubjectPublicKeyInfo, so
`curl --pinnedpubkey` and Transom agree. The pin replaces names and certificate authorities: whoever holds the
private key is the server, whatever else the certificate says.
Threat model: an active network; a certificate authority that signs anything; a server that was replaced.
Does not protect: a private key that was copied. Source: RFC 7469, section 2.4 (what a pin is).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transom.errors import EvidenceError, MisconfiguredError, extra
from transom.files import write_new

if TYPE_CHECKING:
    from types import ModuleType

_PREFIX = "sha256//"
_BYTES = 32
_YEARS = 10


@dataclass(frozen=True)
class KeyPin:
    """A pin: the 32 bytes of SHA-256 over the server's SubjectPublicKeyInfo."""

    fingerprint: bytes

    def __post_init__(self) -> None:
        if len(self.fingerprint) != _BYTES:
            raise MisconfiguredError(f"a key pin has {_BYTES} bytes, got {len(self.fingerprint)}")

    def require(self, certificate: bytes | None) -> None:
        """Raises EvidenceError unless the certificate (DER) that a server showed holds the pinned key."""
        if not hmac.compare_digest(spki_sha256(certificate) if certificate else b"", self.fingerprint):
            raise EvidenceError("the TLS key is not the pinned or attested one; nothing was sent")


def parse_pin(text: str) -> KeyPin:
    """`sha256//BASE64` as a pin. Raises MisconfiguredError."""
    try:
        value = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        value = b""
    if not text.startswith(_PREFIX) or len(value) != _BYTES:
        raise MisconfiguredError(
            f"a key pin looks like {_PREFIX}BASE64 of {_BYTES} bytes, got {len(text)} characters"
        )
    return KeyPin(value)


def format_pin(value: bytes) -> str:
    """The text form of 32 bytes of SHA-256 over a SubjectPublicKeyInfo."""
    return _PREFIX + base64.b64encode(value).decode()


def spki_sha256(certificate: bytes) -> bytes:
    """SHA-256 over the SubjectPublicKeyInfo of a DER certificate; empty if it cannot be read."""
    certificates = x509()
    from cryptography.hazmat.primitives import serialization

    try:
        key = certificates.load_der_x509_certificate(certificate).public_key()
    except ValueError:
        return b""
    info = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).digest()


def make_certificate(folder: str | Path, name: str = "localhost") -> KeyPin:
    """Write `tls.key` (mode 0600) and a self-signed `tls.pem` for `name`, and return the pin to hand out.

    Raises MisconfiguredError if either file exists already.
    """
    names = x509()
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = names.Name([names.NameAttribute(names.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        names.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(names.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(names.SubjectAlternativeName([names.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_new(folder / "tls.key", private, mode=0o600)
    write_new(folder / "tls.pem", certificate.public_bytes(serialization.Encoding.PEM))
    return KeyPin(spki_sha256(certificate.public_bytes(serialization.Encoding.DER)))


def x509() -> ModuleType:
    """`cryptography.x509`. Raises MissingExtraError."""
    with extra("enclave", "cryptography"):
        from cryptography import x509 as module
    return module
