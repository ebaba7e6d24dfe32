"""Rows: what is in the file is what is trained on, what is wrong is told at once, the order is a shuffle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from transom.checkpoint.tokenizer import TokenizerFiles, export_tokenizer
from transom.errors import MisconfiguredError
from transom.split.job import Data, Train
from transom.split.metrics import IGNORED
from transom.split.rows import Rows, batches, encode, order, pad_id_of, padded, read_rows

TEXTS = ["The quick brown fox", "a lazy dog, and why", "what will the weather be", "Numbers: 0 1 2"]
NAMES = ["good", "bad", "good", "bad"]
LABELS = ("bad", "good")


@pytest.fixture(scope="module")
def word_piece(bert: Path) -> TokenizerFiles:
    return export_tokenizer(bert)


@pytest.fixture(scope="module")
def byte_level(llama: Path) -> TokenizerFiles:
    return export_tokenizer(llama)


def data_of(file: Path, texts: list[Any], labels: list[Any], **changes: Any) -> Data:
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif file.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        cut = "\t" if file.suffix == ".tsv" else '","'
        lines = [f"{row['text']}{cut}{row['label']}" for row in [{"text": "text", "label": "label"}, *rows]]
        quoted = lines if file.suffix == ".tsv" else [f'"{line}"' for line in lines]
        file.write_text("".join(line + "\n" for line in quoted), "utf-8")
    return Data(train=file, **changes)


def test_the_frame_is_what_the_tokenizer_puts_there_though_every_text_spells_more(bert: Path) -> None:
    """Else a place that all rows to train on spell as [SEP] would be taken for public in other texts."""
    files = export_tokenizer(bert)
    files.tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    found = encode(["[SEP] quick [SEP]", "[SEP][SEP] fox [SEP]", "[SEP]", ""], files, 16)
    first, sep = found.ids[3]
    assert found.ids[2] == (first, sep, sep)
    assert {text[:2] for text in found.ids} == {(first, sep)}
    assert found.frame == (1, 1)
    assert encode(["", ""], files, 16).frame == (0, 0)  # which none can tell


@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str, word_piece: TokenizerFiles) -> None:
    rows = read_rows(
        data_of(tmp_path / f"t.{ending}", TEXTS, NAMES), "train", LABELS, "classification", word_piece
    )
    assert rows.labels == (1, 0, 1, 0)
    assert rows.ids == tuple(tuple(word_piece.tokenizer.encode(text).ids) for text in TEXTS)
    assert rows.specials == {word_piece.tokenizer.token_to_id(one) for one in ("[CLS]", "[SEP]")}
    assert (rows.shortened, len(rows)) == (0, 4)


def test_labels_may_be_numbers_of_a_file(tmp_path: Path, word_piece: TokenizerFiles) -> None:
    data = data_of(tmp_path / "t.jsonl", TEXTS, [1, 0, 1, 0])
    assert read_rows(data, "train", ("0", "1"), "classification", word_piece).labels == (1, 0, 1, 0)


def test_all_that_is_wrong_is_told_at_once_and_without_content(
    tmp_path: Path, word_piece: TokenizerFiles
) -> None:
    data = data_of(tmp_path / "t.tsv", ["fox", " ", "", "dog", "sécret"], ["good", "good", "bad", "Évil", ""])
    with pytest.raises(MisconfiguredError) as told:
        read_rows(data, "train", LABELS, "classification", word_piece)
    assert "rows 3, 4: no text" in str(told.value)
    assert "rows 5, 6: a label that is none of 'bad', 'good'" in str(told.value)
    assert "vil" not in str(told.value)
    assert "cret" not in str(told.value)
    many = data_of(tmp_path / "m.jsonl", [""] * 20 + ["fox"], ["good"] * 21)
    with pytest.raises(
        MisconfiguredError, match=r"rows 1, 2, 3, 4, 5, 6, 7, 8 and 12 more: no text; all 21 rows"
    ):
        read_rows(many, "train", LABELS, "classification", word_piece)


def test_one_class_trains_nothing_but_can_be_evaluated(tmp_path: Path, word_piece: TokenizerFiles) -> None:
    data = data_of(tmp_path / "t.jsonl", TEXTS, ["good"] * 4)
    with pytest.raises(MisconfiguredError, match="all 4 rows have one label"):
        read_rows(data, "train", LABELS, "classification", word_piece)
    evaluated = replace(data, evaluate=data.train)
    assert read_rows(evaluated, "evaluate", LABELS, "classification", word_piece).labels == (1,) * 4


def test_files_that_hold_no_such_rows_are_refused(tmp_path: Path, word_piece: TokenizerFiles) -> None:
    def refused(message: str, data: Data, which: Any = "train") -> None:
        with pytest.raises(MisconfiguredError, match=message):
            read_rows(data, which, LABELS, "classification", word_piece)

    data = data_of(tmp_path / "t.csv", TEXTS, NAMES)
    refused(
        "none has a column 'sentence' or 'class'", replace(data, text_column="sentence", label_column="class")
    )
    refused("set data.evaluate", data, "evaluate")
    refused("holds no rows", data_of(tmp_path / "none.tsv", [], []))
    refused("cannot be read", replace(data, train=tmp_path / "absent.tsv"))
    (tmp_path / "latin.tsv").write_bytes("text\tlabel\ncafé\tgood\n".encode("latin-1"))
    refused("not valid UTF-8 at byte 14", replace(data, train=tmp_path / "latin.tsv"))
    (tmp_path / "plain.txt").write_text("fox\n")
    refused("has no columns", replace(data, train=tmp_path / "plain.txt"))
    (tmp_path / "wide.tsv").write_text("text\tlabel\nfox\tgood\tmore\n")
    refused("row 2 has 3 columns", replace(data, train=tmp_path / "wide.tsv"))


def test_a_language_model_learns_from_lines_and_from_columns(
    tmp_path: Path, byte_level: TokenizerFiles
) -> None:
    (tmp_path / "t.txt").write_text("\n\n".join(TEXTS), "utf-8")
    lines = read_rows(Data(train=tmp_path / "t.txt"), "train", (), "causal", byte_level)
    column = read_rows(data_of(tmp_path / "t.jsonl", TEXTS, NAMES), "train", (), "causal", byte_level)
    assert lines == column
    assert (lines.labels, lines.digest) == ((), column.digest)
    with pytest.raises(MisconfiguredError, match="row 2: no token to learn from"):
        read_rows(data_of(tmp_path / "s.jsonl", ["fox", "a"], NAMES[:2]), "train", (), "causal", byte_level)


def test_long_texts_are_cut_within_the_tokenizers_own_and_counted(word_piece: TokenizerFiles) -> None:
    whole, cut = encode(TEXTS, word_piece, 128), encode(TEXTS, word_piece, 5)
    assert [len(ids) for ids in cut.ids] == [min(5, len(ids)) for ids in whole.ids]
    assert all(one[:4] == two[:4] and one[-1] == two[-1] for one, two in zip(cut.ids, whole.ids, strict=True))
    assert cut.shortened == sum(len(ids) > 5 for ids in whole.ids) > 0
    assert len(word_piece.tokenizer.encode(TEXTS[1]).ids) > 5  # the model's own still cuts nothing


def test_the_digest_tells_any_change() -> None:
    rows = Rows(((1, 2), (3,)), (0, 1))
    others = [Rows(((1,), (2, 3)), (0, 1)), Rows(((1, 2), (3,)), (1, 0)), Rows(((3,), (1, 2)), (0, 1))]
    assert len({one.digest for one in [rows, *others]}) == 4


@given(st.integers(0, 300), st.integers(0, 2**31), st.integers(0, 50))
def test_every_epoch_is_a_shuffle_of_all_rows(count: int, seed: int, epoch: int) -> None:
    shuffled = order(count, seed, epoch)
    assert sorted(shuffled) == list(range(count))
    assert shuffled == order(count, seed, epoch)
    if count > 20:
        assert (
            len({tuple(shuffled), tuple(order(count, seed, epoch + 1)), tuple(order(count, seed + 1, epoch))})
            == 3
        )


def test_the_order_is_the_same_for_ever_and_prefers_no_row() -> None:
    assert order(8, 0, 0) == [4, 2, 6, 0, 7, 5, 1, 3]  # sorted by sha256sum of 0/0/0, 0/0/1, ...
    first = torch.bincount(torch.tensor([order(5, 1, epoch)[0] for epoch in range(1000)]), minlength=5)
    assert int((first - 200).abs().max()) < 60


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 3))
def test_batches_hold_each_row_once(count: int, size: int, epoch: int) -> None:
    rows, train = Rows(tuple((number,) for number in range(count)), ()), Train(batch_rows=size, seed=3)
    found = batches(rows, train, epoch)
    assert [row for batch in found for row in batch] == order(count, 3, epoch)
    assert [row for batch in batches(rows, train) for row in batch] == list(range(count))
    assert all(len(batch) == size for batch in found[:-1])


@given(st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=6), min_size=1, max_size=6), st.data())
def test_padding_takes_nothing_away(texts: list[list[int]], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    rows = Rows(tuple(map(tuple, texts)), tuple(range(len(texts))))
    ids_BT, mask_BT, labels_B = padded(rows, numbers, 2)
    assert ids_BT.shape == mask_BT.shape == (len(numbers), max(len(texts[number]) for number in numbers))
    assert labels_B.tolist() == numbers
    for number, ids, mask in zip(numbers, ids_BT, mask_BT, strict=True):
        assert ids[mask == 1].tolist() == texts[number]
        assert set(ids[mask == 0].tolist()) <= {2}
    labels_BT = padded(replace(rows, labels=()), numbers, 2)[2]
    assert torch.equal(labels_BT, ids_BT.masked_fill(mask_BT == 0, IGNORED))


def test_padding_is_the_tokenizers_own_or_what_ends_a_text(byte_level: TokenizerFiles) -> None:
    assert pad_id_of(byte_level) == byte_level.tokenizer.token_to_id("<|pad|>")
    without = {role: text for role, text in byte_level.specials.items() if role != "pad_token"}
    assert pad_id_of(replace(byte_level, specials=without)) == byte_level.eos_ids[0]
    assert pad_id_of(replace(byte_level, specials={"pad_token": "nowhere"})) == 0
