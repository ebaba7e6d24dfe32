"""Files with more than their class reads: loaded as transformers loads them, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from transom.checkpoint import load
from transom.checkpoint.spare import is_spare
from transom.errors import CheckpointError

IDS = torch.tensor([[5, 6, 7, 3, 8, 1]])
WEIGHTS = "model.safetensors"
BERT = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip
Tensors = dict[str, torch.Tensor]


def bert() -> Any:
    return hf.BertForPreTraining(hf.BertConfig(**BERT))


def roberta() -> Any:
    return hf.RobertaForMaskedLM(hf.RobertaConfig(**BERT | {"max_position_embeddings": 32}))


def albert() -> Any:
    return hf.AlbertForPreTraining(hf.AlbertConfig(**BERT, embedding_size=8))


def gpt2() -> Any:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def neo() -> Any:
    config = hf.GPTNeoConfig(
        vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=16,
        attention_types=[[["global", "local"], 1]],
    )  # fmt: skip
    return hf.GPTNeoForCausalLM(config)


def masks(place: str) -> Tensors:
    """What older classes kept of their causal mask."""
    made: Tensors = {}
    for layer in range(2):
        made[place.format(layer) + ".bias"] = torch.ones(1, 1, 16, 16).tril().bool()
        made[place.format(layer) + ".masked_bias"] = torch.tensor(-1e9)
    return made


def pooler(name: str) -> Tensors:
    return {f"{name}.weight": torch.ones(16, 16), f"{name}.bias": torch.ones(16)}


PUBLISHED: dict[str, tuple[Callable[[], Any], str, Tensors]] = {
    "bert, trained on two tasks": (bert, "BertForMaskedLM", {}),
    "bert, its trunk alone": (bert, "BertModel", {}),
    "bert, another trunk": (bert, "BertModel", pooler("classifier")),
    "roberta with a pooler": (roberta, "RobertaForMaskedLM", pooler("roberta.pooler.dense")),
    "albert, trained on two tasks": (albert, "AlbertForMaskedLM", {}),
    "gpt2 with masks": (gpt2, "GPT2LMHeadModel", masks("transformer.h.{}.attn")),
    "gpt2 with masks, no prefix": (gpt2, "GPT2LMHeadModel", masks("h.{}.attn")),
    "gpt2, a reward head": (gpt2, "GPT2LMHeadModel", {"score.weight": torch.ones(1, 16)}),
    "gpt2, the trunk alone": (gpt2, "GPT2Model", {"lm_head.weight": torch.ones(32, 16)}),
    "neo with masks": (neo, "GPTNeoForCausalLM", masks("transformer.h.{}.attn.attention")),
}


def published(folder: Path, make: Callable[[], Any], architecture: str, further: Tensors) -> Path:
    """A folder as its model is published: these weights under that architecture, and `further` tensors."""
    torch.manual_seed(0)
    make().save_pretrained(folder)
    weights = load_file(folder / WEIGHTS)
    if any(name.startswith("h.") for name in further):
        weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(weights | further, folder / WEIGHTS, {"format": "pt"})
    record = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_takes_no_part_is_left_as_transformers_leaves_it(name: str, tmp_path: Path) -> None:
    make, architecture, further = PUBLISHED[name]
    folder = published(tmp_path / "m", make, architecture, further)
    theirs = getattr(hf, architecture).from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(load(folder).model(IDS)[0], theirs(IDS)[0])


REFUSED: dict[str, tuple[Callable[[], Any], str, Tensors]] = {
    "a layer after the last": (bert, "BertModel", {
        "bert.encoder.layer.2.attention.self.query.weight": torch.ones(16, 16)}),
    "a bias that the class has not": (gpt2, "GPT2LMHeadModel", {"lm_head.bias": torch.ones(32)}),
    "a bias in a mask's place": (neo, "GPTNeoForCausalLM", {
        "transformer.h.0.attn.attention.bias": torch.ones(16)}),
    "a bias for each head": (neo, "GPTNeoForCausalLM", {
        "transformer.h.0.attn.attention.bias": torch.ones(1, 2, 16, 16)}),
    "a mask of two values": (gpt2, "GPT2LMHeadModel", {"transformer.h.0.attn.masked_bias": torch.ones(2)}),
    "a norm that the trunk has not": (bert, "BertModel", {"bert.norm.weight": torch.ones(16)}),
    "an adapter": (bert, "BertForMaskedLM", {"bert.encoder.layer.0.lora_A.weight": torch.ones(2, 16)}),
    "a pooler inside a layer": (bert, "BertModel", {"bert.encoder.layer.0.pooler.weight": torch.ones(16)}),
    "a part of a head in use": (bert, "BertForMaskedLM", {"cls.predictions.norm.weight": torch.ones(16)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_might_take_part_is_refused(name: str, tmp_path: Path) -> None:
    make, architecture, further = REFUSED[name]
    folder = published(tmp_path / "m", make, architecture, further)
    with pytest.raises(CheckpointError, match=f"no part of the model reads, first '{next(iter(further))}'"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["score.weight", "lm_head.bias", "model.layers.0.self_attn.attn.masked_bias"]
)
def test_a_decoder_with_transforms_of_its_own_has_nothing_spare(name: str) -> None:
    """Its weights are rewritten one by one, and what is left out would be missing in the output."""
    modules = {"model", "model.layers.0.self_attn"}
    given: dict[str, Any] = {"trunk": "model", "modules": modules}
    assert not is_spare(name, (), kind="llama", **given)
    assert is_spare("model.layers.0.self_attn.rotary_emb.inv_freq", (8,), kind="llama", **given)
    assert is_spare(name, (), kind="gptj", **given)
