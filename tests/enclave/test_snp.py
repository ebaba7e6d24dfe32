"""SEV-SNP: the real sample, every one of its bytes, and machines of our own that lie in one point each."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from transom.enclave import snp
from transom.enclave.evidence import Claims, Evidence
from transom.enclave.policy import EvidencePolicy, Rule
from transom.errors import EvidenceError, MissingExtraError

NOW = datetime(2025, 6, 25, 12, tzinfo=UTC)
START, END = NOW - timedelta(days=100), NOW + timedelta(days=100)
OID = "1.3.6.1.4.1.3704.1."
NOTHING = EvidencePolicy(allow=())
PADDING = PSS(MGF1(hashes.SHA384()), 48)

# ---- the real sample


def test_the_real_sample_verifies(samples: Mapping[str, Evidence], sample_time: datetime) -> None:
    report = samples["snp"].parts["report"]
    found = snp.claims(samples["snp"], NOTHING, sample_time)
    assert found.registers["measurement"] == report[0x90:0xC0].hex()
    assert found.registers["chip_id"] == report[0x1A0:0x1E0].hex()
    assert found.report_data == report[0x50:0x90]
    assert (found.kind, found.trust, found.debug, found.svn) == ("snp", "hardware", True, 0)


def test_the_sample_is_refused_because_of_its_debug_bit_and_of_nothing_else(
    samples: Mapping[str, Evidence], sample_time: datetime
) -> None:
    found = snp.claims(samples["snp"], NOTHING, sample_time)
    rule = Rule("snp", {"measurement": found.registers["measurement"]})
    with pytest.raises(EvidenceError, match="not accepted: it runs in debug mode, in which"):
        EvidencePolicy((rule,)).accept(found)
    single_exception = replace(rule, debug=True)
    assert EvidencePolicy((single_exception,)).accept(found) is single_exception
    assert EvidencePolicy((rule,)).accept(replace(found, debug=False)) is rule


@pytest.mark.parametrize("part", ["report", "vcek", "ask", "ark"])
def test_a_flip_at_any_position_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, part: str
) -> None:
    bits = random.Random(part)
    data = samples["snp"].parts[part]
    for position in range(len(data)):
        for flip in (1 << bits.randrange(8), 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            evidence = Evidence("snp", {**samples["snp"].parts, part: bytes(changed)})
            with pytest.raises(EvidenceError):
                snp.claims(evidence, NOTHING, sample_time)


@pytest.mark.parametrize("part", ["vcek", "ask", "ark"])
def test_no_bit_of_a_signature_can_be_dropped(
    samples: Mapping[str, Evidence], sample_time: datetime, part: str
) -> None:
    """The octet before a signature counts unused bits; a parser may ignore those that are zero."""
    changed = bytearray(samples["snp"].parts[part])
    assert changed[-513] == 0
    for unused in range(1, 256):
        changed[-513] = unused
        with pytest.raises(EvidenceError):
            snp.claims(Evidence("snp", {**samples["snp"].parts, part: bytes(changed)}), NOTHING, sample_time)


@pytest.mark.parametrize("part", ["report", "vcek", "ask", "ark"])
def test_truncated_and_lengthened_parts_are_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, part: str
) -> None:
    data = samples["snp"].parts[part]
    for changed in (data[:1], data[:-1], data[1:], data[: len(data) // 2], data + b"\0", data + data):
        with pytest.raises(EvidenceError):
            snp.claims(Evidence("snp", {**samples["snp"].parts, part: changed}), NOTHING, sample_time)


def test_swapped_certificates_are_refused(samples: Mapping[str, Evidence], sample_time: datetime) -> None:
    parts = samples["snp"].parts
    for first, second in (("vcek", "ask"), ("ask", "ark"), ("vcek", "ark")):
        swapped = {**parts, first: parts[second], second: parts[first]}
        with pytest.raises(EvidenceError):
            snp.claims(Evidence("snp", swapped), NOTHING, sample_time)


def test_the_clock_counts_to_the_second(samples: Mapping[str, Evidence]) -> None:
    start = datetime(2022, 9, 24, 0, 55, 28, tzinfo=UTC)  # the VCEK's
    end = datetime(2029, 9, 24, 0, 55, 28, tzinfo=UTC)
    second = timedelta(seconds=1)
    for good in (start, end):
        assert snp.claims(samples["snp"], NOTHING, good).debug
    for bad in (start - second, end + second):
        with pytest.raises(EvidenceError, match=r"the VCEK is valid from .* check the clock"):
            snp.claims(samples["snp"], NOTHING, bad)


def test_the_roots_are_known_by_their_keys(samples: Mapping[str, Evidence]) -> None:
    root = x509.load_der_x509_certificate(samples["snp"].parts["ark"])
    key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert hashlib.sha256(key).hexdigest() == snp.ARK_SHA256["Milan"]
    assert len(set(snp.ARK_SHA256.values())) == 3


# ---- machines of our own


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Issued:
    """One certificate to be made; `levels` and `hardware_id` only for a VCEK."""

    name: str
    key: Any
    issuer: str
    issuer_key: Any
    ca: bool = True
    start: datetime = START
    end: datetime = END
    serial: int = 65537
    levels: Mapping[str, int] = field(default_factory=dict)
    hardware_id: bytes = b""
    padding: Any = field(default_factory=lambda: PADDING)

    def der(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(self.name))
            .issuer_name(named(self.issuer))
            .public_key(self.key.public_key())
            .serial_number(self.serial)
            .not_valid_before(self.start)
            .not_valid_after(self.end)
            .add_extension(x509.BasicConstraints(self.ca, None), critical=True)
        )
        values = {OID + arc: bytes((2, 1, level)) for arc, level in self.levels.items()}
        if self.hardware_id:
            values[OID + "4"] = self.hardware_id
        for oid, value in values.items():
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=False)
        made = builder.sign(self.issuer_key, hashes.SHA384(), rsa_padding=self.padding)
        return made.public_bytes(Encoding.DER)


CHIP = bytes(range(100, 164))
MILAN = {"3.1": 2, "3.2": 1, "3.3": 5, "3.8": 0x44}
MILAN_TCB = bytes((2, 1, 0, 0, 0, 0, 5, 0x44))
TURIN = {"3.9": 1, "3.1": 2, "3.2": 3, "3.3": 4, "3.8": 0x55}
TURIN_TCB = bytes((1, 2, 3, 4, 0, 0, 0, 0x55))


def fields(version: int = 2, policy: int = 1 << 17, **changes: bytes) -> dict[int, bytes]:
    """A report's fields by offset; `changes` are named at_<offset in hex>."""
    found = {
        0x00: version.to_bytes(4, "little"),
        0x04: (7).to_bytes(4, "little"),
        0x08: policy.to_bytes(8, "little"),
        0x34: (1).to_bytes(4, "little"),
        0x50: b"D" * 64,
        0x90: b"M" * 48,
        0xC0: b"H" * 32,
        0x180: MILAN_TCB,
        0x1A0: CHIP,
    }
    return found | {int(name[3:], 16): value for name, value in changes.items()}


