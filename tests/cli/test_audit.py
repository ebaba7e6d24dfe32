"""`transom audit checkpoint` and `transom audit traffic`: what is reported, the gate, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from transom.audit.attacks.traffic import conceal
from transom.checkpoint.tiny import tiny_llama
from transom.cli import audit, audit_checkpoint, main, obfuscate
from transom.cli.app import App
from transom.cli.audit_keys import template_ids
from transom.cli.audit_report import GATE_EXIT
from transom.errors import CheckpointError, MisconfiguredError
from transom.obfuscation.keyfile import KeyFile, new_key, save_key
from transom.obfuscation.keys import preset, token_map
from transom.serving.tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = App()
    root.callback()(lambda: None)
    root.add_typer(audit.app, name="audit")
    root.command()(obfuscate.obfuscate)
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    tiny_llama(Path("base"))


def run(line: str) -> int:
    return main.run(line.split())


def reported(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(f"{line} --json") == code
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    value: dict[str, Any] = json.loads(captured.out)
    return value


@pytest.fixture
def key() -> KeyFile:
    made = new_key("0" * 64, load_tokenizer("base").vocab_size, preset("exact", h=8))
    save_key("key", made)
    return made


@pytest.fixture
def permuted(key: KeyFile) -> Path:
    """Ids permuted, weights as they were: the weakest of protections."""
    shutil.copytree("base", "permuted")
    plain_V = torch.from_numpy(np.argsort(token_map(key.secret, key.vocabulary)))
    weights = load_file(f"base/{WEIGHTS}")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][plain_V].contiguous()
    save_file(weights, f"permuted/{WEIGHTS}", metadata={"format": "pt"})
    return Path("permuted")


@pytest.fixture
def random_weights(key: KeyFile) -> Path:
    """A perfect defence, of no other use: another model altogether, whose ids mean nothing."""
    return tiny_llama(Path("random"), seed=5)


def test_every_attack_reports_on_a_bare_permutation(
    capsys: pytest.CaptureFixture[str], permuted: Path
) -> None:
    record = reported(
        capsys, "audit checkpoint permuted --base base --key key --tokens 64 --budget 0.7 --gate 0.05", 20
    )
    names = [finding["name"] for finding in record["findings"]]
    assert len(names) == len(audit_checkpoint.ATTACKS) + 1  # isa looks at two kinds of state
    values = {finding["name"]: finding["value"] for finding in record["findings"]}
    assert values["nn/cosine"] > 0.9
    assert values["ima"] > 0.9
    assert record["passed"] is False
    assert record["worst"]["high"] > 0.9


def test_a_gate_opens_for_weights_that_say_nothing(
    capsys: pytest.CaptureFixture[str], random_weights: Path
) -> None:
    line = "audit checkpoint random --base base --key key --attack nn --attack gate-ia --gate 0.05"
    record = reported(capsys, line)
    assert record["passed"] is True
    assert [finding["status"] for finding in record["findings"]] == ["run", "run"]
    assert reported(capsys, line.replace("0.05", "0"), 20)["passed"] is False


def test_a_gate_shuts_on_an_obfuscated_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    """What `transom obfuscate` makes hides nothing from a host with the base model, and the gate says so."""
    assert run("obfuscate base --out out --key secret --preset exact --workers 1 --no-audit") == 0
    line = "audit checkpoint out --base base --key secret --attack column-first --attack nn --gate 0.05"
    record = reported(capsys, line, GATE_EXIT)
    assert record["passed"] is False
    assert record["worst"]["name"] == "column-first VMA"
    assert record["worst"]["high"] > 0.5


def test_without_a_gate_findings_alone_do_not_fail(
    capsys: pytest.CaptureFixture[str], permuted: Path
) -> None:
    assert run("audit checkpoint permuted --base base --key key --attack nn") == 0
    printed = capsys.readouterr().out
    assert "nn/cosine" in printed
    assert "guessing" in printed
    assert reported(capsys, "audit checkpoint base --base base --attack nn")["worst"]["high"] == 1.0


def test_a_gate_stays_shut_when_nothing_ran(capsys: pytest.CaptureFixture[str], permuted: Path) -> None:
    tiny_llama(Path("other"), hidden_size=16)  # of the same vocabulary; its gate is as wide
    larger = load_file(f"other/{WEIGHTS}")
    larger = {name: torch.cat([w, w[:1]]) if len(w) == 399 else w for name, w in larger.items()}
    save_file(larger, f"other/{WEIGHTS}", metadata={"format": "pt"})
    line = "audit checkpoint permuted --base other --key key --attack nn --gate 1"
    record = reported(capsys, line, 20)
    assert record["findings"][0]["status"] == "not run"
    assert record["worst"] is None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("audit checkpoint permuted --base base --key key --attack guess", MisconfiguredError),
        ("audit checkpoint absent --base base --key key --attack nn", CheckpointError),
        ("audit checkpoint permuted --base base --key absent --attack nn", MisconfiguredError),
        ("audit checkpoint carded --base base --attack nn", MisconfiguredError),
        ("audit checkpoint carded --base base --key key --attack nn", MisconfiguredError),
        ("audit checkpoint permuted --base base --key smaller --attack nn", MisconfiguredError),
    ],
)
def test_what_cannot_be_scored_is_refused(
    capsys: pytest.CaptureFixture[str], permuted: Path, line: str, error: type[MisconfiguredError]
) -> None:
    shutil.copytree("base", "carded")
    Path("carded/transom-card.json").write_text("{}")
    save_key("smaller", new_key("0" * 64, 7, preset("exact", h=8)))
    assert run(line) == error.exit_code
    assert (out := capsys.readouterr().out) == "" or "Nothing was measured" in out


@pytest.fixture
def texts() -> list[str]:
    """Letters, each with its own favourites to follow: counts and neighbours tell them apart."""
    draw = np.random.default_rng(0)
    words = [*"abcdefghijklmnop"]
    shares = 0.75 ** np.arange(len(words))
    follow = draw.permuted(np.tile(shares / shares.sum(), (len(words), 1)), axis=1)
    lines = []
    for _ in range(1200):
        word, line = draw.integers(len(words)), []
        for _ in range(12):
            line.append(words[word])
            word = draw.choice(len(words), p=follow[word])
        lines.append(" ".join(line))
    return lines


def write_traffic(texts: list[str], key: KeyFile | None) -> None:
    tokenizer = load_tokenizer("base")
    ids = tuple(tokenizer.encode_text(text).ids for text in texts)
    if key is not None:
        ids = conceal(ids, token_map(key.secret, key.vocabulary))
    Path("ids.jsonl").write_text("\n".join(json.dumps(text) for text in ids))


LINE = "audit traffic ids.jsonl --tokenizer base --prior prior.txt"


@pytest.mark.parametrize("with_key", [True, False])
def test_traffic_is_read_with_and_without_a_key(
    capsys: pytest.CaptureFixture[str], key: KeyFile, texts: list[str], with_key: bool
) -> None:
    write_traffic(texts[:600], key if with_key else None)
    Path("prior.txt").write_text("\n".join(texts[600:]))
    record = reported(capsys, LINE + (" --key key" if with_key else ""))
    assert record["target"]["permuted_here"] is not with_key
    values = {(found["name"], found["metric"]): found["value"] for found in record["findings"]}
    assert values["sda/distribution", "recovery of tokens"] > 0.9
    assert values["sda/distribution", "BLEU-4"] > 0.5
    assert (
        values["tfma/none", "top-1 recovery of tokens"]
        < values["tfma/distribution", "top-1 recovery of tokens"]
    )


def test_the_gate_shuts_on_traffic_that_is_read(
    capsys: pytest.CaptureFixture[str], key: KeyFile, texts: list[str]
) -> None:
    write_traffic(texts[:600], key)
    Path("prior.txt").write_text("\n".join(texts[600:]))
    assert reported(capsys, LINE + " --key key --gate 0.2", 20)["worst"]["name"].startswith("sda")
    assert reported(capsys, LINE + " --key key --gate 1")["passed"] is True


def test_template_tokens_are_known_plaintext(capsys: pytest.CaptureFixture[str], key: KeyFile) -> None:
    tokenizer = load_tokenizer("base")
    chats = [tokenizer.encode_chat([("user", "why")]).ids] * 3
    known = template_ids(tokenizer)
    assert set(known) < set(chats[0])
    tau = token_map(key.secret, key.vocabulary)
    Path("ids.jsonl").write_text("\n".join(json.dumps(tau[list(ids)].tolist()) for ids in chats))
    Path("prior.txt").write_text("the weather")
    share = sum(token in known for token in chats[0]) / len(chats[0])
    record = reported(capsys, LINE + " --key key --template")
    values = {(found["name"], found["metric"]): found["value"] for found in record["findings"]}
    assert values["sda/distribution", "recovery of tokens"] >= share
    assert values["tfma/none", "top-1 recovery of tokens"] >= share


@pytest.mark.parametrize(
    ("ids", "prior"), [("[1, 2]\n[99999]", "text"), ("text", "text"), ("[1, 2]", ""), ("", "text")]
)
def test_bad_traffic_is_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], key: KeyFile, ids: str, prior: str
) -> None:
    Path("ids.jsonl").write_text(ids)
    Path("prior.txt").write_text(prior)
    assert run(LINE + " --key key") == MisconfiguredError.exit_code
    captured = capsys.readouterr()
    assert captured.out.count("not run") >= 9
    assert "[1, 2]" not in captured.out + captured.err


def test_a_key_of_another_vocabulary_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_key("smaller", new_key("0" * 64, 7, preset("exact", h=8)))
    Path("ids.jsonl").write_text("[1]")
    Path("prior.txt").write_text("text")
    assert run(LINE + " --key smaller") == MisconfiguredError.exit_code
    assert "7 ids" in capsys.readouterr().err


def test_every_report_is_written_by_every_command(
    capsys: pytest.CaptureFixture[str], key: KeyFile, texts: list[str]
) -> None:
    write_traffic(texts[:100], key)
    Path("prior.txt").write_text("\n".join(texts[600:700]))
    line = LINE + " --key key --attack tfma/none --html r.html --sarif r.sarif"
    found = reported(capsys, line)["findings"]
    assert {finding["name"] for finding in found} == {"tfma/none"}
    assert len(found) == 6  # three lengths of list, over tokens and over types
    assert "traffic of obfuscated ids" in Path("r.html").read_text()
    assert len(json.loads(Path("r.sarif").read_text())["runs"][0]["results"]) == 6


def test_a_budget_too_small_is_said(capsys: pytest.CaptureFixture[str], permuted: Path) -> None:
    record = reported(
        capsys, "audit checkpoint permuted --base base --key key --attack nn --budget 0 --gate 1", 20
    )
    assert "raise --budget" in record["findings"][0]["reason"]
