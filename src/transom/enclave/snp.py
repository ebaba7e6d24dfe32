"""AMD SEV-SNP evidence: an attestation report, signed by the chip's VCEK, under AMD's ASK and ARK.

Parts: `report` (1184 bytes), `vcek`, `ask`, `ark` (DER certificates). Checked here: every reserved byte of
the report is zero; VMPL 0; no migration agent; the P-384 signature; the chain up to a pinned ARK, at the
given time; that the VCEK was made for this chip and for the TCB the report claims; the revocation list, if
the policy has one. No byte is without a check: one flipped bit anywhere raises.
Threat model: the evidence comes from whoever runs the machine. AMD's keys are the root of trust.
Does not protect: physical attacks on memory; a chip whose keys leaked before the revocation list said so;
reports signed with a VLEK (a cloud's loaded key) are refused, because they name no chip.
Source: AMD SEV-SNP ABI 56860, table "ATTESTATION_REPORT"; AMD VCEK specification 57230, section 3.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from transom.enclave.evidence import Claims, Evidence
from transom.enclave.policy import EvidencePolicy
from transom.errors import EvidenceError
from transom.net.pin import x509

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

# SHA-256 of the SubjectPublicKeyInfo of AMD's root keys
ARK_SHA256 = {
    "Milan": "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    "Genoa": "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    "Turin": "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}

_REPORT_BYTES = 1184
_SIGNED_BYTES = 0x2A0
_NUMBER_BYTES = 72  # r and s, little-endian; P-384 uses 48 of them
_VERSIONS = (2, 3, 5)
_TURIN_FAMILY = 0x1A
_POLICY_MIGRATION, _POLICY_DEBUG = 1 << 18, 1 << 19
_POLICY_ONE, _POLICY_KNOWN_BITS = 1 << 17, 26

_OID = "1.3.6.1.4.1.3704.1."
_HARDWARE_ID = _OID + "4"
# Which byte of a TCB version each level of the VCEK stands for; all other bytes are reserved.
_TCB_BYTES = {_OID + "3.1": 0, _OID + "3.2": 1, _OID + "3.3": 6, _OID + "3.8": 7}
_TCB_BYTES_TURIN = {_OID + "3.9": 0, _OID + "3.1": 1, _OID + "3.2": 2, _OID + "3.3": 3, _OID + "3.8": 7}


@dataclass(frozen=True)
class Report:
    """The fields of an attestation report that Transom uses; `raw` is all of it."""

    raw: bytes
    guest_svn: int
    policy: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    reported_tcb: bytes
    chip_id: bytes
    family: int | None  # CPUID family; None in version 2, which does not say


def claims(evidence: Evidence, policy: EvidencePolicy, now: datetime) -> Claims:
    """What the report says, once format, signature and chain hold at `now`. Raises EvidenceError."""
    report = parse(evidence.parts["report"])
    vcek, ask, ark = (_certificate(evidence, name, now) for name in ("vcek", "ask", "ark"))
    _check_root(ark, policy)
    _check_issued(ask, ark, "ASK", "ARK")
    _check_issued(vcek, ask, "VCEK", "ASK")
    if policy.crl is not None:
        _check_revocation(policy.crl, ark, {"ASK": ask, "VCEK": vcek}, now)
    _check_signature(report, vcek)
    _check_platform(report, vcek)
    return Claims(
        kind="snp",
        registers={
            "measurement": report.measurement.hex(),
            "host_data": report.host_data.hex(),
            "chip_id": report.chip_id.hex(),
            "reported_tcb": report.reported_tcb.hex(),
        },
        report_data=report.report_data,
        svn=report.guest_svn,
        tcb=report.reported_tcb,
        debug=bool(report.policy & _POLICY_DEBUG),
    )


def parse(raw: bytes) -> Report:
    """A report's fields, with its fixed values and reserved bytes checked. Raises EvidenceError."""
    if len(raw) != _REPORT_BYTES:
        raise EvidenceError(f"an SNP report has {_REPORT_BYTES} bytes, got {len(raw)}")
    version = _number(raw, 0x00, 4)
    if version not in _VERSIONS:
        raise EvidenceError(f"SNP reports of version {_VERSIONS} are understood, got {version}")
    for start, stop in _reserved(version):
        if any(raw[start:stop]):
            raise EvidenceError(f"the reserved bytes {start:#x} to {stop:#x} of the SNP report are not zero")
    guest_policy = _number(raw, 0x08, 8)
    if not guest_policy & _POLICY_ONE or guest_policy >> _POLICY_KNOWN_BITS:
        raise EvidenceError("the reserved bits of the SNP guest policy are not as specified")
    if guest_policy & _POLICY_MIGRATION:
        raise EvidenceError("the SNP guest allows a migration agent, which could move its memory elsewhere")
    if (vmpl := _number(raw, 0x30, 4)) != 0:
        raise EvidenceError(f"the SNP report was asked for at VMPL {vmpl}; only level 0 is accepted")
    if (algorithm := _number(raw, 0x34, 4)) != 1:
        raise EvidenceError(f"SNP reports are signed with algorithm 1, ECDSA P-384; got {algorithm}")
    flags = _number(raw, 0x48, 4)
    if flags >> 5 or (flags >> 2) & 7:
        raise EvidenceError("the SNP report is not signed with a VCEK; other keys are not accepted")
    return Report(
        raw=raw,
        guest_svn=_number(raw, 0x04, 4),
        policy=guest_policy,
        report_data=raw[0x50:0x90],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        reported_tcb=raw[0x180:0x188],
        chip_id=raw[0x1A0:0x1E0],
        family=raw[0x188] if version >= 3 else None,
    )


