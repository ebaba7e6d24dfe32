"""The folder with real attestation samples: TRANSOM_DATA names its parent; otherwise it lies beside the tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def attestation_folder() -> Path:
    """Where the real SGX, TDX and SEV-SNP samples lie. Skips, saying where it looked, if they are absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("TRANSOM_DATA", beside)) / "attestation"
    if not folder.is_dir():
        pytest.skip(f"no attestation samples in {folder}; set TRANSOM_DATA to the folder that holds them")
    return folder
