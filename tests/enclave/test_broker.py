"""The broker over real HTTPS, asked by a client that shares no code with ours."""

from __future__ import annotations

import base64
import http.client
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from transom.enclave import broker as broker_module
from transom.enclave.broker import MAX_BODY_BYTES, MAX_NONCES, Nonces, create_broker
from transom.enclave.evidence import Claims, Evidence
from transom.enclave.log import ReleaseLog, log_head
from transom.enclave.policy import EvidencePolicy, Rule
from transom.errors import EvidenceError, MisconfiguredError

from .release_fixtures import (
    DEV,
    WORDS,
    House,
    asking,
    b64,
    challenge,
    hashed,
    make_house,
    new_manifest,
    post,
)

PUBLIC = X25519PrivateKey.generate().public_key().public_bytes_raw()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


@pytest.fixture
def url(house: House) -> Iterator[str]:
    with house.broker() as url:
        yield url


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, str]]:
    """One broker for the many requests that only have to be refused."""
    house = make_house(tmp_path_factory.mktemp("shared"))
    with house.broker() as url:
        yield house, url


def test_a_release_opens_with_plain_hpke_is_signed_and_logged(house: House, url: str) -> None:
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    nonce = challenge(url, house.manifest.bundle)
    answer = post(url, "/v1/release", asking(house.manifest, nonce, public))
    assert (answer.status, answer.trust) == (200, "none")
    sealed, signature = (base64.b64decode(answer.value[name]) for name in ("sealed", "signature"))
    measurement = hashed("transom/measurement/v1", b"insecure-dev")
    assert answer.value["measurement"] == measurement.hex()
    bound = measurement, bytes.fromhex(house.manifest.sha256)
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    assert suite.decrypt(sealed, private, hashed("transom/release/v1", nonce, *bound)) == house.data_key
    house.owner.public_key.verify(
        signature, hashed("transom/release-signature/v1", nonce, public, sealed, *bound)
    )
    assert [(e["decision"], e["trust"], e["kind"], e["bundle"]) for e in house.entries()] == [
        ("released", "none", "insecure-dev", house.manifest.bundle)
    ]


def swap(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda ask: ask.update(fields)


def parts(**changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda ask: ask["evidence"].update(parts=changed)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], int, str]] = {
    "swapped report data": (parts(report_data=b64(bytes(64))), 403, "bound to other report data"),
    "report data of a TPM's length": (parts(report_data=b64(bytes(32))), 403, "bound to other report data"),
    "another HPKE key": (swap(hpke_public=b64(secrets.token_bytes(32))), 403, "bound to other report data"),
    "a nonce never given": (swap(nonce=b64(secrets.token_bytes(32))), 403, "unknown, used already"),
    "another word policy": (swap(policy_sha256="00" * 32), 403, "the word policy is not the one"),
    "a word policy in capitals": (swap(policy_sha256=WORDS.upper()), 403, "the word policy is not the one"),
    "no word policy": (swap(policy_sha256=""), 403, "the word policy is not the one"),
    "unknown kind": (swap(evidence={"kind": "zyzzyva", "parts": {}}), 403, "the kind of evidence is not one"),
    "kind is a list": (swap(evidence={"kind": ["tpm2"], "parts": {}}), 403, "the kind of evidence"),
    "no evidence": (swap(evidence={}), 403, "the kind of evidence"),
    "no parts": (parts(), 403, "without report_data"),
    "unknown part": (parts(report_data="AA==", zyzzyva="AA=="), 403, "has the parts report_data"),
    "part is no base64": (parts(report_data="zyzzyva!"), 403, "is not base64"),
    "part is a number": (parts(report_data=1), 403, "is not base64"),
    "part is too large": (parts(report_data=b64(bytes(300_000))), 403, "300000 bytes"),
    "garbage of a TPM": (
        swap(
            evidence={
                "kind": "tpm2",
                "parts": dict.fromkeys(("quote", "signature", "attestation_key", "pcrs"), "AA=="),
            }
        ),
        403,
        "",
    ),
    "unknown bundle": (swap(bundle="00" * 16), 404, "holds no key for that bundle"),
    "bundle is a path": (swap(bundle="../../etc/passwd"), 404, "holds no key for that bundle"),
    "short nonce": (swap(nonce=b64(bytes(31))), 400, "nonce must have 32 bytes"),
    "nonce is no base64": (swap(nonce="zyzzyva"), 400, "nonce is not base64"),
    "long HPKE key": (swap(hpke_public=b64(bytes(33))), 400, "hpke_public must have 32 bytes"),
    "unknown field": (swap(zyzzyva=1), 400, "1 unknown"),
    "missing field": (lambda ask: ask.pop("evidence"), 400, "missing: evidence"),
    "evidence is a string": (swap(evidence="zyzzyva"), 400, "evidence must be a dict"),
    "nonce is null": (swap(nonce=None), 400, "nonce must be a str"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_request_gets_a_reason_a_log_entry_and_no_key(shared: tuple[House, str], what: str) -> None:
    (house, url), (edit, status, reason) = shared, REFUSED[what]
    before = log_head(house.log).entries
    ask = asking(house.manifest, challenge(url, house.manifest.bundle), PUBLIC, edit)
    answer = post(url, "/v1/release", ask)
    assert (answer.status, answer.trust) == (status, "none")
    assert set(answer.value) == {"error"}
    assert reason in answer.reason
    assert house.last() == ("refused", answer.reason)
    assert log_head(house.log).entries == before + 1
    assert "zyzzyva" not in answer.text + house.log.read_text()


def test_a_key_of_low_order_is_refused(house: House, url: str) -> None:
    ask = asking(house.manifest, challenge(url, house.manifest.bundle), bytes(32))
    assert post(url, "/v1/release", ask).status == 403
    assert house.last() == ("refused", "the HPKE public key is not usable; make a new one")


def test_a_nonce_serves_once_even_after_a_refusal(house: House, url: str) -> None:
    for edit, first in ((lambda ask: None, 200), (parts(report_data=b64(bytes(64))), 403)):
        nonce = challenge(url, house.manifest.bundle)
        assert post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC, edit)).status == first
        again = post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC))
        assert again.status == 403
        assert "used already" in again.reason
    assert [entry["decision"] for entry in house.entries()] == ["released", "refused", "refused", "refused"]


