"""The real attestation samples: folder attestation/ of TRANSOM_DATA, or of shared/data beside the tree."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from transom.enclave.evidence import Evidence


@pytest.fixture(scope="session")
def attestation_folder() -> Path:
    """Where the real SGX, TDX and SEV-SNP samples lie. Skips, saying where it looked, if they are absent."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("TRANSOM_DATA", beside)) / "attestation"
    if not folder.is_dir():
        pytest.skip(f"no attestation samples in {folder}; set TRANSOM_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def samples(attestation_folder: Path) -> Mapping[str, Evidence]:
    """Evidence from real machines, by kind."""

    def read(name: str) -> bytes:
        return (attestation_folder / name).read_bytes()

    chain = read("snp_milan.testcer").split(b"-----BEGIN CERTIFICATE-----")[1:]
    ask, ark = (base64.b64decode(b"".join(one.split(b"-----END")[0].split())) for one in chain)
    vcek = read("snp_vcek.testcer")
    return {
        "snp": Evidence("snp", {"report": read("snp_attestation.bin"), "vcek": vcek, "ask": ask, "ark": ark}),
        "sgx": Evidence("sgx", {"quote": read("sgx_quote"), "collateral": read("sgx_quote_collateral.json")}),
        "tdx": Evidence("tdx", {"quote": read("tdx_quote"), "collateral": read("tdx_quote_collateral.json")}),
    }


@pytest.fixture(scope="session")
def sample_time() -> datetime:
    """When all samples are valid: Intel signed the collateral for a month from 2025-06-19."""
    return datetime(2025, 6, 25, 12, tzinfo=UTC)
