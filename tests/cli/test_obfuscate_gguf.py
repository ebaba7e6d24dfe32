"""`transom obfuscate FILE.gguf`: its folder, and a GGUF of that, answer as llama.cpp did on the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.cli.main import run
from transom.cli.obfuscated import ObfuscatedOptions, open_key
from transom.obfuscation.client import load_client

from ..checkpoint.ggufs import draft_of, model_of
from ..llamacpp import LlamaCpp, llamacpp

FAMILIES = ("llama", "qwen2", "qwen3", "mixtral")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def oracle() -> Iterator[LlamaCpp]:
    with llamacpp() as running:
        yield running


def vocabulary(folder: Path) -> dict[str, Any]:
    """The keys of a byte-level tokenizer with a template and two ids that end an answer."""
    tokenizer = json.loads((tiny_llama(folder) / "tokenizer.json").read_text())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = {one["id"] for one in tokenizer["added_tokens"]}
    ids |= {one["content"]: one["id"] for one in tokenizer["added_tokens"]}
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": sorted(ids, key=lambda token: ids[token]),
        "token_type": [3 if i in special else 1 for i in range(len(ids))],
        "merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "eos_token_id": ids["<|im_end|>"],
        "eot_token_id": ids["<|pad|>"],
    }
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()} | {
        "tokenizer.chat_template": TEMPLATE
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_with_its_tokenizer_goes_through_the_commands(
    family: str,
    oracle: LlamaCpp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = vocabulary(tmp_path / "tiny")
    size, ends = (
        len(keys["tokenizer.ggml.tokens"]),
        {keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]},
    )
    draft = draft_of(model_of(family, vocab_size=size))
    draft.others = keys
    source = draft.write(tmp_path / "source.gguf")
    capsys.readouterr()
    options = "--key key --preset exact --lam 0 --h 16 --workers 1 --no-audit --json"
    assert run(f"obfuscate source.gguf --out out {options}".split()) == 0
    said = capsys.readouterr()
    assert (said.err, said.out.count("\n")) == ("", 1)
    assert json.loads(said.out)["vocabulary"] == size
    assert run(["obfuscate-gguf", "out", "--out", "out.gguf", "--type", "f32"]) == 0
    assert capsys.readouterr().err.startswith("out.gguf: ")
    substitution, tokenizer = open_key(ObfuscatedOptions(Path("key"), Path("key.client"), None, None))
    assert set(tokenizer.eos_ids) == set(load_client("key.client").stop_ids) == ends
    model, order = load("out").model, list(substitution.hide(range(size)))
    errors = []
    for text in ("Where is the fox?", "and the hen", "The dog is here. Is it?"):
        encoded = tokenizer.encode_chat([("user", text)])
        assert encoded.text == f"<|im_start|>user\n{text}<|im_end|>\n"
        assert list(encoded.ids) == oracle.tokenize(source, encoded.text)
        hidden = list(substitution.hide(encoded.ids))
        expected_V = oracle.next_logprobs(source, encoded.ids, size, say=encoded.ids[-1])
        with torch.no_grad():
            folder_V = model(torch.tensor([hidden])).logits[0, -1].log_softmax(-1).numpy()[order]
        file_V = oracle.next_logprobs(tmp_path / "out.gguf", hidden, size)[order]
        errors.append([np.abs(found_V - expected_V).mean() for found_V in (folder_V, file_V)])
    # Keys are new each time. Constants in place of norms stand for a ratio that varies with them, which in a
    # mixture may change an expert; other models are two nats apart.
    assert np.median(errors, axis=0).max() < 0.3
