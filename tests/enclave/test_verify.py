"""Verification as a whole: genuine, for this question, and accepted by the policy; or an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest

from transom.enclave import verify as module
from transom.enclave.evidence import Evidence, Kind, enclave_fields, report_data
from transom.enclave.policy import EvidencePolicy, Rule
from transom.enclave.verify import verify
from transom.errors import EvidenceError, MisconfiguredError

REAL = pytest.mark.parametrize("kind", ["sgx", "tdx", "snp"])
LENIENT: dict[str, Any] = {
    "tcb_status": ("UpToDate", "ConfigurationAndSWHardeningNeeded"),
    "advisories": ("INTEL-SA-00289", "INTEL-SA-00615"),
    "debug": True,
}


def bound(evidence: Evidence) -> bytes:
    """The report data a sample carries, cut from its bytes."""
    if evidence.kind == "snp":
        return evidence.parts["report"][0x50:0x90]
    end = 432 if evidence.kind == "sgx" else 632
    return evidence.parts["quote"][end - 64 : end]


def registers(evidence: Evidence) -> dict[str, str]:
    """What a rule must name, cut from the sample's bytes."""
    if evidence.kind == "snp":
        return {"measurement": evidence.parts["report"][0x90:0xC0].hex()}
    quote = evidence.parts["quote"]
    if evidence.kind == "sgx":
        return {"mrenclave": quote[112:144].hex()}
    rtmr = {f"rtmr{i}": quote[376 + 48 * i : 424 + 48 * i].hex() for i in range(3)}
    return {"mrtd": quote[184:232].hex(), **rtmr}


def lenient(evidence: Evidence) -> EvidencePolicy:
    return EvidencePolicy((Rule(evidence.kind, registers(evidence), **LENIENT),))


def test_every_kind_has_a_verifier() -> None:
    assert set(module._CLAIMS) == set(get_args(Kind))


