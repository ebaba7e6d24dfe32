"""TPM 2.0 quotes: a TPM's word on the boot state, checked against its attestation key.

A quote is a TPMS_ATTEST that the TPM itself made and signed with ECDSA P-256 and SHA-256. The evidence brings
the quote, its signature (TPMT_SIGNATURE), the key's public area (TPMT_PUBLIC, or TPM2B_PUBLIC around it) and
the PCR values. What is checked: the key can only have been made inside a TPM, cannot leave it, and signs
nothing but what that TPM made (restricted); the signature; `magic` and `type`; one bank, SHA-256; the digest
over the PCR values; and that every structure ends where its lengths say.
Threat model: the evidence comes from the network and may be anything. The attestation key is trusted because
a rule names it (`attestation_key`, the TPM's Name of it): that Name covers every bit of the public area.
Does not protect: a quote proves what was booted, not that memory is isolated from the host, so its trust is
`boot-state`. No certificate is read, so whoever pins a key must know that it is a TPM's. The qualified name
of the signer can be recomputed only for a primary key, since that of a child needs the names of its parents,
which a quote does not hold; only its form is checked (it is signed, and by a key a rule names). Reset
counters and firmware version are read over: PCRs are what the policy pins. Nothing here expires, so the time
of the check plays no part; freshness comes from the report data.
Source: TCG TPM 2.0 Library Specification, part 1 (section 16, names), part 2 (sections 8.3, 10.12, 11.3,
12.2), part 3 (section 18.4, TPM2_Quote).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import datetime

from transom.enclave.evidence import Claims, Evidence
from transom.enclave.policy import EvidencePolicy
from transom.errors import EvidenceError, extra

_MAGIC, _QUOTE = 0xFF544347, 0x8018
_ECC, _SHA256, _NULL, _ECDSA, _P256 = 0x0023, 0x000B, 0x0010, 0x0018, 0x0003
_HASH_BYTES = 32
_NAME_BYTES = 2 + _HASH_BYTES

# TPMA_OBJECT: fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign must be set; stClear,
# userWithAuth, adminWithPolicy, noDA and encryptedDuplication are free (the Name covers them); else clear.
_MUST = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18
_MAY = 1 << 2 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 11


@dataclass(frozen=True)
class Quote:
    """The fields of a TPMS_ATTEST that matter: `extra_data` is the caller's, `pcrs` the selected numbers."""

    extra_data: bytes
    pcrs: tuple[int, ...]
    pcr_digest: bytes


@dataclass(frozen=True)
class AttestationKey:
    """An ECC P-256 signing key: coordinates, and `name`, the TPM's own identifier of the public area."""

    x: int
    y: int
    name: bytes


def claims(evidence: Evidence, policy: EvidencePolicy, now: datetime) -> Claims:
    """What a TPM quote says. `policy` and `now` play no part: rules come later, and nothing here expires.

    Raises EvidenceError for anything malformed, unsigned, or signed by a key that is not an attestation key.
    """
    quote = parse_quote(evidence.parts["quote"])
    key = parse_key(evidence.parts["attestation_key"])
    _check_signature(key, evidence.parts["signature"], evidence.parts["quote"])
    values = evidence.parts["pcrs"]
    if len(values) != len(quote.pcrs) * _HASH_BYTES:
        raise EvidenceError(
            f"the quote selects {len(quote.pcrs)} PCRs of {_HASH_BYTES} bytes, "
            f"the values have {len(values)} bytes"
        )
    if not hmac.compare_digest(hashlib.sha256(values).digest(), quote.pcr_digest):
        raise EvidenceError(
            "the PCR values are not those the TPM signed; ask again, a PCR may have changed in between"
        )
    registers = {
        "pcrs": "sha256:" + ",".join(map(str, quote.pcrs)),
        "pcr_digest": quote.pcr_digest.hex(),
        "attestation_key": key.name.hex(),
    }
    return Claims(kind="tpm2", registers=registers, report_data=quote.extra_data)


