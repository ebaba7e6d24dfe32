"""The suite tells what it leaves out, and why, where a reader looks: in its last lines."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from .enclave.swtpm_fixtures import PACKAGES

ROOT = Path(__file__).parents[1]
SKIPS = {  # where a test may be skipped, and what it then lacks
    "audit/test_traffic_attacks.py": "SST-2",
    "enclave/conftest.py": "attestation samples",
    "enclave/swtpm_fixtures.py": "not installed",
    "enclave/test_bundle.py": "root",
    "enclave/test_table.py": "/proc/self/smaps",
    "gateway/test_vllm.py": "TRANSOM_VLLM_PYTHON",
    "obfuscation/test_writer.py": "Ray is absent; run: pip install",
}


def test_without_the_tpm_tools_the_last_lines_say_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/enclave/test_tpm2.py"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.splitlines()[-3:] if "skipped: not installed: swtpm" in line)
    assert int(line.split()[0]) > 20
    assert line.endswith(f"to bring them: apt-get install {PACKAGES}")


def test_what_continuous_integration_installs_is_what_that_line_says() -> None:
    assert PACKAGES in (ROOT / ".ci/run").read_text()


def test_tests_are_skipped_only_where_a_reason_names_what_is_wanting() -> None:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("skip", "skipif", "importorskip"):
                found[path.relative_to(ROOT / "tests").as_posix()] = path.read_text()
    assert found.keys() == SKIPS.keys()
    assert all(reason in found[name] for name, reason in SKIPS.items())
