"""One reader of folders: exactly one model is read, of every folder, or the folder is refused by name."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from transom.checkpoint import find, load, source
from transom.checkpoint.resolve import resolved_config
from transom.checkpoint.source import check, read_safetensors_head, stored_tensors
from transom.errors import CheckpointError, NotYetError, TransomError
from transom.obfuscation.plain import open_source

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
IDS = torch.tensor([[5, 6, 7, 3, 8, 1]])
MUTATIONS = 1_000
TINY = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2, the family with the most defaults, untied."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**TINY))
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def logits(folder: Path) -> torch.Tensor:
    result: torch.Tensor = load(folder).model(IDS).logits
    return result


def theirs(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return result


def shard(folder: Path, assigned: Callable[[int], str], **moved: str) -> dict[str, str]:
    """Replace the single file by shards and an index, which may lie about `moved`."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    placed = {name: assigned(number) for number, name in enumerate(sorted(weights))}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in placed if placed[name] == file}, folder / file)
    write_index(folder, placed | moved)
    return placed


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def halves(number: int) -> str:
    return "ab"[number % 2] + ".safetensors"


def changed_copy(path: Path, to: Path) -> None:
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, to, {"format": "pt"})


def test_shards_saved_over_a_single_file_are_two_models(folder: Path) -> None:
    """transformers leaves such a folder, and reads the old weights from it."""
    model = load(folder).model
    for parameter in model.parameters():
        parameter.data.add_(1)
    old = theirs(folder)
    model.save_pretrained(folder, max_shard_size="4KB")
    assert (folder / WEIGHTS).exists()
    assert (folder / INDEX).exists()
    assert torch.equal(theirs(folder), old)
    with pytest.raises(CheckpointError, match=rf"holds two models: {WEIGHTS}.*Delete"):
        load(folder)
    (folder / WEIGHTS).unlink()
    assert torch.equal(logits(folder), model(IDS).logits)


def test_an_index_whose_files_are_gone_is_a_leftover(folder: Path) -> None:
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "gone.safetensors"}})
    )
    assert torch.equal(logits(folder), theirs(folder))
    assert source.weight_files(folder) == [WEIGHTS]
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(stored_tensors(folder), WEIGHTS)})
    )
    assert torch.equal(logits(folder), theirs(folder))


def test_files_that_nothing_names_are_not_read(folder: Path) -> None:
    expected = logits(folder)
    changed_copy(folder / WEIGHTS, folder / "model.fp16.safetensors")
    (folder / "sub").mkdir()
    changed_copy(folder / WEIGHTS, folder / "sub" / WEIGHTS)
    assert torch.equal(logits(folder), expected)
    assert torch.equal(theirs(folder), expected)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {WEIGHTS}"):
        load(folder)


def test_an_adapter_beside_a_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter beside a model"):
        load(folder)


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ({"lm_head.weight": "b.safetensors"}, r"'lm_head.weight' is in b.*but it is in a"),
        ({"made.up": "a.safetensors"}, "in none of the files"),
        ({"lm_head.weight": "c.safetensors"}, r"lacks c\.safetensors"),
        ({"lm_head.weight": "../a.safetensors"}, "no usable weight_map"),
        ({"lm_head.weight": "/a.safetensors"}, "no usable weight_map"),
        ({"lm_head.weight": 3}, "no usable weight_map"),
        ({"lm_head.weight": None}, "no usable weight_map"),
        ({"lm_head.weight": ""}, "no usable weight_map"),
        ({"lm_head.weight": "a.bin"}, "no usable weight_map"),
    ],
)
def test_an_index_at_odds_with_its_shards(folder: Path, moved: dict[str, str], said: str) -> None:
    placed = shard(folder, halves)
    assert placed["lm_head.weight"] == "a.safetensors"
    assert torch.equal(logits(folder), theirs(folder))
    write_index(folder, placed | moved)
    with pytest.raises(CheckpointError, match=said):
        load(folder)
    with pytest.raises(CheckpointError, match=said):
        check(find(folder))


def test_an_index_without_metadata_is_refused(folder: Path) -> None:
    """transformers fails on it with a KeyError."""
    record = {"weight_map": shard(folder, halves)}
    (folder / INDEX).write_text(json.dumps(record))
    for reader in (load, open_source):
        with pytest.raises(CheckpointError, match="no metadata"):
            reader(folder)


