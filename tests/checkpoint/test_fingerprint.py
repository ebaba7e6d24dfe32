"""A model's fingerprint: of what it computes with, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from transom.checkpoint.fingerprint import fingerprint
from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama


def test_the_same_weights_have_one_fingerprint_wherever_they_lie(tmp_path: Path) -> None:
    first, again = (load(tiny_llama(tmp_path / name)).model for name in ("a", "b"))
    assert fingerprint(first) == fingerprint(again)
    assert len(fingerprint(first)) == 64


def test_one_number_another_type_or_another_order_is_another_model(tmp_path: Path) -> None:
    model = load(tiny_llama(tmp_path)).model
    before = fingerprint(model)
    half = fingerprint(load(tmp_path, dtype="bfloat16").model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[-1] += 1e-3
    found = {before, half, fingerprint(model), fingerprint(model, model), fingerprint()}
    assert len(found) == 5
