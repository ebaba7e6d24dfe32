"""SGX and TDX quotes: the real samples, every byte of them, and where their collateral comes from."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import random
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from transom.enclave import sgx_tdx
from transom.enclave.evidence import Evidence, Kind
from transom.enclave.policy import EvidencePolicy, Rule
from transom.errors import EvidenceError, MissingExtraError

NOTHING = EvidencePolicy(allow=())
# Where each quote's header, report body, signature, attestation key and quoting enclave's report with its
# signature and authentication data lie: all that is neither a length nor a certificate.
FIXED: Mapping[str, list[tuple[int, int]]] = {
    "sgx": [(0, 48 + 384), (436, 436 + 64 + 64 + 384 + 64), (1014, 1014 + 32)],
    "tdx": [(0, 48 + 584), (636, 636 + 64 + 64), (770, 770 + 384 + 64), (1220, 1220 + 32)],
}
BOTH = pytest.mark.parametrize("kind", ["sgx", "tdx"])


def certificates(quote: bytes) -> list[bytes]:
    """The DER of each certificate that a quote carries."""
    bodies = re.findall(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", quote, re.DOTALL)
    try:
        return [base64.b64decode(body) for body in bodies]
    except binascii.Error:
        return []


def with_part(evidence: Evidence, name: str, data: bytes) -> Evidence:
    return Evidence(evidence.kind, {**evidence.parts, name: data})


def test_the_sgx_sample_verifies(samples: Mapping[str, Evidence], sample_time: datetime) -> None:
    quote = samples["sgx"].parts["quote"]
    found = sgx_tdx.claims(samples["sgx"], NOTHING, sample_time)
    body = quote[48:432]
    assert found.registers == {
        "mrenclave": body[64:96].hex(),
        "mrsigner": body[128:160].hex(),
        "isvprodid": str(int.from_bytes(body[256:258], "little")),
        "attributes": body[48:64].hex(),
    }
    assert found.svn == int.from_bytes(body[258:260], "little")
    assert found.report_data == body[320:384]
    assert (found.kind, found.trust, found.debug) == ("sgx", "hardware", False)


def test_the_tdx_sample_verifies(samples: Mapping[str, Evidence], sample_time: datetime) -> None:
    quote = samples["tdx"].parts["quote"]
    found = sgx_tdx.claims(samples["tdx"], NOTHING, sample_time)
    body = quote[48:632]
    assert found.registers["mrtd"] == body[136:184].hex()
    assert [found.registers[f"rtmr{i}"] for i in range(4)] == [
        body[328 + 48 * i : 376 + 48 * i].hex() for i in range(4)
    ]
    assert found.report_data == body[520:584]
    assert (found.tcb_status, found.advisories, found.debug) == ("UpToDate", (), False)
    needed = {name: found.registers[name] for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")}
    assert EvidencePolicy((Rule("tdx", needed),)).accept(found).kind == "tdx"


def test_the_sgx_sample_is_refused_for_its_tcb_until_a_rule_names_status_and_advisories(
    samples: Mapping[str, Evidence], sample_time: datetime
) -> None:
    found = sgx_tdx.claims(samples["sgx"], NOTHING, sample_time)
    status = ("UpToDate", "ConfigurationAndSWHardeningNeeded")
    both = ("INTEL-SA-00289", "INTEL-SA-00615")
    default = Rule("sgx", {"mrenclave": found.registers["mrenclave"]})
    exception = replace(default, tcb_status=status, advisories=both)
    assert EvidencePolicy((exception,)).accept(found) is exception
    for rule, message in (
        (default, f"its TCB status is {status[1]}, UpToDate is allowed"),
        (replace(exception, tcb_status=("UpToDate", "SWHardeningNeeded")), "its TCB status is Configuration"),
        (replace(exception, tcb_status=("UpToDate",)), "its TCB status is ConfigurationAndSWHardeningNeeded"),
        (replace(exception, advisories=()), "advisories INTEL-SA-00289, INTEL-SA-00615 apply"),
        (replace(exception, advisories=both[:1]), "advisories INTEL-SA-00615 apply"),
        (replace(exception, advisories=both[1:]), "advisories INTEL-SA-00289 apply"),
    ):
        with pytest.raises(EvidenceError, match=message):
            EvidencePolicy((rule,)).accept(found)
    good = replace(found, tcb_status="UpToDate", advisories=())  # the status was the only objection
    assert EvidencePolicy((default,)).accept(good) is default


@BOTH
def test_a_flip_at_any_position_raises_or_changes_no_claim(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence, bits, unused = samples[kind], random.Random(kind), 0
    quote, honest = evidence.parts["quote"], sgx_tdx.claims(evidence, NOTHING, sample_time)
    fixed = {position for start, stop in FIXED[kind] for position in range(start, stop)}
    signed = certificates(quote)[:2]  # the third is a copy of the root, which the verifier has its own of
    assert len(signed) == 2
    for position in range(len(quote)):
        changed = bytearray(quote)
        changed[position] ^= 1 << bits.randrange(8)
        try:
            found = sgx_tdx.claims(with_part(evidence, "quote", bytes(changed)), NOTHING, sample_time)
        except EvidenceError:
            continue
        assert position not in fixed
        assert certificates(bytes(changed))[:2] == signed
        assert found == honest
        unused += 1
    assert unused < len(quote) / 3


@BOTH
def test_a_flip_in_the_collateral_raises_or_changes_no_claim(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence, bits = samples[kind], random.Random(kind)
    data, honest = evidence.parts["collateral"], sgx_tdx.claims(evidence, NOTHING, sample_time)
    refused = 0
    for position in bits.sample(range(len(data)), 1500):
        changed = bytearray(data)
        changed[position] ^= 1 << bits.randrange(8)
        try:
            found = sgx_tdx.claims(with_part(evidence, "collateral", bytes(changed)), NOTHING, sample_time)
        except EvidenceError:
            refused += 1
        else:
            assert found == honest
    assert refused > 1000


@BOTH
def test_truncated_quotes_are_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    quote, lengths = samples[kind].parts["quote"], random.Random(2)
    for length in (1, 47, 48, 431, 1045, *lengths.sample(range(1, 3600), 100)):
        with pytest.raises(EvidenceError, match="does not verify"):
            sgx_tdx.claims(with_part(samples[kind], "quote", quote[:length]), NOTHING, sample_time)


@BOTH
def test_stale_and_early_collateral_is_refused(samples: Mapping[str, Evidence], kind: Kind) -> None:
    issued = datetime(2025, 6, 19, 11, tzinfo=UTC)
    for good in (issued, issued + timedelta(days=29)):
        assert sgx_tdx.claims(samples[kind], NOTHING, good).kind == kind
    for bad in (
        issued - timedelta(days=1),
        issued + timedelta(days=31),
        issued + timedelta(days=365),
        datetime(1969, 1, 1, tzinfo=UTC),
    ):
        with pytest.raises(EvidenceError):
            sgx_tdx.claims(samples[kind], NOTHING, bad)


@BOTH
def test_a_quote_under_the_other_label_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    other: Kind = "tdx" if kind == "sgx" else "sgx"
    with pytest.raises(EvidenceError, match=f"labelled {other}, its quote is a"):
        sgx_tdx.claims(Evidence(other, samples[kind].parts), NOTHING, sample_time)


@BOTH
def test_another_platforms_collateral_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    other = samples["tdx" if kind == "sgx" else "sgx"].parts["collateral"]
    with pytest.raises(EvidenceError, match="does not verify"):
        sgx_tdx.claims(with_part(samples[kind], "collateral", other), NOTHING, sample_time)


@pytest.mark.parametrize("data", [b"{}", b"[]", b"\xff\xfe", b"null", b'{"tcb_info": 1}', b"[" * 5000])
def test_collateral_that_is_none_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, data: bytes
) -> None:
    with pytest.raises(EvidenceError, match="does not verify"):
        sgx_tdx.claims(with_part(samples["sgx"], "collateral", data), NOTHING, sample_time)


class Library:
    """Stands in for dcap_qvl's verifier after the signatures: real claims with one change in the report."""

    def __init__(self, claims: dict[str, Any]) -> None:
        self.QuoteCollateralV3 = self.QuotePolicy = self
        self.QuoteVerifier = lambda: self
        self.from_json = self.claims_only = lambda value: value
        self.verify_with_policy = lambda *arguments: self
        self.to_json = lambda: json.dumps(claims)