def _reserved(version: int) -> list[tuple[int, int]]:
    """The byte ranges that must be zero, the signature's padding included."""
    first = (0x188 if version == 2 else 0x18B, 0x1A0)  # version 3 added the CPUID family, model, stepping
    last = (0x1F8 if version < 5 else 0x208, _SIGNED_BYTES)  # version 5 added the mitigation vectors
    r_end, s_end = _SIGNED_BYTES + _NUMBER_BYTES, _SIGNED_BYTES + 2 * _NUMBER_BYTES
    padding = [(r_end - 24, r_end), (s_end - 24, s_end), (s_end, _REPORT_BYTES)]
    return [(0x4C, 0x50), first, (0x1EB, 0x1EC), (0x1EF, 0x1F0), last, *padding]


def _number(raw: bytes, start: int, size: int) -> int:
    return int.from_bytes(raw[start : start + size], "little")


def _certificate(evidence: Evidence, name: str, now: datetime) -> Certificate:
    """A part as a certificate that is valid at `now` and encoded in the one way it was signed in."""
    load, data = x509().load_der_x509_certificate, evidence.parts[name]
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        with warnings.catch_warnings():
            # AMD's VCEKs carry the serial number 0, which the parser warns of
            warnings.filterwarnings("ignore", message="Parsed a serial number")
            certificate: Certificate = load(data)
        tail = b"\0" + certificate.signature  # whole bytes: a BIT STRING could drop bits that are zero
        exact = certificate.public_bytes(Encoding.DER) == data and data.endswith(tail)
        _ = certificate.extensions  # read once here, where what cannot be read is refused
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception:  # the parser has several kinds for hostile bytes
        raise EvidenceError(f"the {name.upper()} is no DER certificate ({len(data)} bytes)") from None
    if not exact:
        raise EvidenceError(f"the {name.upper()} is not encoded as DER prescribes")
    if not start <= now <= end:
        raise EvidenceError(
            f"the {name.upper()} is valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, "
            f"not at {now:%Y-%m-%d %H:%M}; check the clock, or ask for new evidence"
        )
    return certificate


def _check_root(ark: Certificate, policy: EvidencePolicy) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    _check_issued(ark, ark, "ARK", "ARK")
    key = ark.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = hashlib.sha256(key).hexdigest()
    if found not in {*ARK_SHA256.values(), *(one.lower() for one in policy.ark_sha256)}:
        raise EvidenceError(
            f"the ARK's key {found} is none of AMD's ({', '.join(ARK_SHA256)}) and not in snp.ark_sha256"
        )


