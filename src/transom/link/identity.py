"""Who the two parties of a link are: each has one key, and knows the other's from a certificate file.

The parties exchange `tls.pem` files once, by any way they trust, and compare pins by voice. Names and
authorities in the certificates count for nothing, and neither do their times: the key is the partner, so a
machine with a wrong clock still knows it.
Threat model: an active network that holds any number of other keys.
Does not protect: a private key that was copied, or a certificate file that was swapped before the pins were
compared.
Source: RFC 8446 (TLS 1.3: who sends a certificate signs the handshake with its key); RFC 7469 (pins).
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.errors import MisconfiguredError, extra, system_errors
from transom.net.pin import KeyPin, spki_sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, of which `ssl` has no name
_MAKE = "make both with transom link keys"
_log = logging.getLogger("transom.link")


@dataclass(frozen=True)
class Identity:
    """This party: a folder with `tls.pem` and `tls.key`, as `net.pin.make_certificate` writes them.

    Raises MisconfiguredError unless both can be read, fit each other and hold a key of P-256.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.key().public_key() != _public_key(self.certificate, self.certificate_path):
            raise MisconfiguredError(
                f"{self.key_path} is not the key of {self.certificate_path}; {_MAKE} in one go"
            )
        mode = self.key_path.stat().st_mode & 0o777
        if mode & 0o077:
            _log.warning(
                "others may read %s (mode %04o); run: chmod 600 %s", self.key_path, mode, self.key_path
            )

    @property
    def certificate_path(self) -> Path:
        return self.folder / "tls.pem"

    @property
    def key_path(self) -> Path:
        return self.folder / "tls.key"

    @cached_property
    def certificate(self) -> bytes:
        """The certificate, DER."""
        return _read_certificate(self.certificate_path)

    @cached_property
    def pin(self) -> KeyPin:
        """What the partner compares."""
        return KeyPin(spki_sha256(self.certificate))

    def key(self) -> EllipticCurvePrivateKey:
        """The private key, for `seal`."""
        with extra("link", "cryptography"):
            from cryptography.hazmat.primitives.serialization import load_pem_private_key
        with system_errors(f"cannot read the private key {self.key_path}", _MAKE):
            content = self.key_path.read_bytes()
        try:
            key: Any = load_pem_private_key(content, password=None)
        except (ValueError, TypeError):  # the latter: a password is needed
            raise MisconfiguredError(f"{self.key_path} is no private key in PEM; {_MAKE}") from None
        return key  # type: ignore[no-any-return]  # its curve: compared with the certificate's


@dataclass(frozen=True)
class Partner:
    """The other party: what it is called here, and its certificate (PEM), whose key is the partner.

    Raises MisconfiguredError unless the file holds a certificate of a P-256 key.
    """

    name: str
    certificate_path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificate_path", Path(self.certificate_path))
        self.key()

    @cached_property
    def certificate(self) -> bytes:
        """The certificate, DER."""
        return _read_certificate(self.certificate_path)

    @cached_property
    def pin(self) -> KeyPin:
        """Who the partner is."""
        return KeyPin(spki_sha256(self.certificate))

    def key(self) -> EllipticCurvePublicKey:
        """The public key, for `seal`."""
        return _public_key(self.certificate, self.certificate_path)


def server_context(identity: Identity, partner: Partner) -> ssl.SSLContext:
    """TLS 1.3 for the side that listens: whoever does not sign with the partner's key is turned away.

    Compare the pin all the same: a certificate that the partner's key has signed passes here.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.num_tickets = 0  # no session goes on without a new proof
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME) | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=partner.certificate)
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 for the side that connects. Any certificate passes: compare its pin before a byte is sent.

    The handshake proves that the server holds the certificate's key; that it is the partner's is the pin's
    to say, which can name a stranger's where OpenSSL would only say no.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, identity)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    except (OSError, ssl.SSLError) as error:
        raise MisconfiguredError(
            f"cannot use {identity.certificate_path} for TLS ({type(error).__name__}); {_MAKE}"
        ) from None
    return context


def _read_certificate(path: Path) -> bytes:
    """The first certificate of a PEM file, as DER."""
    with extra("link", "cryptography"):
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509 import load_pem_x509_certificate
    with system_errors(f"cannot read the certificate {path}", _MAKE):
        content = path.read_bytes()
    try:
        return load_pem_x509_certificate(content).public_bytes(Encoding.DER)
    except ValueError:
        raise MisconfiguredError(f"{path} is no certificate in PEM; {_MAKE}") from None


def _public_key(certificate: bytes, path: Path) -> EllipticCurvePublicKey:
    with extra("link", "cryptography"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509 import load_der_x509_certificate
    try:
        key = load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise MisconfiguredError(f"the certificate {path} holds no key of the curve P-256; {_MAKE}")
    return key
