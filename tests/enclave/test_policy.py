"""The evidence policy: what its file may say, and that whatever it does not name is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from transom.config import to_plain
from transom.enclave.evidence import Claims, Kind
from transom.enclave.policy import (
    REQUIRED,
    EvidencePolicy,
    Rule,
    accept,
    load_evidence_policy,
)
from transom.errors import EvidenceError, MisconfiguredError

SGX: dict[str, Any] = {"kind": "sgx", "registers": {"mrenclave": "ab" * 32}}
CLAIMS = Claims("sgx", {"mrenclave": "ab" * 32, "mrsigner": "cd" * 32, "isvprodid": "3"}, b"", svn=5)
RULE = Rule("sgx", {"mrenclave": "ab" * 32}, min_svn=5)


def load(folder: Path, value: object) -> EvidencePolicy:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(value))
    return load_evidence_policy(path)


def test_a_full_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "amd.crl").write_bytes(b"list")
    rule = {**SGX, "min_svn": 3, "tcb_status": ["UpToDate", "SWHardeningNeeded"], "advisories": ["X-1"]}
    policy = load(
        tmp_path,
        {
            "allow": [rule, {"kind": "insecure-dev"}],
            "max_age_s": 60,
            "dcap": {"pccs": "https://pccs.example/"},
            "snp": {"ark_sha256": ["ef" * 32], "crl": "amd.crl"},
        },
    )
    assert policy.allow[0] == Rule(
        "sgx", SGX["registers"], 3, "", ("UpToDate", "SWHardeningNeeded"), ("X-1",), False
    )
    assert policy.allow[1] == Rule("insecure-dev")
    assert (policy.max_age_s, policy.pccs_url) == (60.0, "https://pccs.example/")
    assert (policy.ark_sha256, policy.crl) == (("ef" * 32,), b"list")


def test_the_defaults_are_strict(tmp_path: Path) -> None:
    policy = load(tmp_path, {"allow": [SGX]})
    (rule,) = policy.allow
    assert (rule.min_svn, rule.tcb_status, rule.advisories, rule.debug) == (0, ("UpToDate",), (), False)
    assert (policy.max_age_s, policy.pccs_url, policy.ark_sha256, policy.crl) == (300.0, None, (), None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be a mapping"),
        (None, "must be a mapping"),
        ("allow", "must be a mapping"),
        ({}, "'allow' must be a list"),
        ({"allow": []}, "at least one rule"),
        ({"allow": SGX}, "'allow' must be a list"),
        ({"allow": [SGX], "alow": 1}, "does not know alow"),
        ({"allow": [SGX], 7: 1}, "does not know 7"),
        ({"allow": ["sgx"]}, "a rule must be a mapping"),
        ({"allow": [{**SGX, "debugging": True}]}, "does not know debugging"),
        ({"allow": [{**SGX, "kind": "SGX"}]}, "a rule's kind must be one of"),
        ({"allow": [{**SGX, "kind": ["sgx"]}]}, "a rule's kind must be one of"),
        ({"allow": [{"registers": SGX["registers"]}]}, "a rule's kind must be one of"),
        ({"allow": [{"kind": "sgx"}]}, r"must name the registers \{mrenclave\} or \{isvprodid, mrsigner\}"),
        ({"allow": [{"kind": "sgx", "registers": {"mrsigner": "ab"}}]}, "must name the registers"),
        ({"allow": [{"kind": "sgx", "registers": ["ab"]}]}, "must map names to strings"),
        ({"allow": [{"kind": "sgx", "registers": {"mrenclave": 12}}]}, "must map names to strings"),
        (
            {"allow": [{"kind": "sgx", "registers": {"mrenclave": "xy"}}]},
            "mrenclave must be a string of whole bytes in hex",
        ),
        (
            {"allow": [{"kind": "sgx", "registers": {"mrenclave": "abc"}}]},
            "mrenclave must be a string of whole bytes in hex",
        ),
        (
            {"allow": [{"kind": "sgx", "registers": {"mrenclave": ""}}]},
            "mrenclave must be a string of whole bytes in hex",
        ),
        ({"allow": [{**SGX, "min_tcb": 3}]}, "min_tcb must be a string of whole bytes in hex"),
        ({"allow": [{**SGX, "min_svn": -1}]}, "min_svn must be a whole number"),
        ({"allow": [{**SGX, "min_svn": True}]}, "min_svn must be a whole number"),
        ({"allow": [{**SGX, "min_svn": "3"}]}, "min_svn must be a whole number"),
        ({"allow": [{**SGX, "debug": "yes please"}]}, "debug must be true or false"),
        ({"allow": [{**SGX, "debug": 1}]}, "debug must be true or false"),
        ({"allow": [{**SGX, "tcb_status": "UpToDate"}]}, "tcb_status must be a list of strings"),
        ({"allow": [{**SGX, "advisories": [1]}]}, "advisories must be a list of strings"),
        ({"allow": [SGX], "max_age_s": 0}, "max_age_s must be above 0"),
        ({"allow": [SGX], "max_age_s": 86401}, "max_age_s must be above 0"),
        ({"allow": [SGX], "max_age_s": True}, "max_age_s must be above 0"),
        ({"allow": [SGX], "max_age_s": float("nan")}, "max_age_s must be above 0"),
        ({"allow": [SGX], "max_age_s": "60"}, "max_age_s must be above 0"),
        ({"allow": [SGX], "dcap": {"pcs": "x"}}, "dcap does not know pcs"),
        ({"allow": [SGX], "snp": {"ark": "x"}}, "snp does not know ark"),
        ({"allow": [SGX], "snp": {"ark_sha256": "ab"}}, "snp.ark_sha256 must be a list"),
        ({"allow": [SGX], "snp": {"crl": "absent.crl"}}, r"cannot read snp\.crl 'absent\.crl'"),
    ],
)
def test_a_wrong_file_is_refused_and_the_message_names_the_key(
    tmp_path: Path, value: object, message: str
) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        load(tmp_path, value)


def test_every_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    rules = [{**SGX, "min_svn": -1, "debgu": True}, {"kind": "snp", "registers": {"measurement": "xy"}}]
    with pytest.raises(MisconfiguredError) as caught:
        load(tmp_path, {"allow": rules, "max_age_s": 0, "snp": {"crl": 5}})
    for said in (
        "allow[0] does not know debgu; did you mean 'debug'?",
        "allow[0].min_svn must be a whole number",
        "allow[1]: measurement must be a string of whole bytes",
        "max_age_s must be above 0",
        "snp.crl must",
    ):
        assert said in str(caught.value)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with pytest.raises(MisconfiguredError, match="cannot read the evidence policy"):
        load_evidence_policy(path)
    for content in (b"allow: [", b"\xff\xfe\xfa", b"!!python/object/apply:os.system ['true']"):
        path.write_bytes(content)
        with pytest.raises(MisconfiguredError, match="cannot read the evidence policy"):
            load_evidence_policy(path)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_rule_survives_json_and_needs_each_register_of_its_kind(kind: Kind, tmp_path: Path) -> None:
    for needed in REQUIRED[kind]:
        registers = dict.fromkeys(needed, "12")
        written = [{"kind": kind, "registers": registers, "debug": True, "min_svn": 2}]
        rules = load(tmp_path, {"allow": written}).allow
        assert load(tmp_path, {"allow": to_plain(rules)}).allow == rules
        for name in needed:
            fewer = {other: "12" for other in needed if other != name}
            if not any(one <= set(fewer) for one in REQUIRED[kind]):
                with pytest.raises(MisconfiguredError, match="must name the registers"):
                    load(tmp_path, {"allow": [{"kind": kind, "registers": fewer}]})


def test_hex_is_compared_without_case_and_text_registers_as_they_are(tmp_path: Path) -> None:
    registers = {"mrsigner": "CD" * 32, "isvprodid": "3"}
    (rule,) = load(tmp_path, {"allow": [{"kind": "sgx", "registers": registers}]}).allow
    assert rule.objection(CLAIMS) is None
    assert rule.registers["isvprodid"] == "3"


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"registers": {"mrenclave": "ac" + "ab" * 31}}, "mrenclave is ac"),
        ({"registers": {"mrsigner": "cd" * 32}}, "mrenclave is absent"),
        ({"debug": True}, "debug mode"),
        ({"svn": 4}, "its security version is 4, at least 5"),
        ({"tcb_status": "OutOfDate"}, "its TCB status is OutOfDate, UpToDate is allowed"),
        ({"tcb_status": "uptodate"}, "its TCB status is uptodate"),
        ({"tcb_status": ""}, "its TCB status is "),
        ({"advisories": ("Y-2", "X-1")}, "advisories X-1, Y-2 apply"),
    ],
)
def test_one_departure_is_one_objection(change: dict[str, Any], objection: str) -> None:
    assert RULE.objection(CLAIMS) is None
    found = RULE.objection(replace(CLAIMS, **change))
    assert found is not None
    assert found.startswith(objection) or objection in found
    with pytest.raises(EvidenceError, match="sgx evidence is not accepted"):
        accept((RULE,), replace(CLAIMS, **change))


def test_each_exception_lifts_its_own_objection_and_no_other() -> None:
    claims = replace(CLAIMS, debug=True, tcb_status="OutOfDate", advisories=("X-1",))
    exceptions: list[dict[str, Any]] = [
        {"debug": True},
        {"tcb_status": ("OutOfDate",)},
        {"advisories": ("X-1",)},
    ]
    assert replace(RULE, **{k: v for one in exceptions for k, v in one.items()}).objection(claims) is None
    for left_out in range(3):
        others = {k: v for i, one in enumerate(exceptions) if i != left_out for k, v in one.items()}
        assert replace(RULE, **others).objection(claims) is not None


def test_the_first_accepting_rule_is_told_and_every_objection_is_listed() -> None:
    newer, debug = replace(RULE, min_svn=6), replace(RULE, debug=True)
    assert accept((newer, debug, RULE), CLAIMS) is debug
    with pytest.raises(EvidenceError, match=r"at least 6 is allowed; or its .* at least 7"):
        accept((newer, replace(RULE, min_svn=7)), CLAIMS)


@pytest.mark.parametrize("kind", ["tdx", "snp", "tpm2", "insecure-dev"])
def test_a_rule_of_another_kind_accepts_nothing(kind: Kind) -> None:
    rule = replace(RULE, kind=kind, registers={})
    with pytest.raises(EvidenceError, match="no rule allows evidence of kind sgx"):
        EvidencePolicy((rule,)).accept(CLAIMS)
    with pytest.raises(EvidenceError, match=f"no rule allows evidence of kind {kind}"):
        EvidencePolicy((RULE,)).accept(replace(CLAIMS, kind=kind))


def test_no_rules_accept_nothing() -> None:
    with pytest.raises(EvidenceError, match="no rule allows"):
        EvidencePolicy(()).accept(CLAIMS)


def test_the_tcb_floor_holds_for_every_part() -> None:
    claims = Claims("snp", {"measurement": "ab" * 48}, b"", tcb=bytes([3, 0, 0, 8, 0, 0, 115, 209]))
    rule = Rule("snp", {"measurement": "ab" * 48})
    for floor in ("", "0300000800007300", "03000008000073d1", "0000000000000000"):
        assert replace(rule, min_tcb=floor).objection(claims) is None, floor
    for floor in ("0400000000000000", "00000000000000d2", "0000000900000000"):
        assert "no part below" in (replace(rule, min_tcb=floor).objection(claims) or ""), floor
    assert "no part below" in (replace(rule, min_tcb="03").objection(claims) or "")  # of another layout
    untold = replace(claims, tcb=b"")
    assert "not told" in (replace(rule, min_tcb="03").objection(untold) or "")
