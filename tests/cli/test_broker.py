"""`transom broker` and `transom broker-log` as processes and as functions: serve, log, refuse to start."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from transom.cli.app import App
from transom.cli.broker import broker, broker_log
from transom.enclave.client import obtain_key
from transom.enclave.log import Attempt, ReleaseLog
from transom.enclave.manifest import (
    MANIFEST_FILE,
    SIGNATURE_DOMAIN,
    SIGNATURE_FILE,
    Manifest,
    Shard,
    tokenizer_digest,
)
from transom.enclave.owner import Owner
from transom.enclave.policy import Rule
from transom.enclave.source import InsecureDevEvidence
from transom.errors import BundleError, EvidenceError, MisconfiguredError
from transom.net.pin import make_certificate, parse_pin

COMMAND = """
from transom.cli.app import App
from transom.cli.broker import broker, broker_log
app = App()
app.command()(broker)
app.command()(broker_log)
app()
"""
WORDS = "ab" * 32


@dataclass(frozen=True)
class Shop:
    """An owner's folder, one signed bundle, a policy, a certificate."""

    folder: Path
    owner: Owner
    manifest: Manifest
    data_key: bytes

    def options(self, **changed: str) -> list[str]:
        given = {
            "owner": "owner",
            "bundle": "bundle",
            "evidence-policy": "policy.yaml",
            "tls-cert": "tls/tls.pem",
            "tls-key": "tls/tls.key",
            "log": "release.log",
        } | changed
        paths = [(f"--{name}", str(self.folder / value)) for name, value in given.items()]
        return [*(word for pair in paths for word in pair), "--port", "0"]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    owner = Owner(tmp_path / "owner")
    files = {"tokenizer.json": "cd" * 32}
    manifest = Manifest(
        bundle=secrets.token_hex(16),
        model="tiny",
        production=False,
        rows=4,
        width=2,
        dtype="F32",
        shards=(Shard("embedding-00001.enc", 0, 4, "ef" * 32, 12 + 32 + 16),),
        files=files,
        tokenizer_sha256=tokenizer_digest(files),
        policy_sha256=WORDS,
        rules=(Rule("insecure-dev"),),
        server_pins=(),
        extraction_share=0.25,
        created="2030-01-01T00:00:00+00:00",
    )
    key = secrets.token_bytes(32)
    owner.keep_data_key(manifest.bundle, key)
    client = tmp_path / "bundle" / "client"
    client.mkdir(parents=True)
    (client / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    (client / SIGNATURE_FILE).write_bytes(owner.sign(SIGNATURE_DOMAIN + manifest.to_bytes()))
    (tmp_path / "policy.yaml").write_text("allow: [{kind: insecure-dev}]\n")
    make_certificate(tmp_path / "tls")
    return Shop(tmp_path, owner, manifest, key)


@contextmanager
def serving(shop: Shop, *more: str) -> Iterator[tuple[str, str, list[str]]]:
    """The command in a process of its own: its URL, its pin, and (at the end) all it said."""
    said: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "broker", *shop.options(), *more],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        while True:
            line = process.stderr.readline()
            assert line, "".join(said)
            said.append(line)
            if found := re.search(r"serving at (\S+) with the TLS key (\S+);", line):
                break
        yield found[1], found[2], said
    finally:
        process.send_signal(signal.SIGTERM)
        said += process.communicate(timeout=30)[1].splitlines()


def ask(shop: Shop, url: str, pin: str) -> Any:
    return asyncio.run(
        obtain_key(
            url,
            shop.manifest,
            shop.owner.public_key,
            InsecureDevEvidence(),
            WORDS,
            ssl=parse_pin(pin),
            allow_insecure_dev=True,
        )
    )


def test_the_command_releases_a_key_says_trust_and_leaves_a_verified_log(shop: Shop) -> None:
    with serving(shop, "--allow-insecure-dev") as (url, pin, said):
        assert ask(shop, url, pin).data_key == shop.data_key
    text = "\n".join(said)
    assert shop.manifest.bundle in text
    assert re.search(r"INFO key released bundle=\w+ kind=insecure-dev trust=none", text)
    assert shop.data_key.hex() not in text
    result = run("broker-log", str(shop.folder / "release.log"), "--json")
    assert json.loads(result.output)["entries"] == 1


def test_without_the_flag_the_command_refuses_insecure_dev_and_logs_it(shop: Shop) -> None:
    with serving(shop) as (url, pin, said), pytest.raises(EvidenceError, match="not told to accept it"):
        ask(shop, url, pin)
    assert "WARNING key refused" in "\n".join(said)
    assert "1 entries, unbroken" in run("broker-log", str(shop.folder / "release.log")).output


def run(*arguments: str) -> Result:
    app = App()
    app.command()(broker)
    app.command()(broker_log)
    return CliRunner().invoke(app, arguments)


def error_of(result: Result, kind: type[Exception]) -> str:
    assert type(result.exception) is kind, result.exception
    return str(result.exception)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"owner": "absent"}, MisconfiguredError, "give the owner's folder"),
        ({"bundle": "absent"}, BundleError, "give a bundle made by pack"),
        ({"evidence-policy": "absent"}, MisconfiguredError, "cannot read the evidence policy"),
        ({"tls-key": "tls/tls.pem"}, MisconfiguredError, "cannot serve TLS"),
        ({"log": "absent/log"}, MisconfiguredError, "cannot make the release log"),
        ({"log": "policy.yaml"}, MisconfiguredError, "broken at line 1"),
    ],
)
def test_it_does_not_start_with_a_broken_setting(
    shop: Shop, changed: dict[str, str], kind: type[Exception], words: str
) -> None:
    assert words in error_of(run("broker", *shop.options(**changed)), kind)
    assert not (shop.folder / "absent").exists()


def test_it_does_not_start_for_another_owners_bundle_or_without_the_data_key(shop: Shop) -> None:
    Owner(shop.folder / "stranger")
    assert "not signed by this owner" in error_of(run("broker", *shop.options(owner="stranger")), BundleError)
    (shop.folder / "owner/keys" / f"{shop.manifest.bundle}.key").unlink()
    assert "no key for the bundle" in error_of(run("broker", *shop.options()), BundleError)


def test_a_tampered_log_is_reported_with_its_line(tmp_path: Path) -> None:
    log = ReleaseLog(tmp_path / "log")
    for reason in ("first", "second", "third"):
        log.append(Attempt(reason=reason))
    text = log.path.read_text()
    assert json.loads(run("broker-log", str(log.path), "--json").output)["entries"] == 3
    log.path.write_text(text.replace("second", "sEcond"))
    assert "line 2" in error_of(run("broker-log", str(log.path)), MisconfiguredError)
