"""The table: rows equal the model's bit for bit, foreign ids are refused, memory is private."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.enclave.bundle import pack
from transom.enclave.owner import Owner
from transom.enclave.table import EmbeddingTable, open_table
from transom.errors import BundleError

HASH = "5e" * 32
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LLAMA_LIKE = ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe")


@contextmanager
def packed_table(source: Path, folder: Path, **options: Any) -> Iterator[EmbeddingTable]:
    owner = Owner(folder / "owner")
    manifest = pack(source, folder / "out", owner, production=False, rules=(), policy_sha256=HASH, **options)
    table = open_table(folder / "out", manifest, owner.data_key(manifest.bundle))
    yield table
    table.close()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_rows_of_a_sharded_directory_are_its_models_own(tmp_path: Path, dtype: Any, tied: bool) -> None:
    tiny_llama(tmp_path / "whole", tie_word_embeddings=tied)
    model: Any = load(tmp_path / "whole", dtype=dtype).model
    source = tmp_path / "parts"
    model.save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 3
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    weight_VD = model.get_input_embeddings().weight
    with packed_table(source, tmp_path, shard_bytes=7_000) as table:
        assert (table.rows_count, table.width) == tuple(weight_VD.shape)
        found_VD = table.rows(range(table.rows_count))
        assert found_VD.dtype == np.float32
        assert found_VD.tobytes() == weight_VD.float().numpy().tobytes()
        ids = np.random.default_rng(1).integers(0, table.rows_count, 500)
        assert table.rows(ids).tobytes() == weight_VD.float().numpy()[ids].tobytes()


@pytest.mark.parametrize("architecture", LLAMA_LIKE)
def test_a_model_answers_to_the_rows_as_to_the_ids(tmp_path: Path, architecture: str) -> None:
    source = tiny_llama(tmp_path / "model", architecture=architecture, num_hidden_layers=1)
    ids_BT = torch.arange(3, 40)[None]
    model: Any = load(source).model
    with packed_table(source, tmp_path) as table:
        rows_BTD = torch.from_numpy(table.rows(ids_BT[0].tolist()))[None]
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=rows_BTD).logits, model(input_ids=ids_BT).logits)


def test_bert_answers_to_the_rows_as_to_the_ids(tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "model")
    model: Any = load(source).model
    ids_BT = torch.arange(3, 40)[None]
    with packed_table(source, tmp_path) as table, torch.no_grad():
        rows_BTD = torch.from_numpy(table.rows(ids_BT[0].tolist()))[None]
        assert torch.equal(model(inputs_embeds=rows_BTD).logits, model(input_ids=ids_BT).logits)


def test_a_trunk_without_a_head_is_packed_too(tmp_path: Path) -> None:
    whole = tiny_llama(tmp_path / "whole")
    model: Any = load(whole).model
    model.model.save_pretrained(tmp_path / "trunk")
    (tmp_path / "trunk" / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    with packed_table(tmp_path / "trunk", tmp_path) as table:
        assert np.array_equal(table.rows(range(table.rows_count)), model.model.embed_tokens.weight.numpy())


@pytest.mark.parametrize(("dtype", "wide"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_every_16_bit_pattern_widens_as_torch_widens_it(dtype: str, wide: torch.dtype) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    stored = patterns.view(np.float16) if dtype == "F16" else patterns
    table = EmbeddingTable(stored.reshape(-1, 8), dtype)
    expected = torch.from_numpy(patterns.view(np.int16).copy()).view(wide).float().numpy()
    found = table.rows(range(table.rows_count)).ravel()
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert found[~nan].tobytes() == expected[~nan].tobytes()


@pytest.fixture
def table() -> EmbeddingTable:
    return EmbeddingTable(np.arange(12, dtype=np.float32).reshape(4, 3), "F32")


@pytest.mark.parametrize(
    "ids",
    [[-1], [4], [0, 4], [2**63], [2**70], [1.0], [True], ["1"], [[0]], [None], np.array(1.5)[None]],
    ids=str,
)
def test_ids_that_are_not_the_tables_are_refused(table: EmbeddingTable, ids: Any) -> None:
    with pytest.raises(BundleError):
        table.rows(ids)


def test_rows_repeat_and_none_is_an_empty_array(table: EmbeddingTable) -> None:
    assert table.rows([3, 0, 3]).tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]
    assert table.rows([]).shape == table.rows(np.array([], np.int64)).shape == (0, 3)
    assert table.rows([]).dtype == np.float32


def test_rows_are_copies(table: EmbeddingTable) -> None:
    table.rows([1]).fill(0)
    assert table.rows([1]).tolist() == [[3, 4, 5]]


def test_a_closed_table_is_zero_and_refuses() -> None:
    memory = np.ones((4, 3), np.float32)
    table = EmbeddingTable(memory, "F32")
    table.close()
    table.close()
    assert not memory.any()
    with pytest.raises(BundleError, match="closed"):
        table.rows([1])


def test_the_memory_is_private_and_left_out_of_core_files(tmp_path: Path) -> None:
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("this system has no /proc/self/smaps")
    with packed_table(tiny_llama(tmp_path / "model"), tmp_path) as table:
        assert table._table_VD is not None
        address = table._table_VD.__array_interface__["data"][0]
        flags, mapping = "", ""
        for line in smaps.read_text().splitlines():
            if "-" in line.split(" ")[0]:
                first, last = (int(part, 16) for part in line.split(" ")[0].split("-"))
                mapping = line if first <= address < last else ""
            elif mapping and line.startswith("VmFlags:"):
                flags, permissions = line, mapping.split(" ")[1]
        assert permissions == "rw-p"
        assert " dd" in flags