@dataclass(frozen=True)
class Vendor:
    """A vendor of our own, with what it would certify if nobody lied."""

    ark_key: rsa.RSAPrivateKey
    ask_key: rsa.RSAPrivateKey
    chip_key: ec.EllipticCurvePrivateKey

    @property
    def ark(self) -> Issued:
        return Issued("ARK", self.ark_key, "ARK", self.ark_key, serial=65536)

    @property
    def ask(self) -> Issued:
        return Issued("ASK", self.ask_key, "ARK", self.ark_key)

    @property
    def vcek(self) -> Issued:
        chip = Issued("VCEK", self.chip_key, "ASK", self.ask_key, ca=False, serial=9)
        return replace(chip, levels=MILAN, hardware_id=CHIP)

    def report(self, content: Mapping[int, bytes], key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        raw = bytearray(1184)
        for offset, value in content.items():
            raw[offset : offset + len(value)] = value
        signature = (key or self.chip_key).sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384()))
        for start, number in zip((0x2A0, 0x2E8), decode_dss_signature(signature), strict=True):
            raw[start : start + 48] = number.to_bytes(48, "little")
        return bytes(raw)

    @property
    def policy(self) -> EvidencePolicy:
        key = self.ark_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return EvidencePolicy(allow=(), ark_sha256=(hashlib.sha256(key).hexdigest(),))

    def evidence(self, content: Mapping[int, bytes] | None = None, **certificates: Issued) -> Evidence:
        chain = {"vcek": self.vcek, "ask": self.ask, "ark": self.ark} | certificates
        parts = {name: one.der() for name, one in chain.items()}
        return Evidence("snp", {**parts, "report": self.report(fields() if content is None else content)})

    def claims(
        self,
        content: Mapping[int, bytes] | None = None,
        policy: EvidencePolicy | None = None,
        **certificates: Issued,
    ) -> Claims:
        return snp.claims(self.evidence(content, **certificates), policy or self.policy, NOW)

    def crl(
        self,
        *serials: int,
        key: Any = None,
        issuer: str = "ARK",
        start: datetime = START,
        end: datetime = END,
    ) -> EvidencePolicy:
        """A policy with a revocation list that names `serials`."""
        builder = x509.CertificateRevocationListBuilder(named(issuer), start, end)
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial, start).build()
            builder = builder.add_revoked_certificate(revoked)
        made = builder.sign(key or self.ark_key, hashes.SHA384(), rsa_padding=PADDING)
        return replace(self.policy, crl=made.public_bytes(Encoding.DER))


