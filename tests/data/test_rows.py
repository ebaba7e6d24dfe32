"""One reader for four formats: what was written is what is read; what is malformed is named by its row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from transom.data.rows import Format, form_of, read_column, read_rows, read_texts, table
from transom.errors import MisconfiguredError

CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
ROWS = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8)
LIKE_NOTHING = ["NA", "null", "None", "nan", "", "007", "1e3", "TRUE", " x "]


def write(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """The rows by another library's writer, in the format of the file's ending."""
    if path.suffix == ".csv":
        out = io.StringIO()
        csv.writer(out).writerows([names, *rows])
        path.write_bytes(out.getvalue().encode())
    elif path.suffix == ".tsv":
        path.write_bytes("".join("\t".join(row) + "\n" for row in [names, *rows]).encode())
    elif path.suffix == ".jsonl":
        records = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        path.write_bytes("".join(record + "\n" for record in records).encode())
    else:
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@given(rows=ROWS)
def test_any_text_is_read_as_it_was_written(folder: Path, ending: str, rows: list[tuple[str, str]]) -> None:
    file = write(folder / f"t{ending}", ("a", "b"), rows)
    assert read_rows(file) == [{"a": one, "b": two} for one, two in rows]
    assert read_column(file, "b") == tuple(two for _, two in rows)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_text_that_looks_like_nothing_is_text(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"t{ending}", ("id", "text"), [(str(i), t) for i, t in enumerate(LIKE_NOTHING)])
    assert list(read_column(file, "text")) == LIKE_NOTHING
    assert list(read_texts(file, "text")) == [text.strip() for text in LIKE_NOTHING if text]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_a_column_by_number_has_no_header_above_it(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"t{ending}", ("1", "one"), [("0", "two")])
    assert read_column(file, "2") == ("one", "two")
    assert read_column(file, "one") == ("two",)


def test_a_table_without_a_header_numbers_its_columns() -> None:
    found = table(iter(["a,b\n", "c,d\n"]), Format.csv, header=False)
    assert (found.names, list(found.rows)) == (("1", "2"), [["a", "b"], ["c", "d"]])
    assert found.index("2") == 1


def test_numbers_are_spelled_as_json_and_the_rest_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1, "b": true, "c": null, "d": [1], "e": 0.5}\n\n', "utf-8")
    assert read_rows(tmp_path / "t.jsonl") == [{"a": "1", "b": "true", "e": "0.5"}]
    parquet.write_table(pyarrow.table({"a": [7, None], "b": ["x", None]}), tmp_path / "t.parquet")
    assert read_rows(tmp_path / "t.parquet") == [{"a": "7", "b": "x"}, {}]
    with pytest.raises(MisconfiguredError, match=r"row 2: 'b' holds no text but a NoneType"):
        read_column(tmp_path / "t.parquet", "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"a,b\n1\n", "row 2 has 1 columns"),
        ("t.csv", b'a,b\n"1,2\n', "not valid CSV"),
        ("t.csv", b"a,a\n1,2\n", "2 columns are named 'a'"),
        ("t.csv", b"", "empty"),
        ("t.csv", b"a\n\xffsecret\n", "byte 2"),
        ("t.tsv", b"a\tb\n1\t2\t3\n", "row 2 has 3 columns"),
        ("t.jsonl", b'{"a": "secret"}\n{"a": 1, "a": 2}\n', "line 2"),
        ("t.jsonl", b"[1]\n", "no JSON object"),
        ("t.parquet", b"PAR1secret", "cannot be read as Parquet"),
        ("t.txt", b"secret", "no columns"),
    ],
)
def test_what_is_malformed_is_refused_by_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MisconfiguredError, match=message) as refused:
        read_rows(tmp_path / name)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_an_absent_column_or_file_is_named(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"t{ending}", ("a",), [("x",)])
    with pytest.raises(MisconfiguredError, match="'b'"):
        read_column(file, "b")
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        read_column(tmp_path / f"absent{ending}", "a")
    with pytest.raises(MisconfiguredError, match="--column"):
        read_texts(file)


def test_lines_are_texts_and_a_mark_at_the_start_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.log").write_bytes("\ufeffone\r\n\n two\u2028three \n".encode())
    assert read_texts(tmp_path / "t.log") == ("one", "two\u2028three")
    (tmp_path / "t.txt").write_bytes(b" \n")
    with pytest.raises(MisconfiguredError, match="holds no text"):
        read_texts(tmp_path / "t.txt")


def test_the_ending_says_the_format() -> None:
    found = [form_of(Path(name)) for name in ("a.CSV", "a.tsv", "a.jsonl", "a.ndjson", "a.parquet", "-", "a")]
    assert found == ["csv", "tsv", "jsonl", "jsonl", "parquet", "text", "text"]
