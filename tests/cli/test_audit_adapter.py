"""`transom audit adapter`: what is reported, the gate, what is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_llama
from transom.cli import main
from transom.cli.app import App
from transom.cli.audit_adapter import adapter
from transom.errors import CheckpointError, MisconfiguredError

LINE = "audit adapter adapter --base base --members in.txt --non-members out.txt"
LAYER = "model.layers.2.mlp.down_proj"


def write_texts(name: str, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lines = ["".join(draw.choice([*"abcdefgh "], 20)).strip() or "a" for _ in range(count)]
    Path(name).write_text("\n".join(lines))


def write_adapter(b_OR: torch.Tensor, a_RD: torch.Tensor | None = None, **config: Any) -> None:
    Path("adapter").mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "bias": "none"} | config
    Path("adapter/adapter_config.json").write_text(json.dumps(settings))
    a_RD = torch.ones(2, 64) if a_RD is None else a_RD
    names = (f"base_model.model.{LAYER}.lora_{letter}.weight" for letter in "AB")
    save_file(dict(zip(names, (a_RD, b_OR), strict=True)), "adapter/adapter_model.safetensors")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, group = App(), App()
    root.callback()(lambda: None)
    group.callback()(lambda: None)
    group.command()(adapter)
    root.add_typer(group, name="audit")
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("base"))
    write_texts("in.txt", 30, seed=3)
    write_texts("out.txt", 40, seed=2)
    write_adapter(torch.zeros(32, 2))


def reported(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(f"{line} --json".split()) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_an_untrained_adapter_is_reported_at_chance(capsys: pytest.CaptureFixture[str]) -> None:
    record = reported(capsys, f"{LINE} --html page.html --sarif log.json")
    assert [(one["name"], one["status"]) for one in record["findings"]] == [
        ("membership/ratio", "run"),
        ("membership/ratio", "run"),
        ("membership/min-k", "run"),
        ("membership/min-k", "run"),
    ]
    assert all(one["low"] <= one["baseline"] <= one["high"] for one in record["findings"])
    assert record["target"]["members"] == 30
    assert Path("page.html").stat().st_mode & 0o077 == 0
    assert Path("log.json").exists()


def test_an_adapter_that_moves_members_is_found_and_shuts_the_gate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step down the loss of the members, found by its gradient, is enough to lift them all."""
    loaded = load("base")
    assert loaded.tokenizer is not None
    Path("in.txt").write_text("\n".join(["aaaa bbbb"] * 20))
    ids = torch.tensor([[1, *loaded.tokenizer.tokenizer.encode("aaaa bbbb").ids]])
    weight = loaded.model.get_submodule(LAYER).weight.requires_grad_(True)
    loaded.model(ids, labels=ids).loss.backward()
    assert weight.grad is not None
    u, s, v = torch.linalg.svd(-weight.grad, full_matrices=False)
    write_adapter((u[:, :2] * s[:2]).contiguous(), v[:2].contiguous())
    record = reported(capsys, f"{LINE} --gate 0.1", 20)
    assert record["findings"][0]["value"] > 0.9
    assert record["passed"] is False


@pytest.mark.parametrize("how", ["empty", "one", "kind", "pickle", "other base"])
def test_what_does_not_fit_is_not_run_and_still_reported(
    capsys: pytest.CaptureFixture[str], how: str
) -> None:
    if how in ("empty", "one"):
        Path("in.txt").write_text("" if how == "empty" else "a b c")
    elif how == "pickle":
        Path("adapter/adapter_model.safetensors").rename("adapter/adapter_model.bin")
    else:
        write_adapter(torch.zeros(31 if how == "other base" else 32, 2), use_dora=how == "kind")
    record = reported(capsys, f"{LINE} --gate 0.5", 20)
    assert {one["status"] for one in record["findings"]} == {"not run"}
    assert all(one["reason"] for one in record["findings"])
    assert record["worst"] is None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (LINE.replace("--base base", "--base absent"), CheckpointError),
        (LINE.replace("in.txt", "absent.txt"), MisconfiguredError),
        (f"{LINE} --attack guess", MisconfiguredError),
        (f"{LINE} --html absent/page.html", MisconfiguredError),
    ],
)
def test_wrong_settings_are_refused(line: str, error: type[MisconfiguredError]) -> None:
    assert main.run(line.split()) == error.exit_code
