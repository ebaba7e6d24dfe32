"""A party's file is read as it stands, or refused with all that is wrong with it by row and column."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from transom.errors import MisconfiguredError
from transom.vertical import sheet, table
from transom.vertical.job import Data, VerticalJob
from transom.vertical.table import constant, read_table

ROWS = ["id,age,pay,y", "p1,30,1.5,no", "p2,40,-2e3,yes", "P 3,50,0,no"]


def feature(path: Path, *features: str, **data: Any) -> VerticalJob:
    return VerticalJob("credit", "binary", Data(path, features=features, **data))


def label(path: Path, task: Any = "binary", *classes: str, column: str = "y") -> VerticalJob:
    return VerticalJob("credit", task, Data(path, label_column=column), classes or ("no", "yes"))


def numbers(path: Path, task: Any) -> VerticalJob:
    return VerticalJob("credit", task, Data(path, label_column="y"))


def written(folder: Path, *lines: str, name: str = "rows.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return folder / name


def refused(job: VerticalJob, **more: Any) -> str:
    with pytest.raises(MisconfiguredError) as told:
        read_table(job, **more)
    return str(told.value)


def test_a_label_partys_file_is_read_as_it_stands(tmp_path: Path) -> None:
    found = read_table(label(written(tmp_path, *ROWS)))
    assert found.ids == ("p1", "p2", "p 3")
    assert found.names == ("age", "pay")
    assert found.features_NF.dtype == np.float32
    assert found.features_NF.tolist() == [[30, 1.5], [40, -2000], [50, 0]]
    assert found.labels_N is not None
    assert found.labels_N.dtype == np.int64
    assert found.labels_N.tolist() == [0, 1, 0]


def test_features_come_in_the_jobs_order(tmp_path: Path) -> None:
    path = written(tmp_path, *ROWS)
    assert read_table(feature(path, "pay", "age")).features_NF.tolist()[1] == [-2000, 40]
    assert read_table(feature(path, "pay")).features_NF.tolist() == [[1.5], [-2000], [0]]


def test_a_label_party_may_have_no_features(tmp_path: Path) -> None:
    found = read_table(label(written(tmp_path, "id,y", "1,no", "2,yes")))
    assert found.features_NF.shape == (2, 0)
    assert found.names == ()
    assert "needs one" in refused(feature(written(tmp_path, "id", "1", "2")))


@pytest.mark.parametrize(("task", "cells"), [("regression", ("-1.5", "2")), ("counts", ("0", "3.0"))])
def test_numbers_are_labels_too(tmp_path: Path, task: str, cells: tuple[str, str]) -> None:
    found = read_table(numbers(written(tmp_path, "id,y", f"1,{cells[0]}", f"2,{cells[1]}"), task)).labels_N
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [float(cell) for cell in cells]


@pytest.mark.parametrize("form", ["tsv", "json", "jsonl", "parquet", "npy"])
def test_every_format_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    x_NF = np.array([[1.5, -2], [3, 4], [5.25, 0]], np.float32)
    objects = [{"id": str(n), "0": float(a), "1": float(b)} for n, (a, b) in enumerate(x_NF)]
    path = tmp_path / f"rows.{form}"
    if form == "npy":
        np.save(path, x_NF)
    elif form == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(objects), path)
    elif form == "json":
        path.write_text(json.dumps(objects))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, objects)))
    else:
        path.write_text(
            "\n".join("\t".join(map(str, row)) for row in (objects[0], *(o.values() for o in objects)))
        )
    found = read_table(feature(path))
    assert (found.ids, found.names) == (("0", "1", "2"), ("0", "1"))
    assert (found.features_NF == x_NF).all()


def test_whole_numbers_and_text_of_parquet_are_read(tmp_path: Path) -> None:
    rows = {
        "id": [7, 8, 9],
        "a": [1, 2, None],
        "b": ["1", "x", "3"],
        "c": [1.0, np.inf, 2.0],
        "d": [True] * 3,
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "rows.parquet")
    job = feature(tmp_path / "rows.parquet")
    told = refused(job)
    assert "column 'a': an empty cell in 1 row (3)" in told
    assert "column 'b': no number in 1 row (2)" in told
    assert "column 'c': no finite number in 1 row (2)" in told
    assert "column 'd': no number in 3 rows (1, 2, 3)" in told
    with pytest.raises(MisconfiguredError, match="cannot be read as Parquet"):
        read_table(feature(written(tmp_path, "no", name="rows.parquet")))


def test_all_that_is_wrong_is_told_by_row_and_column_and_not_by_content(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "id,age,pay,y",
        "p1,NaN,1,no",
        ",30,1_000,maybe",
        "p3,,inf,no",
        "p4,secret,1e39,",
        "p5,٣,-Infinity,no",
    )
    told = refused(label(path))
    assert told == (
        f"{path} cannot be used: column 'age': no finite number in 1 row (2); "
        "column 'pay': no number in 1 row (3); column 'age': an empty cell in 1 row (4); "
        "column 'pay': no finite number in 2 rows (4, 6); column 'age': no number in 2 rows (5, 6); "
        "column 'pay': too large a number in 1 row (5); column 'id': an empty ID in 1 row (3); "
        "column 'y': a label that is none of the job's classes in 2 rows (3, 5)"
    )


@pytest.mark.parametrize("blocks", [1, 3, 2**20])
def test_row_numbers_do_not_depend_on_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(sheet, "BLOCK_CELLS", blocks)
    path = written(tmp_path, "id,a", *(f"{n},{'x' if n % 2 else n}" for n in range(20)))
    assert "column 'a': no number in 10 rows (3, 5, 7, 9, 11, ...)" in refused(feature(path))
    good = written(tmp_path, "id,a", *(f"{n},{n}" for n in range(20)))
    assert read_table(feature(good)).features_NF[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("head", "job", "message"),
    [
        ("id,a,a", {}, "2 columns are named 'a'"),
        ("key,a", {}, "there is no column 'id'"),
        ("id,age", {"features": ("Age",)}, "no column 'Age'; did you mean 'age'"),
        ("id,,a", {}, "a column has no name"),
    ],
)
def test_columns_are_found_or_refused(tmp_path: Path, head: str, job: dict[str, Any], message: str) -> None:
    path = written(tmp_path, head, "1,2,3"[: 2 * head.count(",") + 1])
    with pytest.raises(MisconfiguredError, match=message):
        read_table(VerticalJob("credit", "binary", Data(path, **job)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("id,a", "1,5", "2,5"), "column 'a' is constant"),
        (("id,a", "1,5"), "1 rows, and needs at least 2"),
        (("id,a",), "0 rows"),
        (("id,a", "1,5", "2"), "row 3 has 1 columns"),
        (("id,a", 'x,"5'), "not valid CSV"),
        ((), "empty"),
    ],
)
def test_files_that_nothing_can_be_learnt_from(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    assert message in refused(feature(path))


def test_a_label_that_never_differs_is_refused(tmp_path: Path) -> None:
    assert "'the label' is constant" in refused(label(written(tmp_path, "id,y", "1,no", "2,no")))
    assert "no whole number" in refused(numbers(written(tmp_path, "id,y", "1,-1", "2,0.5"), "counts"))


def test_rows_to_predict_need_neither_label_nor_change(tmp_path: Path) -> None:
    job = label(written(tmp_path, *ROWS))
    other = written(tmp_path, "id,age,pay", "9,1,2", name="new.csv")
    found = read_table(job, other, train=False)
    assert (found.labels_N, found.ids, found.features_NF.tolist()) == (None, ("9",), [[1, 2]])
    assert "there is no column 'y'" in refused(job, path=other)


def test_rows_that_say_the_same_are_merged_and_those_that_do_not_refused(tmp_path: Path) -> None:
    found = read_table(label(written(tmp_path, *ROWS, " P1 ,30.0,1.50,no", "p1,30,1.5,no")))
    assert (found.ids, found.merged, len(found.features_NF)) == (("p1", "p2", "p 3"), 2, 3)
    assert found.labels_N is not None
    assert found.labels_N.tolist() == [0, 1, 0]
    for other in ("P1,31,1.5,no", "p1,30,1.5,yes"):
        told = refused(label(written(tmp_path, *ROWS, other)))
        assert "rows 2 and 5 have one ID (by the rule 1: NFKC" in told
        assert "p1" not in told


def test_a_digest_is_of_ids_features_and_labels(tmp_path: Path) -> None:
    first = read_table(label(written(tmp_path, *ROWS))).digest
    assert (
        read_table(label(written(tmp_path, *(row.replace("P 3", " p  3") for row in ROWS)))).digest == first
    )
    for before, after in (("p2", "p4"), ("40", "41"), ("yes", "no"), ("pay", "gain")):
        rows = [row.replace(before, after) for row in ROWS]
        if after == "no":
            rows[1] = rows[1].replace("no", "yes")
        assert read_table(label(written(tmp_path, *rows))).digest != first
    assert read_table(label(written(tmp_path, ROWS[0], *ROWS[:0:-1]))).digest != first


def test_an_array_is_mapped_where_it_can_be(tmp_path: Path) -> None:
    x_NF = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "x.npy", x_NF)
    plain = read_table(feature(tmp_path / "x.npy"))
    assert isinstance(plain.features_NF, np.memmap)
    with_label = read_table(label(tmp_path / "x.npy", "multiclass", "2", "5", "8", "11", column="2"))
    assert isinstance(with_label.features_NF, np.memmap)
    assert with_label.features_NF.tolist() == x_NF[:, :2].tolist()
    assert with_label.labels_N is not None
    assert with_label.labels_N.tolist() == [0, 1, 2, 3]
    apart = read_table(feature(tmp_path / "x.npy", "2", "0"))
    assert apart.features_NF.tolist() == x_NF[:, [2, 0]].tolist()


def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([[1.0, np.nan], [1e39, 2.0], [3.0, -np.inf]]))
    told = refused(feature(path))
    assert "column '1': no finite number in 2 rows (0, 2)" in told
    assert "column '0': too large a number in 1 row (1)" in told
    for wrong in (np.array([1.0, 2.0]), np.array([["a"]]), np.array([[{}]], object)):
        np.save(path, wrong, allow_pickle=True)
        assert "no .npy array of numbers" in refused(feature(path))
    np.save(path, np.ones((9, 9)))
    for cut in (path.read_bytes()[:-8], b"\x93NUMPY\x01", b"", b"PK\3\4 a zip"):
        path.write_bytes(cut)
        assert "no .npy array of numbers, or is cut short" in refused(feature(path))
    path.unlink()
    assert "cannot read" in refused(feature(path))


def test_constant_columns_are_found_in_a_part_too(tmp_path: Path) -> None:
    found = read_table(label(written(tmp_path, "id,a,b,y", "1,1,1,no", "2,1,2,no", "3,2,3,yes")))
    assert constant(found) == []
    assert constant(found, np.array([0, 1])) == ["a", "the label"]
    assert constant(found, np.array([2])) == ["a", "b", "the label"]
    assert constant(found, np.array([], np.int64)) == []


def test_a_table_is_never_in_memory_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, width = 2500, 200
    monkeypatch.setattr(sheet, "BLOCK_CELLS", 2**11)
    monkeypatch.setattr(table, "_GROW_BYTES", 2**16)
    line = ",".join(f"{n}.5" for n in range(width))
    path = written(tmp_path, "id," + line, *(f"{n},{n}{line[1:]}" for n in range(count)))
    tracemalloc.start()
    found = read_table(feature(path), train=False)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.5 * found.features_NF.nbytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.text("abcÄ 01", min_size=1, max_size=4).filter(str.strip),
            st.floats(width=32, allow_nan=False, allow_infinity=False),
            st.integers(0, 2**20),
        ),
        min_size=2,
        unique_by=lambda row: " ".join(row[0].casefold().split()),
    )
)
def test_what_is_written_is_what_is_read(tmp_path: Path, rows: list[tuple[str, float, int]]) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "a", "y"), *rows])
    found = read_table(replace(numbers(path, "counts")), train=False)
    assert found.features_NF[:, 0].tolist() == [number for _, number, _ in rows]
    assert found.labels_N is not None
    assert found.labels_N.tolist() == [count for *_, count in rows]
    assert len(found.ids) == len(rows)


def test_an_array_may_have_a_border_and_not_be_one(tmp_path: Path) -> None:
    """Images have columns that never change."""
    images = np.zeros((6, 4), np.float32)
    np.save(tmp_path / "blank.npy", images)
    images[:, 1] = np.arange(6)
    np.save(tmp_path / "images.npy", images)
    job = VerticalJob("images", "binary", Data(tmp_path / "images.npy"))
    assert read_table(job).features_NF.shape == (6, 4)
    with pytest.raises(MisconfiguredError, match="column '0' is constant"):
        read_table(replace(job, data=Data(tmp_path / "blank.npy")))
