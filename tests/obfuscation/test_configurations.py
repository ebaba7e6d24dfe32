"""Obfuscated folders and our engine answer as transformers does on the source, whatever its flags say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from transom.errors import NotYetError, TransomError
from transom.obfuscation.plain import open_source

from .configurations import FAMILIES, build, covering, error, exactly, rewrite, singles


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


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Qwen3Moe"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_each_value_absent_or_null_is_what_its_class_takes_it_for(
    family: str, how: str, tmp_path: Path
) -> None:
    """Class defaults differ, and the copy of a Qwen2 is a Llama: either reading equals transformers', or the
    folder is refused before a tensor is read."""
    sizes, flags = FAMILIES[family]
    build(family, sizes | next(singles(flags)), tmp_path / "source")
    read = []
    for name in json.loads((tmp_path / "source" / "config.json").read_text()):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "source", folder / "source")
        if how == "null":
            rewrite(folder / "source", **{name: None})
        else:
            rewrite(folder / "source", drop=(name,))
        try:
            plain = open_source(folder / "source")
        except TransomError:
            continue
        _plain, key = exactly(plain, folder / "out")
        model = AutoModelForCausalLM.from_pretrained(folder / "source").eval()
        assert error(model, folder / "source", folder / "out", key, both=False) < 1e-4, name
        read.append(name)
    assert {"bos_token_id", "pad_token_id", "rope_parameters", "dtype"} <= set(read)
    if how == "absent":
        assert {"max_position_embeddings", "tie_word_embeddings", "hidden_act", "rms_norm_eps"} <= set(read)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_copy_says_is_written_out(family: str, tmp_path: Path) -> None:
    """Other engines, and older ones, have other defaults and names: none is left to them."""
    sizes, flags = FAMILIES[family]
    build(family, sizes | next(singles(flags)), tmp_path / "source")
    kept = {"model_type", "architectures", "num_local_experts", *sizes}
    kept |= {"head_dim"} if family == "Qwen3" else set()  # whose default is 128
    written = json.loads((tmp_path / "source" / "config.json").read_text())
    rewrite(tmp_path / "source", drop=tuple(set(written) - kept))
    exactly(tmp_path / "source", tmp_path / "out")
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = AutoConfig.from_pretrained(tmp_path / "source").to_dict()
    same = ("hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_parameters", "intermediate_size")
    assert {name: made[name] for name in same} == {name: plain[name] for name in same}
    assert (made["rope_theta"], made["rope_scaling"]) == (plain["rope_parameters"]["rope_theta"], None)
    assert made["tie_word_embeddings"] is False
    assert made["torch_dtype"] == made["dtype"]
    if "q_lora_rank" not in made:
        assert made["head_dim"] == 8
    if family in ("Mixtral", "Qwen3Moe"):
        assert made["num_experts"] == made["num_local_experts"] == 3
