"""The fakes are the same in every process: what a test says of one does not depend on where it ran."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from transom.checkpoint import tiny


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("make", ["tiny_bert", "tiny_llama"])
def test_a_fake_is_the_same_in_another_process(tmp_path: Path, make: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    getattr(tiny, make)(here)
    script = (
        f"from pathlib import Path; from transom.checkpoint.tiny import {make}; {make}(Path({str(there)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert digests(here) == digests(there)
