"""What goes in and what the client keeps: sources that are refused, GGUF, added tokens, the client folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import (
    CheckpointError,
    MisconfiguredError,
    NotYetError,
    ReplaceableError,
    TransomError,
)
from transom.obfuscation.card import CARD_FILE
from transom.obfuscation.client import load_client, write_client
from transom.obfuscation.keyfile import KeyFile, new_key
from transom.obfuscation.keys import Settings, preset, token_map
from transom.obfuscation.measure import measure_kappas
from transom.obfuscation.plain import open_source
from transom.obfuscation.plan import norm_names, plan
from transom.obfuscation.pool import make_space
from transom.obfuscation.shards import locate
from transom.obfuscation.writer import obfuscate
from transom.serving.tokenizer import load_tokenizer

from .mixtures import save_plain

EXACT = preset("exact", h=8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def key(source: Path) -> KeyFile:
    return key_for(source)


@pytest.fixture(scope="module")
def kappas(source: Path, key: KeyFile) -> Mapping[str, float]:
    plain, entries = open_source(source), locate(source)
    return measure_kappas(plain, make_space(key.secret, plain.config, key.settings, entries), entries)


def key_for(source: Path, settings: Settings = EXACT) -> KeyFile:
    plain = open_source(source)
    return new_key(plain.fingerprint, plain.vocabulary, settings)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logits(folder: Path, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(ids_BT).logits
    return result


def test_generation_settings_that_name_ids_stay_with_the_client(
    source: Path, key: KeyFile, kappas: Any, tmp_path: Path
) -> None:
    chatty = tmp_path / "chatty"
    shutil.copytree(source, chatty)
    settings = {"eos_token_id": [2, 1], "temperature": 0.5, "suppress_tokens": [3], "forced_bos_token_id": 4}
    (chatty / "generation_config.json").write_text(json.dumps(settings))
    obfuscate(chatty, tmp_path / "out", key, kappas=kappas)
    tau_V = token_map(key.secret, key.vocabulary)
    host = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert host["eos_token_id"] == [int(tau_V[2]), int(tau_V[1])]
    assert (host["temperature"], "suppress_tokens" in host, "forced_bos_token_id" in host) == (
        0.5,
        False,
        False,
    )
    plain = open_source(chatty)
    client = write_client(plain.found, plain.config, key, tmp_path / "client")
    assert client == load_client(tmp_path / "client")
    assert client.stop_ids == (1, 2)


def test_the_client_folder_has_the_real_tokenizer(source: Path, key: KeyFile, tmp_path: Path) -> None:
    plain, folder = open_source(source), tmp_path / "client"
    client = write_client(plain.found, plain.config, key, folder)
    client.require_key(key)
    ours, theirs = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (folder, source))
    assert ours.to_str() == theirs.to_str()
    assert write_client(plain.found, plain.config, key, folder) == client
    other = dataclasses.replace(key, source="cd" * 32)
    with pytest.raises(MisconfiguredError, match="belongs to the checkpoint"):
        client.require_key(other)
    with pytest.raises(MisconfiguredError, match="belongs to the checkpoint"):
        write_client(plain.found, plain.config, other, folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(MisconfiguredError, match="no client file"):
        write_client(plain.found, plain.config, key, tmp_path / "photos")


@pytest.mark.parametrize("where", ["special_tokens_map.json", "additional_chat_templates"])
def test_prompts_are_the_sources_wherever_it_keeps_their_parts(
    where: str, source: Path, tmp_path: Path
) -> None:
    folder, client = Path(shutil.copytree(source, tmp_path / "source")), tmp_path / "client"
    template = "{{ bos_token }}[{{ messages[0].role }}]{{ messages[0].content }}{{ eos_token }}"
    specials = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    named: dict[str, Any] = {"tokenizer_config.json": specials | {"chat_template": template}}
    if where == "special_tokens_map.json":
        named = {where: specials, "tokenizer_config.json": {"chat_template": template}}
    if where == "additional_chat_templates":
        (folder / where).mkdir()
        (folder / where / "default.jinja").write_text(template)
        named = {"tokenizer_config.json": specials}
    for name, record in named.items():
        (folder / name).write_text(json.dumps(record))
    plain = open_source(folder)
    write_client(plain.found, plain.config, key_for(folder), client)
    encoded = load_tokenizer(client).encode_chat([("user", "hi")])
    assert encoded.text == "<|im_start|>[user]hi<|im_end|>"
    assert encoded == load_tokenizer(folder).encode_chat([("user", "hi")])


def test_added_tokens_need_rows(source: Path, tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(source, grown)
    tokenizer = Tokenizer.from_file(str(grown / "tokenizer.json"))
    tokenizer.add_tokens(["<new one>"])
    tokenizer.save(str(grown / "tokenizer.json"))
    plain, key = open_source(grown), key_for(grown)
    with pytest.raises(CheckpointError, match="resize"):
        write_client(plain.found, plain.config, key, tmp_path / "client")
    wider = tiny_llama(tmp_path / "wider", tie_word_embeddings=True)
    model = load(wider).model
    model.resize_token_embeddings(key.vocabulary + 5)
    model.save_pretrained(wider)
    tokenizer.save(str(wider / "tokenizer.json"))
    plain, key = open_source(wider), key_for(wider)
    write_client(plain.found, plain.config, key, tmp_path / "client")
    obfuscate(plain, tmp_path / "out", key)
    assert tensors(tmp_path / "out")["lm_head.weight"].shape[0] == key.vocabulary == plain.vocabulary


def break_config(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_type": "gpt2"}, NotYetError, "gpt2"),
        ({"model_type": None}, NotYetError, "None"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ReplaceableError, "gptq.*GGUF"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ReplaceableError, "bitsandbytes"),
        ({"vocab_size": None}, CheckpointError, "vocab_size"),
    ],
)
def test_what_cannot_be_obfuscated_is_refused_at_once(
    source: Path, tmp_path: Path, changes: dict[str, Any], error: type[TransomError], words: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    break_config(other, **changes)
    with pytest.raises(error, match=words):
        open_source(other)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop("model.norm.weight"), CheckpointError),
        (lambda state: state.update({"model.vision.weight": torch.zeros(2)}), TransomError),
        (lambda state: state.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}), NotYetError),
    ],
)
def test_missing_unknown_and_strange_tensors_are_refused(
    source: Path, tmp_path: Path, change: Any, error: type[TransomError]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    state = load_file(source / "model.safetensors")
    change(state)
    save_file(state, other / "model.safetensors")
    with pytest.raises(error, match=r"model\."):
        obfuscate(other, tmp_path / "out", key_for(other))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_truncated_shard_is_refused(source: Path, key: KeyFile, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.truncate()
    with pytest.raises(CheckpointError, match="truncated"):
        obfuscate(other, tmp_path / "out", key)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_shard_that_shrinks_meanwhile_is_noticed(
    source: Path, key: KeyFile, kappas: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    plain = open_source(other)
    entries = locate(other)
    with (other / "model.safetensors").open("r+b") as file:
        file.truncate(max(entry.offset_bytes for entry in entries.values()))
    with pytest.raises(CheckpointError, match=r"became shorter|truncated"):
        obfuscate(plain, tmp_path / "out", key, kappas=kappas)
    assert not (tmp_path / "out").exists()


def gguf_of(source: Path, path: Path) -> Path:
    """The source as a float16 GGUF with its real tokenizer."""
    import gguf

    from transom.obfuscation.gguf_writer import write_gguf

    config = json.loads((source / "config.json").read_text())
    record = json.loads((source / "tokenizer.json").read_text())
    vocabulary = record["model"]["vocab"] | {
        token["content"]: token["id"] for token in record["added_tokens"]
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges([" ".join(merge) for merge in record["model"]["merges"]])
    for tensor in gguf.GGUFReader(write_gguf(source, path.with_name("draft.gguf"))).tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_is_dequantised(tmp_path: Path, source: Path) -> None:
    file = gguf_of(source, tmp_path / "model.gguf")
    key = key_for(file, preset("exact", h=0, lam=0.0))
    obfuscate(file, tmp_path / "out", key)
    tau_V = torch.from_numpy(token_map(key.secret, key.vocabulary))
    ids_BT = torch.arange(20)[None]
    with torch.no_grad():
        plain_BTV = load(file).model(ids_BT).logits
    hidden_BTV = logits(tmp_path / "out", tau_V[ids_BT])[..., tau_V]
    torch.testing.assert_close(hidden_BTV, plain_BTV, atol=1e-3, rtol=1e-3)
    assert not (tmp_path / "out" / "progress").exists()
    assert CARD_FILE in contents(tmp_path / "out")


def test_a_ggufs_ends_of_an_answer_stay_with_the_client(tmp_path: Path) -> None:
    """All of them: those that its keys name, and one known by its text."""
    from tests.checkpoint.vocabularies import ALPHABET, byte_level, write_vocabulary

    keys = byte_level([*ALPHABET.values(), "ab", "<|im_end|>", "<t>"], eos_token_id=7, eot_token_id=258)
    file = write_vocabulary(tmp_path / "model.gguf", keys)
    plain = open_source(file)
    key = key_for(file, preset("exact"))
    client = write_client(plain.found, plain.config, key, tmp_path / "client")
    assert client.stop_ids == load_tokenizer(tmp_path / "client").eos_ids == (7, 257, 258)


def test_ends_named_by_the_configuration_alone_stay_with_the_client(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "plain")
    file = tmp_path / "plain" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, 9]}))
    (tmp_path / "plain" / "generation_config.json").write_text('{"temperature": 0.5}')
    plain = open_source(tmp_path / "plain")
    key = key_for(tmp_path / "plain", preset("exact"))
    client = write_client(plain.found, plain.config, key, tmp_path / "client")
    assert client.stop_ids == load_tokenizer(tmp_path / "client").eos_ids == (1, 9)
    settings = json.loads((tmp_path / "client" / "generation_config.json").read_text())
    assert settings == {"temperature": 0.5, "eos_token_id": [1, 9]}


def further(model: Any, folder: Path) -> list[str]:
    """Add the tensors of a layer that predicts one token more, as DeepSeek-V3's checkpoints have them."""
    path = folder / "model.safetensors"
    state, last = load_file(path), model["num_hidden_layers"]
    again = {
        name.replace(f".{last - 1}.", f".{last}.", 1): tensor.clone()
        for name, tensor in state.items()
        if name.startswith(f"model.layers.{last - 1}.")
    }
    again[f"model.layers.{last}.eh_proj.weight"] = torch.zeros(32, 64)
    save_file(state | again, path, {"format": "pt"})
    break_config(folder, num_nextn_predict_layers=1)
    return sorted(again)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    source = save_plain("DeepSeek-V3", tmp_path / "source")
    bare = open_source(source)
    assert bare.left_out == ()
    names = further(bare.config, source)
    plain, settings = open_source(source), preset("exact", h=0, lam=0.0)
    assert plain.left_out == tuple(names)
    key = key_for(source, settings)
    kappas = dict.fromkeys(norm_names(plan(plain.config, settings)), 1.0)
    obfuscate(plain, tmp_path / "out", key, kappas=kappas)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0
    assert not set(names) & set(tensors(tmp_path / "out"))
    assert_same_answers(source, tmp_path / "out", key)


