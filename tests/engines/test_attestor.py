"""The companion beside an engine: fresh evidence for the right key, one at a time, and no more than that."""

from __future__ import annotations

import base64
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from transom.enclave.evidence import Evidence, Kind, engine_fields, report_data
from transom.enclave.source import InsecureDevEvidence
from transom.errors import MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.net.pin import make_certificate
from transom.serving.attestor import create_attestor, spki_of

SPKI = bytes(range(32))
NONCE = base64.b64encode(bytes(32)).decode()


@dataclass
class Slow:
    """A source that counts how many collect at once, and waits to be let go."""

    kind: Kind = "insecure-dev"
    go: threading.Event = field(default_factory=threading.Event)
    inside: int = 0
    most: int = 0
    failure: Exception | None = None

    def collect(self, report_data: bytes) -> Evidence:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.go.wait(10)
        self.inside -= 1
        if self.failure:
            raise self.failure
        return Evidence(self.kind, {"report_data": report_data})


def test_evidence_binds_the_nonce_and_the_key(post: Any, get: Any) -> None:
    with serve_in_thread(create_attestor(InsecureDevEvidence(), SPKI)) as url:
        status, raw = post(url, {"nonce": NONCE}, "/v1/evidence")
        assert get(url, "/healthz")[0] == 200
    answer = json.loads(raw)
    expected = report_data("insecure-dev", *engine_fields(bytes(32), SPKI))
    assert status == 200
    assert Evidence.from_json(answer["evidence"]).parts == {"report_data": expected}
    assert base64.b64decode(answer["spki_sha256"]) == SPKI


@pytest.mark.parametrize(
    "body",
    [
        {}, {"nonce": None}, {"nonce": ""}, {"nonce": "!!!!"}, {"nonce": 5}, {"nonce": [0] * 32},
        {"nonce": base64.b64encode(bytes(31)).decode()}, {"nonce": base64.b64encode(bytes(33)).decode()},
        {"nonce": NONCE, "spki_sha256": NONCE}, {"nonce": "ä" * 44}, b"", b"[]", b"{", b"\xff",
    ],
)  # fmt: skip
def test_other_questions_are_refused_and_nothing_is_collected(post: Any, body: Any) -> None:
    source = Slow()
    with serve_in_thread(create_attestor(source, SPKI)) as url:
        assert post(url, body, "/v1/evidence")[0] == 400
        assert post(url, b" " * 2000, "/v1/evidence")[0] == 413
    assert source.most == 0


def test_one_is_collected_at_a_time_and_few_may_wait(post: Any) -> None:
    source = Slow()
    with serve_in_thread(create_attestor(source, SPKI)) as url, ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(post, url, {"nonce": NONCE}, "/v1/evidence") for _ in range(24)]
        refused = [one.result()[0] for one in islice(as_completed(asked, timeout=8), 8)]
        source.go.set()
        answered = Counter(one.result()[0] for one in asked)
    assert refused == [429] * 8
    assert answered == {200: 16, 429: 8}
    assert source.most == 1


def test_a_source_that_fails_is_told_and_the_next_is_served(post: Any) -> None:
    source = Slow(failure=MisconfiguredError("tpm2_quote gave no answer"))
    source.go.set()
    with serve_in_thread(create_attestor(source, SPKI)) as url:
        status, raw = post(url, {"nonce": NONCE}, "/v1/evidence")
        assert (status, json.loads(raw)["error"]["code"]) == (400, "misconfigured")
        source.failure = None
        assert post(url, {"nonce": NONCE}, "/v1/evidence")[0] == 200


def test_the_key_of_a_certificate(tmp_path: Path) -> None:
    pin = make_certificate(tmp_path)
    chain = tmp_path / "chain.pem"
    make_certificate(tmp_path / "issuer")
    chain.write_bytes((tmp_path / "tls.pem").read_bytes() + (tmp_path / "issuer" / "tls.pem").read_bytes())
    assert spki_of(tmp_path / "tls.pem") == spki_of(chain) == pin.fingerprint


@pytest.mark.parametrize(
    "content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_certificate_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tls.pem").write_bytes(content)
    with pytest.raises(MisconfiguredError, match="certificate"):
        spki_of(tmp_path / "tls.pem")