def parse_quote(data: bytes) -> Quote:
    """A TPMS_ATTEST of type quote, with 32 bytes of extra data. Raises EvidenceError."""
    reader = _Reader(data, "the TPM's quote")
    reader.expect(4, _MAGIC, "magic")
    reader.expect(2, _QUOTE, "type")
    signer = reader.sized(_NAME_BYTES, _NAME_BYTES, "qualifiedSigner")
    if signer[:2] != _SHA256.to_bytes(2, "big"):
        raise EvidenceError("the TPM's quote names its signer by another hash than SHA-256")
    extra_data = reader.sized(_HASH_BYTES, _HASH_BYTES, "extraData")
    reader.take(8 + 4 + 4, "clockInfo")
    if reader.number(1, "clockInfo.safe") > 1:
        raise EvidenceError("the TPM's quote has a clockInfo.safe that is neither yes nor no")
    reader.take(8, "firmwareVersion")
    reader.expect(4, 1, "number of PCR banks")
    reader.expect(2, _SHA256, "PCR bank")
    bitmap = reader.take(reader.between(1, 1, 4, "sizeofSelect"), "pcrSelect")
    pcrs = tuple(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)
    if not pcrs:
        raise EvidenceError("the TPM's quote selects no PCR, so it says nothing about the boot state")
    digest = reader.sized(_HASH_BYTES, _HASH_BYTES, "pcrDigest")
    reader.end()
    return Quote(extra_data, pcrs, digest)


def parse_key(data: bytes) -> AttestationKey:
    """A TPMT_PUBLIC, or a TPM2B_PUBLIC around it, of a restricted P-256 signing key. Raises EvidenceError."""
    area = data
    if data[:2] != _ECC.to_bytes(2, "big"):  # a TPMT_PUBLIC starts with its type, a TPM2B_PUBLIC with a size
        outer = _Reader(data, "the TPM2B_PUBLIC of the attestation key")
        area = outer.sized(1, 512, "size")
        outer.end()
    reader = _Reader(area, "the attestation key")
    reader.expect(2, _ECC, "type")
    reader.expect(2, _SHA256, "nameAlg")
    attributes = reader.number(4, "objectAttributes")
    if attributes & _MUST != _MUST or attributes & ~(_MUST | _MAY):
        raise EvidenceError(
            f"the attestation key has the attributes {attributes:#x}; it must be fixedTPM, fixedParent, "
            "sensitiveDataOrigin, restricted and sign, and must not decrypt"
        )
    reader.sized(0, 64, "authPolicy")
    reader.expect(2, _NULL, "symmetric")
    reader.expect(2, _ECDSA, "scheme")
    reader.expect(2, _SHA256, "scheme's hash")
    reader.expect(2, _P256, "curve")
    reader.expect(2, _NULL, "kdf")
    x, y = (int.from_bytes(reader.sized(1, 32, name), "big") for name in ("x", "y"))
    reader.end()
    return AttestationKey(x, y, _SHA256.to_bytes(2, "big") + hashlib.sha256(area).digest())


def parse_signature(data: bytes) -> tuple[int, int]:
    """r and s of a TPMT_SIGNATURE, ECDSA with SHA-256. Raises EvidenceError."""
    reader = _Reader(data, "the TPM's signature")
    reader.expect(2, _ECDSA, "sigAlg")
    reader.expect(2, _SHA256, "hash")
    r, s = (int.from_bytes(reader.sized(1, 32, name), "big") for name in ("r", "s"))
    reader.end()
    return r, s


def _check_signature(key: AttestationKey, signature: bytes, signed: bytes) -> None:
    with extra("enclave", "cryptography"):
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils
    encoded = utils.encode_dss_signature(*parse_signature(signature))
    try:
        public = ec.EllipticCurvePublicNumbers(key.x, key.y, ec.SECP256R1()).public_key()
    except ValueError:
        raise EvidenceError("the attestation key is not a point of the curve P-256") from None
    try:
        public.verify(encoded, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise EvidenceError("the quote is not signed by the attestation key that came with it") from None


class _Reader:
    """Big-endian fields off the front of a TPM structure; running short raises EvidenceError."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._what, self._at = data, what, 0

    def take(self, count: int, field: str) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise EvidenceError(f"{self._what} ends within {field}, at byte {len(self._data)}")
        self._at += count
        return found

    def number(self, size: int, field: str) -> int:
        return int.from_bytes(self.take(size, field), "big")

    def expect(self, size: int, wanted: int, field: str) -> None:
        found = self.number(size, field)
        if found != wanted:
            raise EvidenceError(f"{self._what} has {field} {found:#x}, {wanted:#x} is expected")

    def between(self, size: int, low: int, high: int, field: str) -> int:
        found = self.number(size, field)
        if not low <= found <= high:
            raise EvidenceError(f"{self._what} has a {field} of {found}, {low} to {high} is expected")
        return found

    def sized(self, low: int, high: int, field: str) -> bytes:
        """A TPM2B: two bytes of length, then that many bytes, `low` to `high`."""
        return self.take(self.between(2, low, high, f"{field} size"), field)

    def end(self) -> None:
        if self._at != len(self._data):
            raise EvidenceError(f"{self._what} has {len(self._data) - self._at} bytes behind its end")