@pytest.fixture(scope="module")
def vendor() -> Vendor:
    ark, ask = (rsa.generate_private_key(65537, 4096) for _ in range(2))
    return Vendor(ark, ask, ec.generate_private_key(ec.SECP384R1()))


def test_an_honest_machine_is_believed(vendor: Vendor) -> None:
    found = vendor.claims()
    assert found.registers == {
        "measurement": "4d" * 48,
        "host_data": "48" * 32,
        "chip_id": CHIP.hex(),
        "reported_tcb": MILAN_TCB.hex(),
    }
    assert (found.report_data, found.svn, found.debug) == (b"D" * 64, 7, False)
    assert vendor.claims(fields(policy=1 << 17 | 1 << 19)) == replace(found, debug=True)


def test_without_cryptography_the_extra_is_named(
    samples: Mapping[str, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match="cryptography is not installed"):
        snp.claims(samples["snp"], NOTHING, NOW)


def test_rules_floor_the_guest_and_name_the_tcb(vendor: Vendor) -> None:
    found, rule = vendor.claims(), Rule("snp", {"measurement": "4d" * 48}, min_svn=7)
    assert rule.objection(found) is None
    assert "security version is 7, at least 8" in str(replace(rule, min_svn=8).objection(found))
    other = replace(rule, registers={**rule.registers, "reported_tcb": "03" + MILAN_TCB.hex()[2:]})
    assert "reported_tcb is 0201" in str(other.objection(found))


def test_later_report_versions_and_turin_are_read(vendor: Vendor) -> None:
    milan = fields(version=3, at_188=b"\x19\x01\x01")
    assert vendor.claims(milan).registers["reported_tcb"] == MILAN_TCB.hex()
    chip = CHIP[:8]
    turin = fields(
        version=5,
        at_180=TURIN_TCB,
        at_188=b"\x1a\x02\x01",
        at_1A0=chip.ljust(64, b"\0"),
        at_1F8=b"\x03" * 16,
    )
    vcek = replace(vendor.vcek, levels=TURIN, hardware_id=chip)
    assert vendor.claims(turin, vcek=vcek).registers["reported_tcb"] == TURIN_TCB.hex()
    with pytest.raises(EvidenceError, match="another chip"):
        vendor.claims(turin | {0x1A8: b"\1"}, vcek=vcek)
    with pytest.raises(EvidenceError, match="another processor than the report's family 0x1a"):
        vendor.claims(turin)
    with pytest.raises(EvidenceError, match="another processor than the report's family 0x19"):
        vendor.claims(turin | {0x188: b"\x19"}, vcek=vcek)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (fields(at_1A0=CHIP[::-1]), "another chip"),
        (fields(at_1A0=bytes(64)), "another chip"),
        (fields(at_180=bytes((3,)) + MILAN_TCB[1:]), "the VCEK is for the TCB 0201"),
        (fields(at_180=MILAN_TCB[:2] + b"\1" + MILAN_TCB[3:]), "the VCEK is for the TCB 0201"),
        (fields(at_30=b"\1"), "VMPL 1"),
        (fields(at_30=b"\3"), "VMPL 3"),
        (fields(policy=1 << 17 | 1 << 18), "migration agent"),
        (fields(policy=0), "guest policy"),
        (fields(policy=1 << 17 | 1 << 26), "guest policy"),
        (fields(policy=1 << 17 | 1 << 63), "guest policy"),
        (fields(at_34=b"\0"), "algorithm 1"),
        (fields(at_34=b"\2"), "algorithm 1"),
        (fields(at_48=b"\4"), "not signed with a VCEK"),
        (fields(at_48=b"\x1c"), "not signed with a VCEK"),
        (fields(at_48=b"\x20"), "not signed with a VCEK"),
        (fields(version=0), "got 0"),
        (fields(version=1), "got 1"),
        (fields(version=4), "got 4"),
        (fields(version=6), "got 6"),
    ],
)
def test_a_signed_report_that_says_the_wrong_thing_is_refused(
    vendor: Vendor, content: dict[int, bytes], message: str
) -> None:
    with pytest.raises(EvidenceError, match=message):
        vendor.claims(content)


