"""TPM quotes from a real software TPM: what verifies, and every way in which one must not."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from transom.enclave import tpm2
from transom.enclave.evidence import Claims, Evidence, report_data
from transom.enclave.policy import EvidencePolicy, Rule
from transom.enclave.source import Tpm2Source
from transom.errors import EvidenceError, MissingExtraError

from .swtpm_fixtures import ATTESTATION, SoftwareTpm, needs_tpm, software_tpm

pytestmark = needs_tpm
NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = EvidencePolicy(allow=(Rule("insecure-dev"),))
QUESTION = report_data("tpm2", "test", b"question")
PCRS = "sha256:0,7,16"
SIGNS_ANYTHING = ATTESTATION.replace("restricted|", "")


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with software_tpm(tmp_path_factory.mktemp("tpm")) as running:
        yield running


@pytest.fixture(scope="module")
def evidence(tpm: SoftwareTpm) -> Evidence:
    return Tpm2Source(tpm.tcti, tpm.key, PCRS).collect(QUESTION)


def read(evidence: Evidence, **parts: bytes) -> Claims:
    """The claims of evidence in which some parts are replaced."""
    return tpm2.claims(replace(evidence, parts={**evidence.parts, **parts}), POLICY, NOW)


def name_of(public: bytes) -> bytes:
    """The Name of a TPM2B_PUBLIC."""
    return b"\x00\x0b" + hashlib.sha256(public[2:]).digest()


def flips(data: bytes) -> Iterator[bytes]:
    """`data` with one bit turned, for every bit."""
    for i in range(8 * len(data)):
        turned = bytearray(data)
        turned[i // 8] ^= 1 << i % 8
        yield bytes(turned)


def test_quote_gives_claims(evidence: Evidence, tpm: SoftwareTpm) -> None:
    found = read(evidence)
    assert found.kind == "tpm2"
    assert found.trust == "boot-state"
    assert found.report_data == QUESTION
    assert found.registers == {
        "pcrs": PCRS,
        "pcr_digest": hashlib.sha256(evidence.parts["pcrs"]).hexdigest(),
        "attestation_key": name_of(tpm.public).hex(),
    }


def test_name_is_the_tpm_s_own(evidence: Evidence, tpm: SoftwareTpm) -> None:
    tpm.run("tpm2_readpublic", "-c", tpm.key, "-n", "key.name")
    assert read(evidence).registers["attestation_key"] == (tpm.folder / "key.name").read_bytes().hex()


def test_signer_of_a_primary_key_is_its_qualified_name(evidence: Evidence, tpm: SoftwareTpm) -> None:
    owner_hierarchy = 0x40000001
    qualified = hashlib.sha256(owner_hierarchy.to_bytes(4, "big") + name_of(tpm.public)).digest()
    assert evidence.parts["quote"][8:42] == b"\x00\x0b" + qualified


def test_key_reads_the_same_without_its_size(evidence: Evidence) -> None:
    bare = evidence.parts["attestation_key"][2:]
    assert read(evidence, attestation_key=bare) == read(evidence)


@pytest.mark.parametrize("pcrs", ["sha256:23", "sha256:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"])
def test_selections(tpm: SoftwareTpm, pcrs: str) -> None:
    found = tpm2.claims(Tpm2Source(tpm.tcti, tpm.key, pcrs).collect(QUESTION), POLICY, NOW)
    assert found.registers["pcrs"] == pcrs


def test_another_question_gives_another_report_data(tpm: SoftwareTpm, evidence: Evidence) -> None:
    other = report_data("tpm2", "test", b"another question")
    found = tpm2.claims(Tpm2Source(tpm.tcti, tpm.key, PCRS).collect(other), POLICY, NOW)
    assert found.report_data == other != read(evidence).report_data
    assert found.measurement == read(evidence).measurement


def test_extended_pcr_changes_the_digest(tpm: SoftwareTpm) -> None:
    source = Tpm2Source(tpm.tcti, tpm.key, "sha256:0,16")
    before = tpm2.claims(source.collect(QUESTION), POLICY, NOW)
    policy = EvidencePolicy(allow=(Rule("tpm2", before.registers),))
    assert policy.accept(before).kind == "tpm2"
    tpm.extend(16, hashlib.sha256(b"another kernel").digest())
    after = tpm2.claims(source.collect(QUESTION), POLICY, NOW)
    with pytest.raises(EvidenceError, match="pcr_digest"):
        policy.accept(after)


def test_another_key_is_refused_by_the_policy(tpm: SoftwareTpm, evidence: Evidence) -> None:
    policy = EvidencePolicy(allow=(Rule("tpm2", {"attestation_key": name_of(tpm.public).hex()}),))
    policy.accept(read(evidence))
    other = Tpm2Source(tpm.tcti, tpm.make_key("0x81010002"), PCRS).collect(QUESTION)
    found = tpm2.claims(other, POLICY, NOW)
    with pytest.raises(EvidenceError, match="attestation_key"):
        policy.accept(found)
    with pytest.raises(EvidenceError, match="not signed"):
        read(evidence, attestation_key=other.parts["attestation_key"])


@pytest.mark.parametrize("part", ["quote", "signature", "pcrs"])
def test_every_flipped_bit_is_refused(evidence: Evidence, part: str) -> None:
    for turned in flips(evidence.parts[part]):
        with pytest.raises(EvidenceError):
            read(evidence, **{part: turned})


def test_every_flipped_bit_of_the_key_is_refused_or_makes_it_another_key(evidence: Evidence) -> None:
    genuine = read(evidence)
    accepted = 0
    for turned in flips(evidence.parts["attestation_key"]):
        try:
            found = read(evidence, attestation_key=turned)
        except EvidenceError:
            continue
        accepted += 1
        assert found.registers["attestation_key"] != genuine.registers["attestation_key"]
    assert accepted <= 5  # the five attributes that are free: what the key may do stays the same


@pytest.mark.parametrize("part", ["quote", "signature", "attestation_key", "pcrs"])
def test_every_truncation_and_a_longer_part_are_refused(evidence: Evidence, part: str) -> None:
    whole = evidence.parts[part]
    for end in range(1, len(whole)):
        with pytest.raises(EvidenceError):
            read(evidence, **{part: whole[:end]})
    for longer in (whole + b"\0", b"\0" + whole, whole + whole):
        with pytest.raises(EvidenceError):
            read(evidence, **{part: longer})


def test_truncation_behind_an_honest_size_is_refused(evidence: Evidence) -> None:
    area = evidence.parts["attestation_key"][2:]
    for end in range(1, len(area)):
        with pytest.raises(EvidenceError):
            read(evidence, attestation_key=struct.pack(">H", end) + area[:end])


def test_values_of_other_pcrs_are_refused(evidence: Evidence) -> None:
    values = evidence.parts["pcrs"]
    with pytest.raises(EvidenceError, match="not those the TPM signed"):
        read(evidence, pcrs=bytes(32) + hashlib.sha256(b"clean").digest() + values[64:])
    with pytest.raises(EvidenceError, match="3 PCRs of 32 bytes, the values have 64"):
        read(evidence, pcrs=values[:64])


def test_quote_of_another_time_does_not_take_this_signature(tpm: SoftwareTpm, evidence: Evidence) -> None:
    later = Tpm2Source(tpm.tcti, tpm.key, PCRS).collect(QUESTION)
    read(later)
    with pytest.raises(EvidenceError, match="not signed"):
        read(evidence, signature=later.parts["signature"])


@pytest.mark.parametrize(
    "command",
    [
        ["tpm2_gettime", "-q", QUESTION.hex(), "--attestation", "other.msg", "-o", "other.sig"],
        ["tpm2_certify", "-c", "0x81010001", "-o", "other.msg", "-s", "other.sig"],
    ],
)
def test_what_else_the_key_signs_is_no_quote(
    tpm: SoftwareTpm, evidence: Evidence, command: list[str]
) -> None:
    tool, *options = command
    tpm.run(tool, "-C" if tool == "tpm2_certify" else "-c", tpm.key, *options)
    message, signature = ((tpm.folder / name).read_bytes() for name in ("other.msg", "other.sig"))
    with pytest.raises(EvidenceError, match="type"):
        read(evidence, quote=message, signature=signature)


def test_key_that_signs_anything_is_refused(tpm: SoftwareTpm, evidence: Evidence) -> None:
    key = tpm.make_key("0x81010003", SIGNS_ANYTHING)
    with pytest.raises(EvidenceError, match="attributes 0x40072"):
        tpm2.claims(Tpm2Source(tpm.tcti, key, PCRS).collect(QUESTION), POLICY, NOW)

    forged = evidence.parts["quote"].replace(QUESTION, bytes(32))  # what such a key would be used for
    (tpm.folder / "forged").write_bytes(forged)
    tpm.run("tpm2_sign", "-c", key, "-g", "sha256", "-o", "forged.sig", "forged")
    with pytest.raises(EvidenceError, match="attributes 0x40072"):
        read(
            evidence,
            quote=forged,
            signature=(tpm.folder / "forged.sig").read_bytes(),
            attestation_key=tpm.read_public(key),
        )


@pytest.mark.parametrize("kind", ["ecc384:ecdsa-sha384:null", "ecc256:ecschnorr-sha256:null"])
def test_other_algorithms_are_refused(tpm: SoftwareTpm, evidence: Evidence, kind: str) -> None:
    key = tpm.make_key(f"0x810101{len(kind):02x}", kind=kind)
    with pytest.raises(EvidenceError, match="attestation key has"):
        read(evidence, attestation_key=tpm.read_public(key))


def rebuilt(evidence: Evidence, start: int, stop: int, fields: bytes) -> bytes:
    """The quote with other bytes in place of some; no TPM signs it, so the parser alone must refuse it."""
    quote = evidence.parts["quote"]
    return quote[:start] + fields + quote[stop:]


@pytest.mark.parametrize(
    ("start", "stop", "fields", "said"),
    [
        (0, 4, b"\0\0\0\0", "magic 0x0"),
        (8, 10, b"\x00\x0c", "another hash"),
        (42, 76, b"\x00\x14" + bytes(20), "extraData size of 20"),
        (92, 93, b"\x02", "neither yes nor no"),
        (101, 105, b"\0\0\0\x02", "number of PCR banks 0x2"),
        (105, 107, b"\x00\x04", "PCR bank 0x4"),
        (107, 108, b"\x00", "sizeofSelect of 0"),
        (108, 111, bytes(3), "selects no PCR"),
        (111, 145, b"\x00\x14" + bytes(20), "pcrDigest size of 20"),
    ],
)
def test_malformed_quotes_are_refused_by_name(
    evidence: Evidence, start: int, stop: int, fields: bytes, said: str
) -> None:
    with pytest.raises(EvidenceError, match=said):
        tpm2.parse_quote(rebuilt(evidence, start, stop, fields))


def test_point_off_the_curve_is_refused(evidence: Evidence) -> None:
    public = evidence.parts["attestation_key"]
    with pytest.raises(EvidenceError, match="not a point"):
        read(evidence, attestation_key=public[:-32] + bytes(31) + b"\x01")


@pytest.mark.parametrize("r_or_s", [bytes(32), b"\xff" * 32])
def test_signatures_out_of_range_are_refused(evidence: Evidence, r_or_s: bytes) -> None:
    signature = evidence.parts["signature"]
    with pytest.raises(EvidenceError, match="not signed"):
        read(evidence, signature=signature[:6] + r_or_s + signature[38:])


def test_missing_extra_is_named(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[enclave\]'"):
        read(evidence)
