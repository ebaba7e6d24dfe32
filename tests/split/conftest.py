"""Tiny models that are tuned in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from transom.checkpoint.tiny import tiny_bert, tiny_llama


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))