def library_claims(evidence: Evidence, now: datetime) -> dict[str, Any]:
    library, seconds = sgx_tdx.dcap(), int(now.timestamp())
    collateral = library.QuoteCollateralV3.from_json(evidence.parts["collateral"].decode())
    policy = library.QuotePolicy.claims_only(seconds)
    verified = library.QuoteVerifier().verify_with_policy(
        evidence.parts["quote"], collateral, seconds, policy
    )
    found: dict[str, Any] = json.loads(verified.to_json())
    return found


@pytest.mark.parametrize(
    ("kind", "shape", "name", "debug"),
    [
        ("sgx", "SgxEnclave", "attributes", "0700000000000000e700000000000000"),
        ("tdx", "TD10", "td_attributes", "0100001000000000"),
    ],
)
def test_the_debug_bit_is_told(
    samples: Mapping[str, Evidence],
    sample_time: datetime,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    shape: str,
    name: str,
    debug: str,
) -> None:
    raw = library_claims(samples[kind], sample_time)
    honest = raw["report"][shape][name]
    assert bytes.fromhex(debug)[0] ^ bytes.fromhex(honest)[0] == (2 if kind == "sgx" else 1)
    for value, expected in ((honest, False), (debug, True)):
        raw["report"][shape][name] = value
        monkeypatch.setattr(sgx_tdx, "dcap", lambda: Library(raw))
        assert sgx_tdx.claims(samples[kind], NOTHING, sample_time).debug is expected