def test_of_many_requests_with_one_nonce_at_once_one_is_served(house: House, url: str) -> None:
    ask = asking(house.manifest, challenge(url, house.manifest.bundle), PUBLIC)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, "/v1/release", ask).status, range(8)))
    assert sorted(answers) == [200] + [403] * 7
    assert log_head(house.log).entries == 8


def test_a_nonce_expires_and_belongs_to_one_bundle(house: House) -> None:
    other, now = new_manifest(), [1000.0]
    house.owner.keep_data_key(other.bundle, secrets.token_bytes(32))
    with house.broker(house.manifest, other, nonce_ttl_s=7, clock=lambda: now[0]) as url:
        for passed_s, status in ((6.9, 200), (7.0, 403), (7000.0, 403)):
            nonce = challenge(url, house.manifest.bundle)
            now[0] += passed_s
            assert post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC)).status == status
        assert house.last() == ("refused", "the nonce is older than 7 s; ask for a new one")
        nonce = challenge(url, other.bundle)
        assert "another bundle" in post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC)).reason
        assert (
            post(url, "/v1/release", asking(other, nonce, PUBLIC)).status == 403
        )  # it is used up all the same
        assert post(url, "/v1/challenge", {"bundle": other.bundle}).value["expires_s"] == 7.0


def test_nonces_are_bounded_and_a_flood_drops_the_oldest() -> None:
    nonces = Nonces(60.0, lambda: 0.0)
    given = [nonces.give("a") for _ in range(MAX_NONCES + 2)]
    assert len(set(given)) == len(given)
    for nonce in given[:2]:
        with pytest.raises(EvidenceError, match="forgotten"):
            nonces.take(nonce, "a")
    for nonce in given[2:]:
        nonces.take(nonce, "a")


@pytest.mark.parametrize(
    ("rules", "allow"), [((DEV,), False), ((Rule("snp"),), True), ((Rule("snp"),), False)]
)
def test_insecure_dev_needs_the_policy_and_the_flag(
    house: House, rules: tuple[Rule, ...], allow: bool
) -> None:
    with house.broker(rules=rules, allow=allow) as url:
        ask = asking(house.manifest, challenge(url, house.manifest.bundle), PUBLIC)
        assert post(url, "/v1/release", ask).status == 403
    assert house.last()[0] == "refused"