@REAL
def test_a_real_sample_passes_all_three_checks(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence = samples[kind]
    claims = verify(evidence, lenient(evidence), bound(evidence), sample_time)
    assert (claims.kind, claims.trust, claims.report_data) == (kind, "hardware", bound(evidence))
    elsewhere = sample_time.astimezone(timezone(timedelta(hours=9)))
    assert verify(evidence, lenient(evidence), bound(evidence), elsewhere) == claims


def test_under_strict_rules_each_sample_fails_by_its_own_single_exception(
    samples: Mapping[str, Evidence], sample_time: datetime
) -> None:
    expected = {"snp": "debug mode", "sgx": "TCB status is ConfigurationAndSWHardeningNeeded", "tdx": None}
    exceptions: dict[str, dict[str, Any]] = {
        "snp": {"debug": True},
        "sgx": {k: v for k, v in LENIENT.items() if k != "debug"},
    }
    for kind, message in expected.items():
        evidence = samples[kind]
        strict = Rule(evidence.kind, registers(evidence))
        if message is None:
            assert verify(evidence, EvidencePolicy((strict,)), bound(evidence), sample_time).kind == kind
            continue
        with pytest.raises(EvidenceError, match=message) as caught:
            verify(evidence, EvidencePolicy((strict,)), bound(evidence), sample_time)
        assert "; or" not in str(caught.value)
        excepted = EvidencePolicy((replace(strict, **exceptions[kind]),))
        assert verify(evidence, excepted, bound(evidence), sample_time).kind == kind


@REAL
def test_swapped_and_replayed_report_data_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence = samples[kind]
    good = bound(evidence)
    fresh = report_data(kind, *enclave_fields(bytes(32), bytes(32), "00" * 32))
    others = [bound(one) for name, one in samples.items() if name != kind]
    for wrong in (fresh, good[:32], good + b"\0", good[:-1] + bytes((good[-1] ^ 1,)), b"", *others):
        with pytest.raises(EvidenceError, match=f"{kind} evidence is bound to other report data"):
            verify(evidence, lenient(evidence), wrong, sample_time)


@REAL
def test_an_unknown_measurement_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence = samples[kind]
    (rule,) = lenient(evidence).allow
    for name, value in rule.registers.items():
        other = replace(rule, registers={**rule.registers, name: "ff" + value[2:]})
        with pytest.raises(EvidenceError, match=f"{name} is {value}"):
            verify(evidence, EvidencePolicy((other,)), bound(evidence), sample_time)


@REAL
def test_a_security_version_below_the_floor_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    (rule,) = lenient(samples[kind]).allow
    floored = EvidencePolicy((replace(rule, min_svn=1),))
    with pytest.raises(EvidenceError, match="security version is 0, at least 1"):
        verify(samples[kind], floored, bound(samples[kind]), sample_time)


@REAL
def test_no_rule_for_its_kind_refuses_genuine_evidence(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    policy = EvidencePolicy((Rule("insecure-dev"),))
    with pytest.raises(EvidenceError, match=f"no rule allows evidence of kind {kind}"):
        verify(samples[kind], policy, bound(samples[kind]), sample_time)


@REAL
def test_a_rule_that_accepts_does_not_save_forged_evidence(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence = samples[kind]
    name = "report" if kind == "snp" else "quote"
    start = evidence.parts[name].index(bound(evidence))
    wanted = report_data(kind, *enclave_fields(bytes(32), bytes(32), "00" * 32))
    forged = evidence.parts[name][:start] + wanted + evidence.parts[name][start + 64 :]
    forgery = Evidence(kind, {**evidence.parts, name: forged})
    assert bound(forgery) == wanted
    with pytest.raises(EvidenceError):
        verify(forgery, lenient(evidence), wanted, sample_time)


def test_the_clock_is_read_when_no_time_is_given(samples: Mapping[str, Evidence]) -> None:
    """The collateral of the samples expired in 2025, the clock is later."""
    assert datetime.now(UTC) > datetime(2025, 7, 20, tzinfo=UTC)
    with pytest.raises(EvidenceError, match="does not verify"):
        verify(samples["tdx"], lenient(samples["tdx"]), bound(samples["tdx"]))


def test_a_time_without_zone_is_a_mistake(samples: Mapping[str, Evidence], sample_time: datetime) -> None:
    with pytest.raises(MisconfiguredError, match="time zone"):
        verify(
            samples["tdx"], lenient(samples["tdx"]), bound(samples["tdx"]), sample_time.replace(tzinfo=None)
        )


def test_insecure_dev_proves_nothing_and_says_so() -> None:
    data = report_data("insecure-dev", *enclave_fields(bytes(32), bytes(32), "00" * 32))
    evidence = Evidence("insecure-dev", {"report_data": data})
    claims = verify(evidence, EvidencePolicy((Rule("insecure-dev"),)), data)
    assert (claims.trust, dict(claims.registers), claims.report_data) == ("none", {}, data)
    with pytest.raises(EvidenceError, match="no rule allows evidence of kind insecure-dev"):
        verify(evidence, EvidencePolicy(()), data)
    with pytest.raises(EvidenceError, match="other report data"):
        verify(evidence, EvidencePolicy((Rule("insecure-dev"),)), data[::-1])


def test_evidence_of_one_kind_under_another_label_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime
) -> None:
    quote = samples["sgx"].parts["quote"]
    dressed = Evidence("tdx", {**samples["sgx"].parts, "quote": quote})
    with pytest.raises(EvidenceError, match="labelled tdx"):
        verify(dressed, lenient(samples["tdx"]), bound(samples["sgx"]), sample_time)
    with pytest.raises(EvidenceError, match="1184 bytes, got 4600"):
        verify(
            Evidence("snp", {**samples["snp"].parts, "report": quote}),
            lenient(samples["snp"]),
            bound(samples["snp"]),
            sample_time,
        )