COMMON = [0x4C, 0x4F, 0x1EB, 0x1EF, 0x19F, 0x29F]
RESERVED = [(2, [*COMMON, 0x188, 0x1F8]), (3, [*COMMON, 0x18B, 0x1F8]), (5, [*COMMON, 0x18B, 0x208])]


@pytest.mark.parametrize(("version", "positions"), RESERVED)
def test_reserved_bytes_are_refused_even_when_signed(
    vendor: Vendor, version: int, positions: list[int]
) -> None:
    content = fields(version=version, at_188=bytes(1) if version == 2 else b"\x19")
    assert vendor.claims(content).svn == 7
    for position in positions:
        with pytest.raises(EvidenceError, match="reserved bytes"):
            snp.parse(vendor.report(content | {position: b"\x80"}))


def test_a_report_signed_by_another_key_is_refused(vendor: Vendor) -> None:
    parts, stranger = vendor.evidence().parts, ec.generate_private_key(ec.SECP384R1())
    report = vendor.report(fields(), stranger)
    with pytest.raises(EvidenceError, match="not signed by this VCEK"):
        snp.claims(Evidence("snp", {**parts, "report": report}), vendor.policy, NOW)


def test_zero_and_equivalent_signatures_are_refused(vendor: Vendor) -> None:
    parts = vendor.evidence().parts
    order = int("f" * 48 + "c7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)  # of P-384
    report = parts["report"]
    r = int.from_bytes(report[0x2A0:0x2E8], "little")
    shifted = report[:0x2A0] + (r + order).to_bytes(72, "little") + report[0x2E8:]
    for changed in (shifted, report[:0x2A0] + bytes(512)):
        with pytest.raises(EvidenceError):
            snp.claims(Evidence("snp", {**parts, "report": changed}), vendor.policy, NOW)


def test_an_unknown_root_is_refused_and_the_message_tells_its_key(vendor: Vendor) -> None:
    with pytest.raises(EvidenceError, match=f"the ARK's key {vendor.policy.ark_sha256[0]} is none of AMD's"):
        vendor.claims(policy=NOTHING)


@pytest.mark.parametrize("name", ["vcek", "ask", "ark"])
@pytest.mark.parametrize("late", [True, False])
def test_certificates_out_of_their_time_are_refused(vendor: Vendor, name: str, late: bool) -> None:
    times = {"end": NOW - timedelta(seconds=1)} if late else {"start": NOW + timedelta(seconds=1)}
    changed = replace(getattr(vendor, name), **times)
    with pytest.raises(EvidenceError, match=f"the {name.upper()} is valid from"):
        vendor.claims(None, None, **{name: changed})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vcek", lambda v: replace(v.vcek, issuer_key=v.ark_key), "VCEK is not signed by the ASK"),
        ("vcek", lambda v: replace(v.vcek, issuer="ARK", issuer_key=v.ark_key), "VCEK is not signed by"),
        ("ask", lambda v: replace(v.ask, issuer_key=v.ask_key), "ASK is not signed by the ARK"),
        ("ask", lambda v: replace(v.ask, ca=False), "ASK is no certificate authority"),
        ("ark", lambda v: replace(v.ark, ca=False), "ARK is no certificate authority"),
        ("ark", lambda v: replace(v.ark, issuer_key=v.ask_key), "ARK is not signed by the ARK"),
        ("vcek", lambda v: replace(v.vcek, padding=PKCS1v15()), "not signed with RSASSA-PSS"),
        ("vcek", lambda v: replace(v.vcek, key=ec.generate_private_key(ec.SECP256R1())), "no P-384 key"),
        ("vcek", lambda v: replace(v.vcek, hardware_id=b""), "another chip"),
        ("vcek", lambda v: replace(v.vcek, hardware_id=CHIP[:8]), "another chip"),
        ("vcek", lambda v: replace(v.vcek, levels={**MILAN, "3.3": 4}), "for the TCB 0201000000000444"),
        ("vcek", lambda v: replace(v.vcek, levels={"3.1": 2}), "does not state"),
        ("vcek", lambda v: replace(v.vcek, levels={**MILAN, "3.8": 0x84}), "does not state"),
    ],
)
def test_a_chain_that_is_wrong_in_one_point_is_refused(
    vendor: Vendor, name: str, change: Callable[[Vendor], Issued], message: str
) -> None:
    with pytest.raises(EvidenceError, match=message):
        vendor.claims(None, None, **{name: change(vendor)})


