"""Evidence as a value: what it takes in, what it shows, and the hash that ties it to a question."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import replace
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.enclave import evidence as module
from transom.enclave.evidence import (
    PARTS,
    TRUST,
    Claims,
    Evidence,
    Kind,
    digest,
    enclave_fields,
    engine_fields,
    report_data,
)
from transom.errors import EvidenceError

KINDS: tuple[Kind, ...] = get_args(Kind)


def some(kind: Kind) -> Evidence:
    return Evidence(kind, {name: name.encode() for name in PARTS[kind][0]})


def test_every_kind_has_parts_and_a_trust() -> None:
    assert set(PARTS) == set(TRUST) == set(KINDS)
    assert {kind for kind in KINDS if TRUST[kind] == "hardware"} == {"sgx", "tdx", "snp"}
    assert (TRUST["tpm2"], TRUST["insecure-dev"]) == ("boot-state", "none")


@given(st.sampled_from(KINDS), st.data())
def test_json_returns_the_same_evidence(kind: Kind, data: st.DataObject) -> None:
    required, optional = PARTS[kind]
    names = required | data.draw(st.sets(st.sampled_from(sorted(optional)))) if optional else required
    evidence = Evidence(kind, {name: data.draw(st.binary(min_size=1, max_size=99)) for name in names})
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_a_strange_an_empty_and_a_huge_part_are_refused(kind: Kind) -> None:
    parts = dict(some(kind).parts)
    first = next(iter(parts))
    limit = module._MAX_PART_BYTES
    assert Evidence(kind, {**parts, first: bytes(limit)}).kind == kind
    with pytest.raises(EvidenceError, match=f"without {first}"):
        Evidence(kind, {name: part for name, part in parts.items() if name != first})
    with pytest.raises(EvidenceError, match=f"{kind} evidence has the parts"):
        Evidence(kind, {**parts, "strange": b"x"})
    for bad in (b"", bytes(limit + 1)):
        with pytest.raises(EvidenceError, match=f"the part {first} of {kind} evidence has {len(bad)} bytes"):
            Evidence(kind, {**parts, first: bad})


def test_an_unknown_kind_is_refused() -> None:
    for kind in ("SGX", "sev", "", "tpm"):
        with pytest.raises(EvidenceError, match="is not one of sgx, tdx, snp, tpm2, insecure-dev"):
            Evidence(cast(Kind, kind), {"quote": b"x"})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "sgx",
        {},
        {"kind": "sgx"},
        {"parts": {}},
        {"kind": "sgx", "parts": []},
        {"kind": "sgx", "parts": {"quote": "eA=="}, "more": 1},
        {"kind": 1, "parts": {"quote": "eA=="}},
        {"kind": ["sgx"], "parts": {"quote": "eA=="}},
        {"kind": "none", "parts": {"quote": "eA=="}},
        {"kind": "sgx", "parts": {"quote": "not base64!"}},
        {"kind": "sgx", "parts": {"quote": "eA"}},
        {"kind": "sgx", "parts": {"quote": ""}},
        {"kind": "sgx", "parts": {"quote": 7}},
        {"kind": "sgx", "parts": {"quote": None}},
        {"kind": "sgx", "parts": {"quote": "é"}},
        {"kind": "sgx", "parts": {}},
    ],
)
def test_json_that_is_no_evidence_is_refused(value: Any) -> None:
    with pytest.raises(EvidenceError):
        Evidence.from_json(value)


def test_neither_repr_nor_errors_show_the_bytes() -> None:
    secret = secrets.token_hex(16)
    evidence = Evidence("insecure-dev", {"report_data": secret.encode()})
    assert secret not in repr(evidence)
    assert secret not in repr(Claims("insecure-dev", {}, secret.encode()))
    part = base64.b64encode(secret.encode()).decode()
    with pytest.raises(EvidenceError) as caught:
        Evidence.from_json({"kind": "sgx", "parts": {"quote": part + "!"}})
    assert part not in str(caught.value)


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_two_lists_of_fields_have_one_digest_only_if_they_are_equal(a: list[bytes], b: list[bytes]) -> None:
    assert (digest("d", *a) == digest("d", *b)) == (a == b)


def test_the_digest_is_over_lengths_and_contents() -> None:
    content = bytes(7) + b"\2do" + bytes(7) + b"\3abc" + bytes(8)
    assert digest("do", b"abc", b"") == hashlib.sha256(content).digest()
    assert digest("do", b"abc", b"", algorithm="sha512") == hashlib.sha512(content).digest()
    assert digest("doa", b"bc") != digest("do", b"abc") != digest("other", b"abc")


def test_report_data_fills_the_field_of_its_platform() -> None:
    sizes = {kind: len(report_data(kind, "domain", b"x")) for kind in KINDS}
    assert sizes == {"sgx": 64, "tdx": 64, "snp": 64, "tpm2": 32, "insecure-dev": 64}


def test_a_question_is_bound_to_its_nonce_key_policy_and_direction() -> None:
    nonce, key, policy = bytes(32), b"k" * 32, "ab" * 32
    asked = report_data("sgx", *enclave_fields(nonce, key, policy))
    for other in (
        enclave_fields(b"\1" + nonce[1:], key, policy),
        enclave_fields(nonce, b"K" + key[1:], policy),
        enclave_fields(nonce, key, "ac" + policy[2:]),
        engine_fields(nonce, key),
    ):
        assert report_data("sgx", *other) != asked


def test_the_measurement_names_kind_and_every_register() -> None:
    claims = Claims("snp", {"a": "01", "b": "02"}, b"")
    others = [
        replace(claims, kind="tdx"),
        replace(claims, registers={"a": "01", "b": "03"}),
        replace(claims, registers={"a": "01"}),
        replace(claims, registers={"a": "02", "b": "01"}),
    ]
    assert len({one.measurement for one in (claims, *others)}) == 5
    assert claims.measurement == replace(claims, registers={"b": "02", "a": "01"}, svn=4).measurement
    assert len(bytes.fromhex(claims.measurement)) == 32
