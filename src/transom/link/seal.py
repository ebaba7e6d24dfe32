"""Messages sealed for one partner, for brokers that a third party runs.

The key of a direction is HKDF-SHA256 over ECDH of both parties' P-256 keys, with job, run, sender, receiver
and both public keys as its info; a message is a random 96-bit nonce and AES-256-GCM. Only the partner reads
it, and only the partner can have written it, for this job, run and direction.
Threat model: whoever runs the broker or writes to it: reads, alters, replays, sends messages of its own.
Does not protect: sizes and times; a message that comes twice or never (the session's numbers do); what was
sent once a private key is stolen, for there is no forward secrecy, and the thief then passes for either
party to the key's owner. A direction's key is good for 2^32 messages.
Source: NIST SP 800-56A (static ECDH), RFC 5869 (HKDF), NIST SP 800-38D (GCM, 8.3 for the 2^32).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from transom.errors import LinkRefusedError, extra
from transom.link.message import require_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_DOMAIN = b"transom/link/seal/1/"
_NONCE_BYTES = 12
OVERHEAD_BYTES = _NONCE_BYTES + 16  # of a sealed message: the nonce and GCM's tag


class Seal:
    """What one party seals for its partner in one run, and opens of it. Threads may share it.

    Raises LinkRefusedError for names or keys that no two parties have, MissingExtraError without
    `cryptography`.
    """

    def __init__(
        self,
        private_key: EllipticCurvePrivateKey,
        partner_key: EllipticCurvePublicKey,
        *,
        job: str,
        run: str,
        party: str,
        partner: str,
    ) -> None:
        for what, name in {"job": job, "run": run, "party": party, "partner": partner}.items():
            require_name(name, f"a {what}'s name")
        self.job, self.run, self.party, self.partner = job, run, party, partner
        own, theirs = _point(private_key.public_key()), _point(partner_key)
        if party == partner or own == theirs:
            raise LinkRefusedError(
                f"{party!r} and {partner!r} must be two names with two keys; check the partner's certificate"
            )
        secret = _agreed(private_key, partner_key)
        self._out = _cipher(secret, "/".join((job, run, party, partner)), own + theirs)
        self._in = _cipher(secret, "/".join((job, run, partner, party)), theirs + own)

    def seal(self, data: bytes) -> bytes:
        """`data` for the partner's eyes, OVERHEAD_BYTES longer; never the same bytes twice."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._out.encrypt(nonce, data, self.party.encode())

    def open(self, sealed: bytes) -> bytes:
        """What the partner sealed. Raises LinkRefusedError for what it did not, for this party and run."""
        from cryptography.exceptions import InvalidTag

        view = memoryview(sealed)
        try:
            return self._in.decrypt(view[:_NONCE_BYTES], view[_NONCE_BYTES:], self.partner.encode())
        except (InvalidTag, ValueError):
            raise LinkRefusedError(
                f"{len(sealed)} bytes are no message that {self.partner!r} sealed for {self.party!r} in run "
                f"{self.run!r}; compare both parties' certificates, names, job and run"
            ) from None


def _agreed(private_key: EllipticCurvePrivateKey, partner_key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDH

    return private_key.exchange(ECDH(), partner_key)


def _point(key: EllipticCurvePublicKey) -> bytes:
    with extra("link", "cryptography"):
        from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    curve = getattr(key, "curve", None)
    if not isinstance(curve, SECP256R1):
        got = curve.name if curve is not None else type(key).__name__
        raise LinkRefusedError(f"both parties' keys are on the curve P-256, got {got}; make one with Transom")
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _cipher(secret: bytes, direction: str, points: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    info = _DOMAIN + direction.encode() + b"/" + points
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=info).derive(secret))