def _check_issued(certificate: Certificate, issuer: Certificate, name: str, issuer_name: str) -> None:
    """`certificate` is signed by `issuer`: RSASSA-PSS, SHA-384, 4096 bits, a certificate authority."""
    from cryptography.hazmat.primitives.asymmetric.padding import PSS
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.x509 import BasicConstraints

    try:
        key, digest = issuer.public_key(), certificate.signature_hash_algorithm
        padding = certificate.signature_algorithm_parameters
        authority = issuer.extensions.get_extension_for_class(BasicConstraints).value.ca
        certificate.verify_directly_issued_by(issuer)  # names, inner and outer algorithm, signature
    except Exception as error:  # a wrong signature, a missing extension, an unknown algorithm
        raise EvidenceError(
            f"the {name} is not signed by the {issuer_name} ({type(error).__name__})"
        ) from None
    if not authority or not isinstance(key, RSAPublicKey) or key.key_size != 4096:
        raise EvidenceError(f"the {issuer_name} is no certificate authority with a 4096-bit RSA key")
    if not isinstance(padding, PSS) or not isinstance(digest, SHA384):
        raise EvidenceError(f"the {name} is not signed with RSASSA-PSS and SHA-384")


def _check_revocation(data: bytes, ark: Certificate, chain: dict[str, Certificate], now: datetime) -> None:
    """The list is the ARK's own, current at `now`, and names none of the chain's serial numbers."""
    try:
        revoked = x509().load_der_x509_crl(data)
        start, end = revoked.last_update_utc, revoked.next_update_utc
        genuine = revoked.issuer == ark.subject and revoked.is_signature_valid(ark.public_key())
    except Exception:
        raise EvidenceError(f"snp.crl is no DER revocation list ({len(data)} bytes)") from None
    if not genuine:
        raise EvidenceError("snp.crl is not signed by this evidence's ARK; fetch the list of its product")
    if end is None or not start <= now <= end:
        raise EvidenceError(f"snp.crl is not valid at {now:%Y-%m-%d %H:%M} UTC; fetch a new one from AMD")
    for name, certificate in chain.items():
        if revoked.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise EvidenceError(f"AMD has revoked the {name}")


def _check_signature(report: Report, vcek: Certificate) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384

    key = vcek.public_key()
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise EvidenceError("the VCEK holds no P-384 key")
    r, s = (_number(report.raw, _SIGNED_BYTES + at, _NUMBER_BYTES) for at in (0, _NUMBER_BYTES))
    try:
        key.verify(encode_dss_signature(r, s), report.raw[:_SIGNED_BYTES], ECDSA(SHA384()))
    except InvalidSignature:
        raise EvidenceError("the SNP report is not signed by this VCEK") from None


def _check_platform(report: Report, vcek: Certificate) -> None:
    """The VCEK was made for the chip and the TCB version that the report names."""
    from cryptography.x509 import UnrecognizedExtension

    found = [one.value for one in vcek.extensions]
    values = {one.oid.dotted_string: one.value for one in found if isinstance(one, UnrecognizedExtension)}
    turin = _OID + "3.9" in values
    if report.family is not None and (report.family == _TURIN_FAMILY) != turin:
        raise EvidenceError(f"the VCEK is for another processor than the report's family {report.family:#x}")
    hardware_id = values.get(_HARDWARE_ID, b"")
    if len(hardware_id) != (8 if turin else 64) or hardware_id.ljust(64, b"\0") != report.chip_id:
        raise EvidenceError("the VCEK is for another chip than the report")
    levels = bytearray(8)
    for oid, position in (_TCB_BYTES_TURIN if turin else _TCB_BYTES).items():
        levels[position] = _level(values.get(oid, b""))
    if bytes(levels) != report.reported_tcb:
        raise EvidenceError(
            f"the VCEK is for the TCB {levels.hex()}, the report claims {report.reported_tcb.hex()}"
        )


def _level(value: bytes) -> int:
    """A security patch level from its DER INTEGER, 0 to 255."""
    one = value[2] if len(value) == 3 else value[3] if len(value) == 4 and value[2] == 0 else -1
    if one < 0 or value[:2] != bytes((2, len(value) - 2)) or (len(value) == 3) != (one < 128):
        raise EvidenceError("the VCEK does not state its security patch levels")
    return one