def test_the_manifest_has_its_own_rules(house: House) -> None:
    strict = new_manifest(rules=(Rule("snp", {"measurement": "ab"}),))
    house.owner.keep_data_key(strict.bundle, secrets.token_bytes(32))
    with house.broker(strict) as url:
        answer = post(url, "/v1/release", asking(strict, challenge(url, strict.bundle), PUBLIC))
    assert answer.status == 403
    assert "no rule allows evidence of kind insecure-dev" in answer.reason
    entry = house.entries()[-1]  # verified, so its measurement is on record
    assert entry["measurement"] == hashed("transom/measurement/v1", b"insecure-dev").hex()


@pytest.mark.parametrize("kind", ["insecure-dev", "tpm2", "sgx"])
def test_a_production_bundle_opens_for_hardware_evidence_only(
    house: House, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a verifier and rules that say yes to everything, so that the broker alone has to say no."""

    def yes(evidence: Evidence, policy: EvidencePolicy, expected: bytes) -> Claims:
        return Claims(kind, {}, expected)

    monkeypatch.setattr(broker_module, "verify", yes)
    production = new_manifest(production=True, rules=(Rule(kind),))
    house.owner.keep_data_key(production.bundle, secrets.token_bytes(32))
    with house.broker(production, rules=(Rule(kind),)) as url:
        answer = post(url, "/v1/release", asking(production, challenge(url, production.bundle), PUBLIC))
    if kind == "sgx":
        assert (answer.status, answer.trust) == (200, "hardware")
        assert house.entries()[-1]["trust"] == "hardware"
    else:
        assert answer.status == 403
        assert "hardware evidence only" in answer.reason
        assert house.entries()[-1]["trust"] == {"tpm2": "boot-state", "insecure-dev": "none"}[kind]


def test_production_on_snp_needs_a_revocation_list(house: House) -> None:
    rules, log = (Rule("snp"),), house.folder / "log"
    production = new_manifest(production=True, rules=rules)
    with pytest.raises(MisconfiguredError, match="revocation list"):
        create_broker(house.owner, {production.bundle: production}, EvidencePolicy(rules), ReleaseLog(log))
    listed = EvidencePolicy(rules, crl=b"list")
    create_broker(house.owner, {production.bundle: production}, listed, ReleaseLog(log))


@pytest.mark.parametrize("path", ["/v1/challenge", "/v1/release"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"bundle": "a", "bundle": "b"}', "application/json", 400),
        (b'{"bundle": 1}', "application/json", 400),
        (b'{"zyzzyva": NaN}', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"\x80\x04zyzzyva", "application/octet-stream", 415),
        (b"x" * (MAX_BODY_BYTES + 1), "application/json", 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    shared: tuple[House, str], path: str, body: bytes, kind: str, status: int
) -> None:
    house, url = shared
    before = log_head(house.log).entries
    try:
        answer = post(url, path, body, kind)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        assert status == 413  # it hung up before all of it had arrived
    else:
        assert answer.status == status
        assert "zyzzyva" not in answer.text
    assert log_head(house.log).entries == before + (path == "/v1/release")
    if path == "/v1/release":
        assert house.last()[0] == "refused"
        assert house.entries()[-1]["bundle"] == ""


def test_a_body_without_a_declared_length_is_bounded_too(house: House, url: str) -> None:
    context = ssl._create_unverified_context()  # noqa: S323  any certificate will do here
    connection = http.client.HTTPSConnection(url.removeprefix("https://"), timeout=30, context=context)
    chunks = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 2))
    try:
        connection.request(
            "POST", "/v1/release", chunks, {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
        pass
    finally:
        connection.close()
    assert house.last() == ("refused", f"the body is larger than {MAX_BODY_BYTES} bytes")


def test_a_body_that_never_arrives_is_given_up(
    house: House, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "BODY_TIMEOUT_S", 0.1)
    context = ssl._create_unverified_context()  # noqa: S323
    connection = http.client.HTTPSConnection(url.removeprefix("https://"), timeout=30, context=context)
    connection.putrequest("POST", "/v1/release")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 408
    connection.close()
    assert house.last()[0] == "refused"


def test_a_client_that_leaves_in_mid_body_is_on_record(house: House, url: str) -> None:
    context = ssl._create_unverified_context()  # noqa: S323
    connection = http.client.HTTPSConnection(url.removeprefix("https://"), timeout=30, context=context)
    connection.putrequest("POST", "/v1/release")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b"{")
    connection.close()
    give_up = time.monotonic() + 30
    while not house.log.read_bytes() and time.monotonic() < give_up:
        time.sleep(0.01)
    assert house.last() == ("refused", "the client left before its request was complete")


def test_a_challenge_for_an_unknown_bundle_gives_no_nonce(url: str) -> None:
    answer = post(url, "/v1/challenge", {"bundle": "00" * 16})
    assert (answer.status, answer.reason) == (404, "this broker holds no key for that bundle")


def test_without_a_log_entry_no_key_leaves(house: House, url: str, caplog: pytest.LogCaptureFixture) -> None:
    for edit in (lambda ask: None, swap(policy_sha256="")):
        nonce = challenge(url, house.manifest.bundle)
        ask = asking(house.manifest, nonce, PUBLIC, edit)
        house.log.unlink(missing_ok=True)
        answer = post(url, "/v1/release", ask)
        assert (answer.status, answer.value) == (
            503,
            {"error": "the broker cannot release now (MisconfiguredError)"},
        )
    assert not house.log.exists()
    assert "cannot write the release log" in caplog.text


def test_a_tampered_log_stops_releases(house: House, url: str) -> None:
    def ask() -> int:
        nonce = challenge(url, house.manifest.bundle)
        return post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC)).status

    assert ask() == 200
    house.log.write_bytes(b"")
    assert ask() == 503
    assert house.log.read_bytes() == b""


def test_a_missing_data_key_is_logged_and_its_place_is_not_told(house: House, url: str) -> None:
    (house.folder / "owner/keys" / f"{house.manifest.bundle}.key").unlink()
    nonce = challenge(url, house.manifest.bundle)
    answer = post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC))
    assert (answer.status, answer.reason) == (503, "the broker cannot release now (BundleError)")
    assert str(house.folder) not in answer.text
    assert house.last()[0] == "refused"
    assert "no key for the bundle" in house.last()[1]


def test_an_unforeseen_failure_tells_only_its_type(
    house: House, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Claims:
        raise RuntimeError("zyzzyva")

    monkeypatch.setattr(broker_module, "verify", broken)
    nonce = challenge(url, house.manifest.bundle)
    answer = post(url, "/v1/release", asking(house.manifest, nonce, PUBLIC))
    assert answer.status == 503
    assert house.last() == ("refused", "RuntimeError")
    assert "zyzzyva" not in answer.text + caplog.text + house.log.read_text()


def test_slow_verification_keeps_nobody_else_waiting(
    house: House, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, verify = threading.Event(), broker_module.verify

    def slow(evidence: Evidence, policy: EvidencePolicy, expected: bytes) -> Claims:
        assert go.wait(60)
        return verify(evidence, policy, expected)

    monkeypatch.setattr(broker_module, "verify", slow)
    asks = [asking(house.manifest, challenge(url, house.manifest.bundle), PUBLIC) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(post, url, "/v1/release", ask) for ask in asks]
        try:
            assert post(url, "/v1/release", b"").status == 400  # judged, logged and answered meanwhile
            assert len(challenge(url, house.manifest.bundle)) == 32
            assert not any(one.done() for one in waiting)
        finally:
            go.set()
        assert [one.result().status for one in waiting] == [200] * 8
    assert [entry["decision"] for entry in house.entries()] == ["refused"] + ["released"] * 8


def test_logs_name_the_trust_and_hold_no_key_nonce_or_evidence(
    house: House, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "transom")
    secret = [house.data_key, PUBLIC]
    told = ""
    for edit in (lambda ask: None, parts(report_data=b64(b"S" * 64)), swap(hpke_public=b64(b"P" * 32))):
        nonce = challenge(url, house.manifest.bundle)
        ask = asking(house.manifest, nonce, PUBLIC, edit)
        secret += [nonce, base64.b64decode(ask["evidence"]["parts"]["report_data"]), b"P" * 32]
        answer = post(url, "/v1/release", ask)
        if answer.status == 200:
            secret.append(base64.b64decode(answer.value["sealed"]))
        else:
            told += answer.text
    lines = [record for record in caplog.records if record.name == "transom.enclave.broker"]
    assert [record.getMessage().split()[1] for record in lines] == ["released", "refused", "refused"]
    assert all("trust=none" in record.getMessage() for record in lines)
    written = house.log.read_text() + caplog.text + told
    for value in secret:
        for form in (b64(value), value.hex(), value.hex().upper(), repr(value), value.decode("latin-1")):
            assert form not in written
