"""Certificates that `make_certificate` would not make: wrong times, other keys, signed by others."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)


def write_certificate(
    folder: Path,
    *,
    key: Any = None,
    signer: Any = None,
    days: tuple[int, int] = (-1, 1),
    encryption: KeySerializationEncryption | None = None,
) -> None:
    """`tls.pem` and `tls.key`, valid from and to so many days from now; self-signed without a `signer`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer" if signer else "party")])
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "party")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .sign(signer or key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    (folder / "tls.key").touch(mode=0o600)
    (folder / "tls.key").write_bytes(private)
    (folder / "tls.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
