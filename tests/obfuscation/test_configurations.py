"""Obfuscated folders and our engine answer as transformers does on the source, whatever its flags say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from transom.errors import NotYetError
from transom.obfuscation.plain import open_source

from .configurations import FAMILIES, build, covering, error, exactly, singles


@pytest.fixture(autouse=True)
def _not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of folders are written here, for a moment each."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def _is_refused(family: str, options: dict[str, Any]) -> bool:
    """Windows on Qwen2, whose obfuscated copy is a Llama, which has none."""
    return (
        family == "Qwen2"
        and options["use_sliding_window"]
        and options["max_window_layers"] < options["num_hidden_layers"]
    )


@pytest.mark.parametrize("how", ["one at a time", "in pairs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_flags_varied(family: str, how: str, tmp_path: Path) -> None:
    sizes, flags = FAMILIES[family]
    alone = how == "one at a time"
    for number, varied in enumerate(singles(flags) if alone else covering(flags)):
        options, folder = sizes | varied, tmp_path / str(number)
        model = build(family, options, folder / "source")
        if _is_refused(family, options):
            with pytest.raises(NotYetError, match="its answers change"):
                open_source(folder / "source")
            continue
        _plain, key = exactly(folder / "source", folder / "out")
        assert error(model, folder / "source", folder / "out", key, both=alone) < 1e-4, varied
