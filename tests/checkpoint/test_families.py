"""The records of architectures, beside what transformers' own classes and models say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.checkpoint.ggufs import CONFIGS, model_of

from transom.checkpoint.families import CHECKED, FAMILIES, family_of
from transom.checkpoint.resolve import flattened
from transom.checkpoint.structure import check_structure
from transom.enclave.halves import locate_embedding
from transom.errors import NotYetError
from transom.obfuscation.attention import head_width
from transom.obfuscation.plan import plan, require_planned

FILE = Path("config.json")
IDS = torch.tensor([[3, 5, 7, 11]])


SIZES = {"deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"}}


def class_of(kind: str) -> Any:
    return transformers.CONFIG_MAPPING[kind]


@pytest.mark.parametrize("kind", CHECKED)
def test_a_record_knows_every_value_of_its_class(kind: str) -> None:
    values = FAMILIES[kind].values
    assert values is not None
    assert {name for name in flattened(class_of(kind)(**SIZES.get(kind, {}))) if name not in values} == set()
    check_structure(
        FILE,
        class_of(kind)(**SIZES.get(kind, {})).to_dict(),
        flattened(class_of(kind)(**SIZES.get(kind, {}))),
    )


@pytest.mark.parametrize("kind", CHECKED)
def test_a_value_that_no_record_understands_is_refused_by_name(kind: str) -> None:
    config = flattened(class_of(kind)(**SIZES.get(kind, {})))
    for value in (2.0, True, [1]):
        with pytest.raises(NotYetError, match="new_scale"):
            check_structure(FILE, {"new_scale": value}, config | {"new_scale": value})
    check_structure(FILE, {"new_scale": None}, config | {"new_scale": None})
    check_structure(FILE, {"new_scale": 2.0}, config)  # of no class: a remark of whoever wrote the file


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3"])
def test_experts_in_every_other_layer_are_refused(kind: str) -> None:
    config = flattened(class_of(kind)(**SIZES.get(kind, {}), moe_layer_freq=2))
    with pytest.raises(NotYetError, match="moe_layer_freq"):
        check_structure(FILE, {"moe_layer_freq": 2}, config)


@pytest.mark.parametrize("kind", [kind for kind in CHECKED if FAMILIES[kind].attention == "heads"])
def test_a_head_is_as_wide_as_its_class_says_where_the_configuration_is_silent(kind: str) -> None:
    config = class_of(kind)(hidden_size=96, num_attention_heads=8, num_key_value_heads=4)
    width = getattr(config, "head_dim", None) or 12
    assert head_width({"model_type": kind, "hidden_size": 96, "num_attention_heads": 8}) == width


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_parts_are_where_the_record_says(kind: str) -> None:
    model, family = model_of(kind), FAMILIES[kind]
    names = family.names
    trunk = model.get_submodule(names.trunk)
    assert trunk.get_submodule(names.embedding) is model.get_input_embeddings()
    assert getattr(model, family.heads["ForCausalLM"]) is model.get_output_embeddings()
    assert trunk.get_submodule(names.final_norm).weight.shape == (model.config.hidden_size,)
    blocks = trunk.get_submodule(names.blocks)
    assert len(blocks) == model.config.num_hidden_layers
    for block in blocks:
        for part in (names.attention, names.mlp, names.attention_norm, names.mlp_norm):
            assert block.get_submodule(part) is not None
        assert block.get_submodule(names.attention_out).out_features == model.config.hidden_size


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_first_step_is_a_lookup_where_the_record_says_so(kind: str) -> None:
    model = model_of(kind)
    with torch.no_grad():
        first = model(IDS, output_hidden_states=True).hidden_states[0]
    looked_up = torch.equal(first[0], model.get_input_embeddings().weight[IDS[0]])
    assert looked_up == FAMILIES[kind].lookup


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_table_is_found_in_a_folder_where_it_is_a_lookup(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    if not FAMILIES[kind].lookup:
        with pytest.raises(NotYetError, match=kind):
            locate_embedding(tmp_path)
        return
    found = locate_embedding(tmp_path)
    table = model.get_input_embeddings().weight
    assert (found.rows, found.width) == tuple(table.shape)
    assert found.read(2, 5) == table[2:5].numpy().tobytes()


@pytest.mark.parametrize("kind", [kind for kind in CHECKED if kind in CONFIGS])
def test_the_plan_reads_the_names_that_are_in_files(kind: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    from transom.obfuscation.keys import Settings

    model = model_of(kind)
    model.save_pretrained(tmp_path)
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        stored = set(file.keys())
    read = {name for task in plan(flattened(model.config), Settings()) for name in task.sources}
    assert read == stored | ({"model.embed_tokens.weight"} if model.config.tie_word_embeddings else set())


def test_what_has_no_record_has_no_plan() -> None:
    assert family_of({"model_type": "gpt2"}) is None
    assert family_of({}) is None
    assert require_planned({"model_type": "llama"}).kind == "llama"
    for kind in ("gpt2", "gemma", "bert", None):
        with pytest.raises(NotYetError):
            require_planned({"model_type": kind})


def test_a_record_is_complete() -> None:
    for family in FAMILIES.values():
        assert family.kind in transformers.CONFIG_MAPPING
        assert family.llama_cpp is None or (family.values is not None and family.gguf)
        assert (family.experts is not None) == ("moe" in family.kind or family.kind[:4] in ("mixt", "deep"))
        rules = {**(family.values or {}), **(family.llama_cpp or {})}
        assert all(allowed is None or isinstance(allowed, tuple) for allowed in rules.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES["llama"].kind = "other"  # type: ignore[misc]