def test_a_tdx_guest_that_can_be_migrated_is_refused(
    samples: Mapping[str, Evidence], sample_time: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = library_claims(samples["tdx"], sample_time)
    honest = sgx_tdx.claims(samples["tdx"], NOTHING, sample_time)
    base = raw["report"].pop("TD10")
    monkeypatch.setattr(sgx_tdx, "dcap", lambda: Library(raw))
    raw["report"]["TD15"] = {"base": base, "tee_tcb_svn2": "00" * 16, "mr_service_td": "00" * 48}
    assert sgx_tdx.claims(samples["tdx"], NOTHING, sample_time) == honest
    raw["report"]["TD15"]["mr_service_td"] = "00" * 47 + "01"
    with pytest.raises(EvidenceError, match="migrated"):
        sgx_tdx.claims(samples["tdx"], NOTHING, sample_time)
    raw["report"]["TD15"]["mr_service_td"] = "00" * 48
    base["td_attributes"] = "0000003000000000"  # the sample's, with the bit MIGRATABLE
    with pytest.raises(EvidenceError, match="migrated"):
        sgx_tdx.claims(samples["tdx"], NOTHING, sample_time)


def test_without_the_library_the_extra_is_named(
    samples: Mapping[str, Evidence], sample_time: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(MissingExtraError, match=r"dcap-qvl is .* '\.\[dcap\]"):
        sgx_tdx.claims(samples["sgx"], NOTHING, sample_time)


# ---- where collateral comes from


@contextmanager
def pccs(collateral: dict[str, str], hang: threading.Event | None = None) -> Iterator[str]:
    """A caching service for collateral that serves one sample's, or hangs until `hang` is set."""
    chain = urllib.parse.quote

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hang is not None:
                hang.wait(30)
            headers, body = self.answer()
            self.send_response(200 if body else 404)
            for name, value in headers.items():
                self.send_header(name, chain(value))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def answer(self) -> tuple[dict[str, str], bytes]:
            tail = self.path.partition("/certification/v4/")[2].partition("?")[0]
            if tail == "pckcrl":
                crl = bytes.fromhex(collateral["pck_crl"])
                return {"SGX-PCK-CRL-Issuer-Chain": collateral["pck_crl_issuer_chain"]}, crl
            if tail == "rootcacrl":
                return {}, collateral["root_ca_crl"].encode()
            if tail == "tcb":
                signature = collateral["tcb_info_signature"]
                body = f'{{"tcbInfo":{collateral["tcb_info"]},"signature":"{signature}"}}'
                return {"TCB-Info-Issuer-Chain": collateral["tcb_info_issuer_chain"]}, body.encode()
            if tail == "qe/identity":
                signature = collateral["qe_identity_signature"]
                body = f'{{"enclaveIdentity":{collateral["qe_identity"]},"signature":"{signature}"}}'
                issuer = collateral["qe_identity_issuer_chain"]
                return {"SGX-Enclave-Identity-Issuer-Chain": issuer}, body.encode()
            return {}, b""

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        if hang is not None:
            hang.set()
        server.shutdown()
        thread.join()
        server.server_close()


def without_collateral(evidence: Evidence) -> Evidence:
    return Evidence(evidence.kind, {"quote": evidence.parts["quote"]})


@BOTH
def test_collateral_is_fetched_with_and_without_a_running_loop(
    samples: Mapping[str, Evidence], sample_time: datetime, kind: Kind
) -> None:
    evidence = without_collateral(samples[kind])
    honest = sgx_tdx.claims(samples[kind], NOTHING, sample_time)

    async def inside_a_loop(policy: EvidencePolicy) -> Any:
        return sgx_tdx.claims(evidence, policy, sample_time)

    with pccs(json.loads(samples[kind].parts["collateral"])) as url:
        policy = EvidencePolicy(allow=(), pccs_url=url)
        assert sgx_tdx.claims(evidence, policy, sample_time) == honest
        assert asyncio.run(inside_a_loop(policy)) == honest
        with pytest.raises(
            EvidenceError, match="does not verify"
        ):  # fetched is not trusted more than brought
            sgx_tdx.claims(evidence, policy, sample_time + timedelta(days=60))


def test_without_collateral_and_source_the_message_says_what_to_do(
    samples: Mapping[str, Evidence], sample_time: datetime
) -> None:
    with pytest.raises(EvidenceError, match=r"set dcap\.pccs, or let the attester add the part 'collateral'"):
        sgx_tdx.claims(without_collateral(samples["sgx"]), NOTHING, sample_time)


def test_a_source_that_is_down_slow_or_empty_is_an_error(samples: Mapping[str, Evidence]) -> None:
    quote = samples["sgx"].parts["quote"]
    collateral = json.loads(samples["sgx"].parts["collateral"])
    with pccs(collateral) as url:
        pass
    with pytest.raises(EvidenceError, match=rf"no collateral from {url} .* check dcap\.pccs"):
        sgx_tdx.fetch_collateral(url, quote)
    with pccs(collateral, hang=threading.Event()) as url, pytest.raises(EvidenceError, match="Timeout"):
        sgx_tdx.fetch_collateral(url, quote, timeout_s=0.3)
    with pccs({**collateral, "pck_crl": ""}) as url, pytest.raises(EvidenceError, match="no collateral"):
        sgx_tdx.fetch_collateral(url, quote)
