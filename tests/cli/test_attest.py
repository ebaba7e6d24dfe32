"""`transom attest`, and `transom engine` over TLS: the commands as typed, in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli.attest import app
from transom.enclave.policy import EvidencePolicy, Rule
from transom.errors import EvidenceError, MisconfiguredError
from transom.net.pin import parse_pin, spki_sha256
from transom.serving.engines.base import Call
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.evidence import EvidenceGuard
from transom.serving.engines.http import Pinned

ATTEST = "import sys; from transom.cli.attest import app; app(sys.argv[1:])"
ENGINE = "import sys; from transom.cli.main import app; app(['engine', *sys.argv[1:]])"


@contextmanager
def running(code: str, *arguments: str) -> Iterator[tuple[str, str]]:
    """A command in its own process: (the URL it announces, its whole announcement)."""
    command = [sys.executable, "-c", code, *arguments, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"https?://\S+?(?=/v1|;|\s)", line)
        assert found, line + process.stderr.read()
        yield found[0], line
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


def certificate(folder: Path) -> tuple[list[str], str]:
    """TLS options, and the pin that `transom attest cert` printed."""
    result = CliRunner().invoke(app, ["cert", "--out", str(folder), "--name", "gpu.example"])
    assert result.exit_code == 0, result.output
    return [
        "--tls-cert",
        str(folder / "tls.pem"),
        "--tls-key",
        str(folder / "tls.key"),
    ], result.output.strip()


async def test_certificate_engine_and_companion_fit_together(tmp_path: Path) -> None:
    tls, pin = certificate(tmp_path / "key")
    _, other_pin = certificate(tmp_path / "other")
    policy = EvidencePolicy(allow=(Rule("insecure-dev"),))
    call = Call(prompts=((1, 2),), max_tokens=3)
    with (
        running(ENGINE, "echo", "--width", "4", *tls) as (url, said),
        running(ATTEST, "serve", "--evidence", "insecure-dev", *tls) as (evidence_url, vouched),
    ):
        assert "TLS" in said
        assert pin in vouched
        assert "trust=none" in vouched
        guards = [
            Pinned(parse_pin(pin)),
            EvidenceGuard(evidence_url, policy, allow_insecure_dev=True, timeout_s=20),
        ]
        for guard in guards:
            client = IdsEngine(url, guard=guard)
            assert (await client.probe()).width == 4
            assert [delta.ids async for delta in client.generate(call)] == [(1, 2, 1)]
            await client.close()
        client = IdsEngine(url, guard=Pinned(parse_pin(other_pin)))
        with pytest.raises(EvidenceError):
            await client.probe()
        await client.close()


def test_a_certificate_is_never_written_over(tmp_path: Path) -> None:
    _, pin = certificate(tmp_path)
    before = (tmp_path / "tls.key").read_bytes()
    result = CliRunner().invoke(app, ["cert", "--out", str(tmp_path)])
    assert isinstance(result.exception, MisconfiguredError)
    assert (tmp_path / "tls.key").read_bytes() == before
    assert (tmp_path / "tls.key").stat().st_mode & 0o777 == 0o600
    import ssl

    der = ssl.PEM_cert_to_DER_cert((tmp_path / "tls.pem").read_text())
    assert parse_pin(pin).fingerprint == spki_sha256(der)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--evidence", "tpm2"],
        ["--evidence", "tpm2", "--tpm-key", "0x81010001", "--tpm-pcrs", "sha1:0"],
        ["--evidence", "insecure-dev", "--host", "0.0.0.0"],
        ["--evidence", "insecure-dev", "--tls-key", "OTHER"],
        ["--evidence", "insecure-dev", "--tls-cert", "/nowhere/tls.pem"],
    ],
)
def test_settings_that_cannot_work_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.cli.attest.serve_app", lambda *_: pytest.fail("it would have served"))
    tls, _ = certificate(tmp_path / "key")
    certificate(tmp_path / "other")
    arguments = [str(tmp_path / "other" / "tls.key") if one == "OTHER" else one for one in arguments]
    result = CliRunner().invoke(app, ["serve", *tls, *arguments, "--port", "0"])
    assert isinstance(result.exception, MisconfiguredError), result.output


@pytest.mark.parametrize("given", ["--tls-cert", "--tls-key"])
def test_an_engine_wants_certificate_and_key_together(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transom.cli.app import App
    from transom.cli.engine import engine

    monkeypatch.setattr("transom.cli.engine.serve", lambda *_: pytest.fail("it would have served"))
    command = App()
    command.command()(engine)
    result = CliRunner().invoke(command, ["echo", "--port", "0", given, "/nowhere"])
    assert isinstance(result.exception, MisconfiguredError)
    assert "--tls-cert and --tls-key" in str(result.exception)
