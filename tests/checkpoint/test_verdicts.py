"""Folders that need not be refused are taken, and those that must be are told what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.test_reader import CONFIG, IDS, TINY, WEIGHTS, edit, logits, theirs
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
)

from transom.checkpoint import find, load
from transom.checkpoint.generation import generation_settings
from transom.checkpoint.resolve import resolved_config
from transom.errors import CheckpointError, NotYetError, ReplaceableError
from transom.obfuscation.plain import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(tmp_path)
    return tmp_path


def llama(folder: Path, **fields: Any) -> torch.Tensor:
    """A Llama on disk with further fields, and its logits before they were there."""
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    before = theirs(folder)
    edit(folder, **fields)
    return before


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["LLaMAForCausalLM"]},
        {"sliding_window": 64},
        {"sliding_window": 4096},
        {"sliding_window": 8, "use_sliding_window": False},
    ],
    ids=str,
)
def test_an_old_name_and_a_window_that_reaches_everything(fields: dict[str, Any], tmp_path: Path) -> None:
    expected = llama(tmp_path, **fields)
    assert torch.equal(logits(tmp_path), expected)
    assert resolved_config(find(tmp_path))["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    "fields",
    [
        {"sliding_window": 63},
        {
            "sliding_window": 64,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_parameters": None,
        },
    ],
    ids=str,
)
def test_a_window_that_some_text_exceeds_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    llama(tmp_path, **fields)
    with pytest.raises(NotYetError, match="sliding_window is '6"):
        load(tmp_path)


def test_an_encoder_must_name_its_class(tmp_path: Path) -> None:
    DebertaV2ForMaskedLM(DebertaV2Config(**TINY)).save_pretrained(tmp_path)
    edit(tmp_path, architectures=None)
    with pytest.raises(NotYetError, match="names no architecture; write the class"):
        load(tmp_path)


def test_quantised_weights_that_no_library_here_reads_are_replaceable(folder: Path) -> None:
    for method in ("bitsandbytes", "gptq"):
        edit(folder, quantization_config={"quant_method": method, "load_in_4bit": True, "bits": 4})
        with pytest.raises(ReplaceableError, match=f"quantised by {method}.*or a GGUF"):
            load(folder)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"model_type": "secret", "model_type": 1}', "an object names a member twice"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"x": "secret\xff"}', "not UTF-8 at byte 13"),
        (b'{"x":\n "secret}', "Unterminated string.*line 2"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_told_without_it(folder: Path, raw: bytes, said: str) -> None:
    (folder / CONFIG).write_bytes(raw)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(folder)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.fp16.safetensors", "rename it to model.safetensors"),
        ("consolidated.safetensors", "convert it"),
    ],
)
def test_weights_under_another_name_are_named(folder: Path, name: str, said: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(CheckpointError, match=f"lacks {WEIGHTS}, and holds {name}; {said}"):
        load(folder)


GENERATION = {
    "taken": ({"pad_token_id": 32}, {"pad_token_id": -1}, {"do_sample": True, "temperature": None}, {}),
    "refused": (
        "",
        "[]",
        {"do_sample": "true"},
        {"top_p": "0.9"},
        {"bos_token_id": 32},
        {"eos_token_id": "2"},
    ),
}


@pytest.mark.parametrize(
    ("verdict", "settings"), [(k, one) for k, more in GENERATION.items() for one in more]
)
def test_generation_settings_have_one_verdict(folder: Path, verdict: str, settings: Any) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "generation_config.json").write_text(text)
    for reader in (load, open_source):
        if verdict == "taken":
            reader(folder)
        else:
            with pytest.raises(CheckpointError, match="generation_config"):
                reader(folder)
    assert verdict == "refused" or "pad_token_id" not in generation_settings(folder, 32)


NO_SUCH_PART: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {"sliding_window": 0, "num_local_experts": 0, "num_experts_per_tok": 0}),
    "granite": (GraniteConfig, {"num_local_experts": 0, "num_experts": 0}),
    "deberta": (DebertaV2Config, {"type_vocab_size": 0}),
    "phi3": (Phi3Config, {"sliding_window": None, "kv_lora_rank": 0, "q_lora_rank": 0, "pad_token_id": 0}),
}


@pytest.mark.parametrize("name", NO_SUCH_PART)
def test_none_of_a_part_that_the_class_does_not_have(name: str, tmp_path: Path) -> None:
    kind, fields = NO_SUCH_PART[name]
    config = kind(**TINY | fields)
    auto = AutoModelForMaskedLM if name == "deberta" else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    model.save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), model(IDS).logits)


@pytest.mark.parametrize(
    "fields", [{"sliding_window": 0}, {"sliding_window": 0, "use_sliding_window": False}]
)
def test_a_window_of_nothing_is_refused_where_the_class_would_look_through_it(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    MistralForCausalLM(MistralConfig(**TINY)).save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(CheckpointError, match="sliding_window is '0'; it must be 1 or more in a mistral"):
        load(tmp_path)