def test_a_small_root_key_is_refused(vendor: Vendor) -> None:
    small = Vendor(rsa.generate_private_key(65537, 2048), vendor.ask_key, vendor.chip_key)
    with pytest.raises(EvidenceError, match="4096-bit"):
        small.claims()


def test_the_revocation_list_is_heeded(vendor: Vendor) -> None:
    assert vendor.claims(policy=vendor.crl()).svn == 7
    assert vendor.claims(policy=vendor.crl(1234)).svn == 7
    with pytest.raises(EvidenceError, match="revoked the ASK"):
        vendor.claims(policy=vendor.crl(1234, vendor.ask.serial))
    with pytest.raises(EvidenceError, match="revoked the VCEK"):
        vendor.claims(policy=vendor.crl(vendor.vcek.serial))


def test_a_revocation_list_that_proves_nothing_is_refused(vendor: Vendor) -> None:
    second = timedelta(seconds=1)
    for policy, message in (
        (vendor.crl(end=NOW - second), "not valid at"),
        (vendor.crl(start=NOW + second), "not valid at"),
        (vendor.crl(key=vendor.ask_key), "not signed by this evidence's ARK"),
        (vendor.crl(issuer="Somebody"), "not signed by this evidence's ARK"),
        (replace(vendor.policy, crl=b""), "no DER revocation list"),
        (replace(vendor.policy, crl=vendor.ark.der()), "no DER revocation list"),
    ):
        with pytest.raises(EvidenceError, match=message):
            vendor.claims(policy=policy)


def test_every_position_of_the_revocation_list_counts(vendor: Vendor) -> None:
    data, bits, evidence = vendor.crl(1234).crl, random.Random(1), vendor.evidence()
    assert data is not None
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << bits.randrange(8)
        with pytest.raises(EvidenceError):
            snp.claims(evidence, replace(vendor.policy, crl=bytes(changed)), NOW)