def assert_same_answers(source: Path, out: Path, key: KeyFile, tolerance: float = 1e-4) -> None:
    tau_V = torch.from_numpy(token_map(key.secret, key.vocabulary))
    ids_BT = torch.arange(20)[None]
    hidden_BTV = logits(out, tau_V[ids_BT])[..., tau_V]
    torch.testing.assert_close(hidden_BTV, logits(source, ids_BT), atol=tolerance, rtol=tolerance)


def in_8_bits(source: Path, folder: Path) -> tuple[Path, Path]:
    """The checkpoint with its projections as 8-bit floats and their scales, and the same after rounding."""
    eight, rounded = folder / "eight", folder / "rounded"
    state, stored, back = load_file(source / "model.safetensors"), {}, {}
    for name, tensor in state.items():
        if not name.endswith("_proj.weight"):
            stored[name] = back[name] = tensor.bfloat16()
            continue
        blocks = [-(-side // 128) for side in tensor.shape]
        scale = torch.rand(blocks, generator=torch.Generator().manual_seed(len(name))) * 0.01 + 0.001
        spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[
            : tensor.shape[0], : tensor.shape[1]
        ]
        stored[name] = (tensor / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        back[name] = (stored[name].float() * spread).bfloat16()
    for place, tensors_of in ((eight, stored), (rounded, back)):
        shutil.copytree(source, place)
        save_file(tensors_of, place / "model.safetensors", {"format": "pt"})
    break_config(eight, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    return eight, rounded


def test_8_bit_floats_are_dequantised_block_by_block(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "source", hidden_size=160, intermediate_size=300, num_hidden_layers=1)
    eight, rounded = in_8_bits(source, tmp_path)
    key = key_for(eight)
    same = dataclasses.replace(key, source=open_source(rounded).fingerprint)
    for one, mine in ((eight, key), (rounded, same)):
        obfuscate(one, tmp_path / f"{one.name}.out", mine, workers=1)
    made, expected = tensors(tmp_path / "eight.out"), tensors(tmp_path / "rounded.out")
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)
    assert "quantization_config" not in json.loads((tmp_path / "eight.out" / "config.json").read_text())


@pytest.mark.parametrize("change", ["absent", "of another block size"])
def test_8_bit_floats_without_their_scales_are_refused(tmp_path: Path, change: str) -> None:
    eight, _ = in_8_bits(tiny_llama(tmp_path / "source"), tmp_path)
    state = load_file(eight / "model.safetensors")
    for name in [name for name in state if name.endswith("_scale_inv")]:
        scale = state.pop(name)
        if change != "absent":
            state[name] = scale.repeat(2, 1)
    save_file(state, eight / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotYetError, match=r"without a scale.*before it was quantised"):
        open_source(eight)