def test_a_tensor_that_the_index_forgot_is_read_by_every_engine(folder: Path) -> None:
    placed = shard(folder, halves)
    del placed["lm_head.weight"]
    write_index(folder, placed)
    assert torch.equal(logits(folder), theirs(folder))


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    shard(folder, halves)
    other = load_file(folder / "b.safetensors") | {"lm_head.weight": torch.zeros(32, 16)}
    save_file(other, folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is in a.* and again in b"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("lora.weight", "no part of the model reads, first 'lora.weight'"), ("lm_head.bias", "lm_head.bias")],
)
def test_a_tensor_that_nobody_reads_is_refused(folder: Path, name: str, said: str) -> None:
    save_file(load_file(folder / WEIGHTS) | {name: torch.ones(3)}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_a_head_in_the_file_is_the_head(folder: Path) -> None:
    """Though the configuration ties it: transformers keeps it, and whoever saves the model must as well."""
    edit(folder, tie_word_embeddings=True)
    model = load(folder).model
    assert torch.equal(model(IDS).logits, theirs(folder))
    assert resolved_config(find(folder))["tie_word_embeddings"] is False
    model.save_pretrained(folder.parent / "again")
    assert torch.equal(logits(folder.parent / "again"), model(IDS).logits)


def test_a_missing_head_is_refused_unless_tied(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["lm_head.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, first 'lm_head.weight'"):
        load(folder)
    edit(folder, tie_word_embeddings=True)
    assert torch.equal(logits(folder), theirs(folder))
    assert resolved_config(find(folder))["tie_word_embeddings"] is True


def edit(folder: Path, **fields: Any) -> None:
    record = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(record | fields))


MALFORMED: dict[str, str] = {
    "empty": "", "a list": "[]", "null": "null", "a string": '"x"', "cut": "{", "two objects": "{}{}",
    "a key twice": '{"model_type": "qwen2", "model_type": "llama"}', "no fields": "{}",
    "deep": '{"model_type": "qwen2", "x": ' + "[" * 10_000 + "]" * 10_000 + "}",
    "an integer of 9,000 digits": '{"model_type": "qwen2", "hidden_size": ' + "9" * 9_000 + "}",
    "model_type a list": '{"model_type": ["qwen2"]}', "model_type unknown": '{"model_type": "made_up"}',
    "model_type null": '{"model_type": null}', "a marker at the start": "\ufeff{}",
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_configuration_is_refused(folder: Path, name: str) -> None:
    (folder / CONFIG).write_text(MALFORMED[name])
    with pytest.raises((CheckpointError, NotYetError), match=CONFIG):
        load(folder)
    with pytest.raises((CheckpointError, NotYetError), match=CONFIG):
        resolved_config(find(folder))


WRONG: list[dict[str, Any]] = [
    *({"hidden_size": value} for value in ("16", -16, 0, 16.0, True, [16], 10**9, 10**30, {}, float("nan"))),
    *({"num_hidden_layers": value} for value in (10**9, 10**6, -1, 0, "2", 1, 3)),
    *({"vocab_size": value} for value in (10**9, 31, None, 2**31)),
    *({"intermediate_size": 10**9}, {"head_dim": 10**9}, {"head_dim": 7}, {"max_position_embeddings": 0}),
    *({"num_attention_heads": value} for value in (3, 0, 10**9)),
    *({"num_key_value_heads": value} for value in (2, 3, 10**9)),
    *({"architectures": value} for value in ("Qwen2ForCausalLM", [], [3], {}, ["A", "B"])),
    *({"architectures": [value]} for value in ("Qwen3ForCausalLM", "LlamaForCausalLM", "os", "Qwen2Config")),
    *({"rms_norm_eps": value} for value in (float("inf"), -1.0, "1e-6", True)),
    *({"rope_parameters": value} for value in ("x", [], {"rope_type": "made_up"}, {"rope_theta": 0})),
    {"rope_parameters": {"rope_type": "linear", "factor": "2", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
    {"rope_parameters": {"rope_theta": float("inf")}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    *({"eos_token_id": value} for value in (32, -1, "2", [2, 99], True, 2.0, [[2]])),
    {"pad_token_id": 32},
    {"hidden_act": "made_up"},
    {"layer_types": ["full_attention"]},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"layer_types": 3},
    *({name: 2.0} for name in ("logit_scale", "residual_multiplier", "final_logit_softcapping")),
    {"is_causal": False},
    {"per_layer_config": {"0": {"intermediate_size": 8}}},
    {"transformers_weights": "other.safetensors"},
    {"tie_word_embeddings": "no"},
    {"dtype": "float99"},
    {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
]


@pytest.mark.parametrize("fields", WRONG, ids=lambda fields: json.dumps(fields)[:60])
def test_a_wrong_value_is_refused_before_a_tensor_is_read(
    folder: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(folder, **fields)
    monkeypatch.setattr("safetensors.safe_open", _never)
    monkeypatch.setattr("transformers.modeling_utils.safe_open", _never)
    with _little_memory(), pytest.raises((CheckpointError, NotYetError), match=str(folder)):
        load(folder)


def _never(*_arguments: Any, **_options: Any) -> Any:
    raise AssertionError("a tensor was read")


class _little_memory:  # noqa: N801 - a context, read as a phrase
    """No more than 2 GiB beyond what the process has."""

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit_bytes = pages * os.sysconf("SC_PAGE_SIZE") + 2 * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self.before)


NEUTRAL: list[dict[str, Any]] = [
    {"pad_token_id": -1},
    *({name: None} for name in ("quantization_config", "rope_scaling", "sliding_window", "num_experts")),
    *({name: 0} for name in ("sliding_window", "num_local_experts", "num_experts", "type_vocab_size")),
    {"sliding_window": 0, "use_sliding_window": False},
    *({name: "flash_attention_2"} for name in ("_attn_implementation", "attn_implementation")),
    *({"architectures": None}, {"quantization_config": {}}),
    *({"logit_scale": 1.0}, {"unsloth_version": "2026.1"}, {"layer_types": ["full_attention"] * 2}),
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
def test_a_value_that_says_nothing_is_taken(folder: Path, fields: dict[str, Any]) -> None:
    expected = theirs(folder)  # transformers itself fails on some of these
    edit(folder, **fields)
    assert torch.equal(logits(folder), expected)
    resolved = resolved_config(find(folder))
    assert (resolved["pad_token_id"], resolved["architectures"]) == (None, ["Qwen2ForCausalLM"])
    assert "quantization_config" not in resolved


def _values(record: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for name, value in items:
        yield (*path, name)
        if isinstance(value, dict | list):
            yield from _values(value, (*path, name))


_ODD = (None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, 1e300, -0.0, "", "x", "16", [], [1],
        {}, {"a": 1}, [[]], "F32", "default", float("nan"))  # fmt: skip


def _mutated(record: dict[str, Any], chance: random.Random) -> bytes:
    """A JSON object with one to three places changed, or bytes of it."""
    made = copy.deepcopy(record)
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(list(_values(made)) or [("x",)])
        inner = made
        for step in way:
            inner = inner[step]
        kind = chance.randrange(5)
        if kind == 0 and isinstance(inner, dict):
            inner.pop(last, None)
        elif kind == 1 and isinstance(inner, dict):
            other = chance.choice(["x", "model_type", "__metadata__", "dtype", f"{last}s"])
            inner[other] = copy.deepcopy(inner.get(last))
        elif kind == 2 and isinstance(inner[last] if inner else None, int):
            inner[last] += chance.choice([-64, -1, 1, 8, 64, 4096])
        else:
            inner[last] = copy.deepcopy(chance.choice(_ODD))
    raw = bytearray(json.dumps(made).encode())
    if chance.random() < 0.2:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def _reads_right(folder: Path) -> bool:
    """Whether our reading equals transformers'; it may also be refused, as a project error."""
    try:
        ours = logits(folder)
    except TransomError:
        return False
    torch.testing.assert_close(ours, theirs(folder), equal_nan=True)
    return True


def test_mutated_headers_are_refused_or_right(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (size_bytes,) = struct.unpack("<Q", raw[:8])
    record, data = json.loads(raw[8 : 8 + size_bytes]), raw[8 + size_bytes :]
    chance, taken = random.Random(1), 0
    for _ in range(MUTATIONS):
        header = _mutated(record, chance)
        length = len(header) if chance.random() < 0.95 else chance.choice([0, 1, 2**62, 2**64 - 1, len(raw)])
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + header + data)
        try:
            read_safetensors_head(folder / WEIGHTS)
        except CheckpointError:
            continue
        taken += _reads_right(folder)
    assert taken < MUTATIONS / 5


def test_mutated_configurations_are_refused_or_right(folder: Path) -> None:
    record = json.loads((folder / CONFIG).read_text())
    chance, taken = random.Random(2), 0
    with _little_memory():
        for _ in range(MUTATIONS):
            (folder / CONFIG).write_bytes(_mutated(record, chance))
            taken += _reads_right(folder)
    assert taken > MUTATIONS / 20
