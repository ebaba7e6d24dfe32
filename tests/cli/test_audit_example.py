"""The sample build in examples/ci: its very commands pass, and fail for a mechanism that breaks its claim."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from transom.audit.attacks import causal
from transom.cli import main
from transom.errors import MissingExtraError

SAMPLE = Path(__file__).parents[2] / "examples/ci"
BUILD = yaml.safe_load((SAMPLE / "audit-gate.yml").read_text())
LINES = [
    step["run"] for step in BUILD["jobs"]["audit"]["steps"] if step.get("run", "").startswith("transom ")
]


@pytest.fixture(autouse=True)
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(SAMPLE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def absent(_source: str) -> NoReturn:
        raise MissingExtraError("models", "torch and transformers")

    monkeypatch.setattr(causal, "load_causal", absent)  # the build installs transom alone


def run(line: str) -> int:
    return main.run(shlex.split(line)[1:])


@pytest.mark.parametrize("line", LINES)
def test_the_builds_own_commands_pass_and_leave_reports(line: str) -> None:
    assert "--gate" in line
    assert run(line) == 0
    for written in re.findall(r"--(?:html|sarif) (\S+)", line):
        assert Path(written).stat().st_size > 1000


def test_a_mechanism_that_breaks_its_claim_fails_the_build() -> None:
    source = Path("survey_noise.py").read_text()
    broken = source.replace("TRUTHFUL = 0.73", "TRUTHFUL = 0.8")
    assert broken != source
    Path("survey_noise.py").write_text(broken)
    (line,) = [line for line in LINES if "survey_noise" in line]
    assert run(line) == 20
    assert Path("epsilon.html").exists()


def test_a_setting_that_hides_little_fails_the_build() -> None:
    (line,) = [line for line in LINES if "audit words" in line]
    assert run(line.replace("--epsilon 1", "--epsilon 8")) == 20
    assert Path("words.html").exists()


def test_the_readmes_commands_pass() -> None:
    named = re.findall(r"^\$ (transom .+)$", (SAMPLE / "README.md").read_text(), re.MULTILINE)
    assert named
    assert [run(line) for line in named] == [0] * len(named)
