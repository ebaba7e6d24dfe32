"""`transom audit embeddings`: rows from a file or made here, each kind, the gate, what is not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.cli import main
from transom.cli.app import App
from transom.cli.audit_embeddings import embeddings, parse_noise, split
from transom.errors import CheckpointError, MisconfiguredError, NotYetError

WORDS = ["fox", "dog", "model", "brown", "lazy", "person", "why", "weather", "question", "quick", "tell"]
MADE = "audit embeddings --model llama --texts plain.txt --prior own.txt"
READ = "audit embeddings rows.safetensors --model llama --texts plain.txt"


def write_texts(name: str, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lines = (" ".join(draw.choice(WORDS, draw.integers(3, 6))) for _ in range(count))
    Path(name).write_text("\n".join(lines))


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, group = App(), App()
    root.callback()(lambda: None)
    group.callback()(lambda: None)
    group.command()(embeddings)
    root.add_typer(group, name="audit")
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("llama"), num_hidden_layers=1)
    write_texts("plain.txt", 12, seed=1)
    write_texts("own.txt", 300, seed=2)


def rows_of(plain: str = "plain.txt") -> list[torch.Tensor]:
    loaded = load("llama")
    assert loaded.tokenizer is not None
    table = loaded.model.get_input_embeddings().weight.detach()
    encode = loaded.tokenizer.tokenizer.encode
    return [table[encode(line).ids] for line in Path(plain).read_text().split("\n")]


def reported(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(f"{line} --json".split()) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def by_name(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {", ".join(filter(None, (one["name"], one["setting"]))): one for one in record["findings"]}


def test_bare_rows_are_read_and_noise_is_swept(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{MADE} --noise none --noise gaussian:0.3 --noise gaussian:90 --budget 0.5 --gate 0.9"
    record = reported(capsys, f"{line} --attack nn --attack beam --html page.html", 20)
    found = by_name(record)
    assert found["nn, none"]["value"] == found["beam, none"]["value"] == 1.0
    assert found["nn, gaussian:0.3"]["value"] > found["nn, gaussian:90"]["value"]
    assert found["nn, gaussian:90"]["low"] <= found["nn, gaussian:90"]["baseline"]
    assert record["target"]["noise"] == "none, gaussian:0.3, gaussian:90"
    assert record["target"]["made here"] is True
    assert Path("page.html").stat().st_mode & 0o077 == 0
    assert "fox" in Path("page.html").read_text()


@pytest.mark.parametrize("shape", ["flat", "padded"])
def test_rows_of_a_file_are_read_and_their_noise_estimated(
    capsys: pytest.CaptureFixture[str], shape: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [row + 0.05 * torch.randn(row.shape, generator=draw) for row in rows_of()]
    made = torch.cat(rows) if shape == "flat" else torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    save_file({"embeddings": made, "other": torch.zeros(1)}, "rows.safetensors")
    found = by_name(reported(capsys, f"{READ} --noise gaussian --attack nn --attack beam --budget 0.5"))
    assert found["nn"]["value"] > 0.9
    assert "noise of scale 0.05" in found["beam"]["note"]
    assert len(found["nn"]["examples"]) == 10


def test_the_trained_inverter_and_the_descent_run_on_hidden_states(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = by_name(reported(capsys, f"{MADE} --kind hidden --budget 0.1"))
    assert set(found) == {"nn", "ima", "isa/hidden"}
    assert found["ima"]["low"] > found["ima"]["baseline"]
    assert found["isa/hidden"]["status"] == "run"


def test_embeddings_of_sentences_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bert(Path("bert"), hidden_size=64, num_hidden_layers=1)
    line = "audit embeddings --kind sentence --model bert --texts plain.txt --prior own.txt --limit 3"
    record = reported(capsys, f"{line} --budget 0.3")
    words, searched = record["findings"]
    assert words["status"] == searched["status"] == "run"
    assert searched["value"] > words["baseline"]
    plain = Path("plain.txt").read_text().split("\n")[:3]
    own = Path("own.txt").read_text().split("\n")
    assert record["target"]["attacker's texts"] == sum(text not in plain for text in own)


@pytest.mark.parametrize("how", ["nan", "width", "short", "empty texts", "no texts in file"])
def test_what_does_not_fit_is_not_run_and_still_reported(
    capsys: pytest.CaptureFixture[str], how: str
) -> None:
    rows = torch.cat(rows_of())
    if how == "nan":
        rows[3, 2] = float("nan")
    elif how == "empty texts":
        Path("plain.txt").write_text("\n \n")
    made = {"width": rows[:, :7], "short": rows[:5], "no texts in file": rows[:0]}.get(how, rows)
    save_file({"embeddings": made.contiguous()}, "rows.safetensors")
    record = reported(capsys, f"{READ} --html page.html --gate 1", 20)
    assert {one["status"] for one in record["findings"]} == {"not run"}
    assert all(one["reason"] for one in record["findings"])
    assert Path("page.html").exists()


def test_one_short_text_is_audited_with_an_interval_that_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("plain.txt").write_text("a")
    found = by_name(reported(capsys, f"{MADE} --attack nn"))
    assert found["nn"]["n"] == 1
    assert found["nn"]["high"] - found["nn"]["low"] > 0.9


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (f"{MADE} --noise gaussian", MisconfiguredError),
        (f"{MADE} --noise gaussian:much", MisconfiguredError),
        (f"{MADE} --noise uniform:1", MisconfiguredError),
        (f"{MADE} --noise gaussian:-1", MisconfiguredError),
        (f"{READ} --noise gaussian:1 --noise gaussian:2", MisconfiguredError),
        (f"{READ} --kind hidden --noise gaussian", MisconfiguredError),
        (READ.replace("rows.safetensors", "absent.safetensors"), MisconfiguredError),
        (READ.replace("rows.safetensors", "plain.txt"), MisconfiguredError),
        (READ.replace("rows.safetensors", "two.safetensors"), MisconfiguredError),
        (READ.replace("rows.safetensors", "flat.safetensors"), MisconfiguredError),
        (MADE.replace("plain.txt", "absent.txt"), MisconfiguredError),
        (MADE.replace("llama", "absent"), CheckpointError),
        (f"{MADE} --kind hidden --layer 9", MisconfiguredError),
        (f"{MADE} --kind sentence", MisconfiguredError),
        (f"{MADE} --attack guess", MisconfiguredError),
    ],
)
def test_wrong_settings_are_refused(line: str, error: type[MisconfiguredError]) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, "two.safetensors")
    save_file({"a": torch.zeros(5)}, "flat.safetensors")
    assert main.run(line.split()) == error.exit_code


def test_hidden_states_are_read_of_causal_models_only() -> None:
    tiny_bert(Path("bert"))
    assert main.run([*MADE.replace("llama", "bert").split(), "--kind", "hidden"]) == NotYetError.exit_code


def test_noise_is_parsed() -> None:
    noise = parse_noise("norm:0.25", 2.0)
    assert (noise.law, noise.scale, noise.clip) == ("norm", 0.25, 2.0)
    assert parse_noise("none", None).scale is None


def test_rows_are_dealt_to_their_texts() -> None:
    rows = torch.arange(12.0).view(6, 2)
    assert [tuple(part[:, 0].tolist()) for part in split(rows, [1, 3])] == [(0.0,), (2.0, 4.0, 6.0)]
    assert [len(part) for part in split(rows, [4, 4])] == [4, 2]
    assert [len(part) for part in split(torch.zeros(2, 5, 3), [2, 5])] == [2, 5]
