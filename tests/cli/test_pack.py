"""`transom pack` and `transom pack verify`: what is printed, the exit codes, what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.cli import pack as pack_command
from transom.cli.app import App
from transom.enclave.bundle import verify_bundle
from transom.enclave.owner import Owner, load_owner_key
from transom.errors import BundleError, CheckpointError, MisconfiguredError, PolicyError
from transom.net.pin import format_pin
from transom.privacy.policy import load_policy

MEASUREMENT = "ab" * 48
SNP_POLICY = f"allow:\n  - kind: snp\n    registers: {{measurement: '{MEASUREMENT}'}}\n    min_svn: 3\n"
DEV_POLICY = "allow:\n  - kind: insecure-dev\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = App()
    root.callback()(lambda: None)
    root.add_typer(pack_command.app, name="pack")
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("tiny"))


def run(line: str) -> int:
    return main.run(line.split())


def made(capsys: pytest.CaptureFixture[str], line: str) -> dict[str, Any]:
    assert run(f"{line} --json") == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    value: dict[str, Any] = json.loads(captured.out)
    return value


@pytest.mark.parametrize(
    "line",
    [
        "pack tiny --out b --owner keys",
        "pack --out b --owner keys tiny",
        "pack make tiny --out b --owner keys",
        "pack ./tiny --out b --owner keys",
    ],
)
def test_pack_then_verify(capsys: pytest.CaptureFixture[str], line: str) -> None:
    record = made(capsys, line)
    manifest = verify_bundle("b", load_owner_key("keys/owner.pub"))
    assert record == {
        "path": "b",
        "bundle": manifest.bundle,
        "model": "tiny",
        "production": False,
        "rows": manifest.rows,
        "width": 32,
        "dtype": "F32",
        "shards": 1,
        "size_bytes": 12 + manifest.rows * 32 * 4 + 16,
        "policy_sha256": load_policy(None).sha256,
        "rules": [],
        "server_pins": [],
        "extraction_share": 0.25,
        "created": manifest.created,
        "manifest_sha256": manifest.sha256,
    }
    assert len(Owner("keys", create=False).data_key(manifest.bundle)) == 32
    for half in ("b", "b/client"):
        assert made(capsys, f"pack verify {half} --owner-key keys/owner.pub") == record | {"path": half}


def test_the_options_reach_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    Path("snp.yaml").write_text(SNP_POLICY)
    first, second = format_pin(bytes(32)), format_pin(bytes(range(32)))
    options = (
        f"--production --evidence-policy snp.yaml --name served --server-pin {first} --server-pin {second}"
    )
    record = made(capsys, f"pack tiny --out b --owner keys {options}")
    assert (record["production"], record["model"], record["server_pins"]) == (True, "served", [first, second])
    (rule,) = record["rules"]
    assert (rule["kind"], rule["registers"], rule["min_svn"]) == ("snp", {"measurement": MEASUREMENT}, 3)


def test_people_are_told_whom_it_opens_for(capsys: pytest.CaptureFixture[str]) -> None:
    Path("dev.yaml").write_text(DEV_POLICY)
    assert run("pack tiny --out b --owner keys --evidence-policy dev.yaml") == 0
    assert run("pack verify b --owner-key keys/owner.pub") == 0
    shown = capsys.readouterr().out
    assert shown.count("(development)") == shown.count("opens for insecure-dev") == 2
    assert run("pack tiny --out c --owner keys") == 0
    assert "opens for nobody yet" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("pack tiny --out taken --owner keys", MisconfiguredError),
        ("pack tiny --out b --owner keys --production", MisconfiguredError),
        ("pack tiny --out b --owner keys --production --evidence-policy dev.yaml", MisconfiguredError),
        ("pack tiny --out b --owner keys --evidence-policy absent.yaml", MisconfiguredError),
        ("pack tiny --out b --owner keys --server-pin sha256//AA==", MisconfiguredError),
        ("pack tiny --out b --owner keys --policy dev.yaml", PolicyError),
        ("pack absent --out b --owner keys", CheckpointError),
        ("pack taken --out b --owner keys", CheckpointError),
    ],
)
def test_refusals_have_their_exit_code_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], line: str, error: type[MisconfiguredError]
) -> None:
    Path("taken").mkdir()
    Path("dev.yaml").write_text(DEV_POLICY)
    assert run(line) == error.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("transom: misconfigured: ")
    assert not list(Path.cwd().glob("b*"))
    assert not list(Path("taken").iterdir())


@pytest.mark.parametrize(
    "line", ["pack tiny", "pack tiny --out b", "pack verify b", "pack", "pack tiny x --out b"]
)
def test_usage_errors_are_2(line: str) -> None:
    assert run(line) == 2


def test_verify_has_exit_codes_for_each_failure(capsys: pytest.CaptureFixture[str]) -> None:
    made(capsys, "pack tiny --out b --owner keys")
    made(capsys, "pack tiny --out c --owner others")
    assert run("pack verify b --owner-key others/owner.pub") == BundleError.exit_code == 13
    assert run("pack verify absent --owner-key keys/owner.pub") == 13
    assert run("pack verify b --owner-key absent.pub") == MisconfiguredError.exit_code == 3
    assert run("pack verify b --owner-key keys/signing.key") == 3
    assert capsys.readouterr().out == ""
    shard = Path("b/client/embedding-00001.enc")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run("pack verify b --owner-key keys/owner.pub --json") == 13
    captured = capsys.readouterr()
    assert (captured.out, shard.name in captured.err) == ("", True)


def test_leftovers_of_a_killed_packing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.partial-0123abcd").mkdir()
    Path("bb.partial-0123abcd").mkdir()
    assert run("pack tiny --out b --owner keys") == 0
    told = capsys.readouterr().err
    assert "b.partial-0123abcd" in told
    assert "bb.partial" not in told
    assert Path("b.partial-0123abcd").is_dir()


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack --help") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in (" make ", " verify ", "transom pack MODEL"))


def test_what_cannot_be_written_is_known_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    assert run("pack absent --out file/bundle --owner keys") == MisconfiguredError.exit_code
    assert "cannot write" in capsys.readouterr().err
    assert not Path("keys").exists()
