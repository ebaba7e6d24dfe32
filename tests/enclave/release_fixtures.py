"""An owner with one bundle, a broker over real HTTPS, and a raw client that shares no code with ours."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import secrets
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transom.enclave.broker import create_broker
from transom.enclave.log import ReleaseLog
from transom.enclave.manifest import (
    MANIFEST_FILE,
    SIGNATURE_DOMAIN,
    SIGNATURE_FILE,
    Manifest,
    Shard,
    tokenizer_digest,
)
from transom.enclave.owner import Owner
from transom.enclave.policy import EvidencePolicy, Rule
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import KeyPin, make_certificate

WORDS = hashlib.sha256(b"a word policy").hexdigest()
DEV = Rule("insecure-dev")


@dataclass(frozen=True)
class House:
    """The owner's side: keys, one bundle with its data key, TLS, and where the log is."""

    folder: Path
    owner: Owner
    manifest: Manifest
    data_key: bytes
    tls: Tls
    pin: KeyPin

    @property
    def log(self) -> Path:
        return self.folder / "release.log"

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def last(self) -> tuple[str, str]:
        entry = self.entries()[-1]
        return entry["decision"], entry["reason"]

    @contextmanager
    def broker(
        self, *manifests: Manifest, rules: tuple[Rule, ...] = (DEV,), allow: bool = True, **rest: Any
    ) -> Iterator[str]:
        held = {one.bundle: one for one in manifests or (self.manifest,)}
        app = create_broker(
            self.owner, held, EvidencePolicy(rules), ReleaseLog(self.log), allow_insecure_dev=allow, **rest
        )
        with serve_in_thread(app, tls=self.tls) as url:
            yield url


def make_house(folder: Path) -> House:
    owner = Owner(folder / "owner")
    pin = make_certificate(folder / "tls")
    manifest, key = new_manifest(), secrets.token_bytes(32)
    owner.keep_data_key(manifest.bundle, key)
    return House(folder, owner, manifest, key, Tls(folder / "tls/tls.pem", folder / "tls/tls.key"), pin)


def new_manifest(**changed: Any) -> Manifest:
    files = {"tokenizer.json": hashlib.sha256(b"{}").hexdigest()}
    plain = Manifest(
        bundle=secrets.token_hex(16),
        model="tiny",
        production=False,
        rows=4,
        width=2,
        dtype="F32",
        shards=(Shard("embedding-00001.enc", 0, 4, hashlib.sha256(b"").hexdigest(), 12 + 32 + 16),),
        files=files,
        tokenizer_sha256=tokenizer_digest(files),
        policy_sha256=WORDS,
        rules=(DEV,),
        server_pins=(),
        extraction_share=0.25,
        created="2030-01-01T00:00:00+00:00",
    )
    return replace(plain, **changed)


def write_manifest(folder: Path, manifest: Manifest, owner: Owner) -> Path:
    """The signed half of a bundle, which is all that a broker reads."""
    (folder / "client").mkdir(parents=True)
    (folder / "client" / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    signature = owner.sign(SIGNATURE_DOMAIN + manifest.to_bytes())
    (folder / "client" / SIGNATURE_FILE).write_bytes(signature)
    return folder


def hashed(domain: str, *fields: bytes, algorithm: str = "sha256") -> bytes:
    """The project's hash over a domain and fields, written a second time."""
    parts = [domain.encode(), *fields]
    return hashlib.new(algorithm, b"".join(len(p).to_bytes(8, "big") + p for p in parts)).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass(frozen=True)
class Answer:
    status: int
    trust: str
    text: str

    @property
    def value(self) -> dict[str, Any]:
        return dict(json.loads(self.text))

    @property
    def reason(self) -> str:
        return str(self.value["error"])


def post(url: str, path: str, body: bytes | dict[str, Any], kind: str = "application/json") -> Answer:
    """One POST through the standard library, which trusts any certificate here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection(url.removeprefix("https://"), timeout=30, context=context)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": kind})
        got = connection.getresponse()
        return Answer(got.status, got.getheader("x-transom-trust") or "", got.read().decode())
    finally:
        connection.close()


def challenge(url: str, bundle: str) -> bytes:
    answer = post(url, "/v1/challenge", {"bundle": bundle})
    assert answer.status == 200, answer.text
    return base64.b64decode(answer.value["nonce"])


def asking(
    manifest: Manifest,
    nonce: bytes,
    public: bytes,
    edit: Callable[[dict[str, Any]], object] = lambda ask: None,
) -> dict[str, Any]:
    """A well-formed request for a key with insecure-dev evidence; `edit` makes it something else."""
    bound = hashed("transom/enclave/v1", nonce, public, bytes.fromhex(WORDS), algorithm="sha512")
    ask = {
        "bundle": manifest.bundle,
        "nonce": b64(nonce),
        "hpke_public": b64(public),
        "policy_sha256": WORDS,
        "evidence": {"kind": "insecure-dev", "parts": {"report_data": b64(bound)}},
    }
    edit(ask)
    return ask
