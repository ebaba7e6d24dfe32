"""A party's file as blocks of rows: IDs and labels as text, features as numbers, and what is wrong by row.

CSV and TSV are read as a stream, Parquet by batches, an .npy array is mapped; JSON is read whole.
Threat model: mistakes in a file. A cell that is no finite decimal number is a problem of its row and column;
nothing is filled in. Problems tell numbers of rows and names of columns, never a cell.
Does not protect: a number that is wrong.
Source: own. Shapes: B rows of a block, F features.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.config import suggest
from transom.data import rows
from transom.errors import MisconfiguredError, extra, system_errors
from transom.vertical.job import Data

LARGEST = float(np.finfo(np.float32).max)
BLOCK_CELLS = 2**18
_SHOWN = 5


@dataclass
class Problems:
    """What is wrong with rows, by column and kind: how many, and the first of them."""

    found: dict[tuple[str, str], tuple[int, list[int]]] = field(default_factory=dict)

    def add(self, row: int, column: str, kind: str) -> None:
        """Row `row` has this in that column."""
        count, first = self.found.setdefault((column, kind), (0, []))
        self.found[column, kind] = count + 1, [*first, row][:_SHOWN]

    def __iter__(self) -> Iterator[str]:
        for (column, kind), (count, first) in self.found.items():
            more = ", ..." if count > len(first) else ""
            numbers = ", ".join(map(str, first)) + more
            yield f"column {column!r}: {kind} in {count} row{'s' * (count > 1)} ({numbers})"


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are used, by place: of the ID, of the label if there is one, of features."""

    names: tuple[str, ...]
    key: int
    label: int | None
    features: tuple[int, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features' names in their order."""
        return tuple(self.names[one] for one in self.features)


@dataclass(frozen=True)
class Block:
    """Rows from number `first` on. `cells` have their labels as text; numbers that are none are NaN."""

    first: int
    ids: Sequence[str]
    labels: Sequence[str]
    numbers_BF: NDArray[np.float64]


@dataclass(frozen=True)
class Sheet:
    """An opened file: its columns, and its blocks to come, which add to `problems`."""

    columns: Columns
    blocks: Iterator[Block]
    problems: Problems


def columns_of(data: Data, names: Sequence[str], *, label_needed: bool, keyed: bool = True) -> Columns:
    """Where the job's columns stand. Raises MisconfiguredError with all that are missing or stand twice."""
    names = tuple(names)
    wrong = [
        f"{names.count(one)} columns are named {one!r}" for one in sorted({*names}) if names.count(one) > 1
    ]
    label = data.label_column if label_needed or data.label_column in names else None
    wanted = [*([data.id_column] if keyed else []), *([label] if label else []), *data.features]
    for one in wanted:
        if one not in names:
            near = suggest(one, names)
            wrong.append(f"there is no column {one!r}" + (f"; {near}" if near.startswith("did") else ""))
    if not data.features and "" in names:
        wrong.append("a column has no name; is it an index? Name the features in the job, or take it out")
    if wrong:
        raise MisconfiguredError(f"{data.path} cannot be used: {'; '.join(wrong)}")
    others = (one for one in names if one not in (data.id_column, data.label_column))
    places = {one: place for place, one in enumerate(names)}
    features = tuple(places[one] for one in data.features or others)
    return Columns(names, places[data.id_column] if keyed else -1, places[label] if label else None, features)


@contextmanager
def opened(data: Data, *, label_needed: bool) -> Iterator[Sheet]:
    """The rows of a file by its ending. Raises MisconfiguredError, MissingExtraError."""
    form, problems = rows.form_of(data.path), Problems()
    if form in (rows.Format.csv, rows.Format.tsv):
        with rows.opened(data.path) as file:
            table = rows.table(rows.decoded(file, str(data.path)), form)
            columns = columns_of(data, table.names, label_needed=label_needed)
            yield Sheet(columns, _text_blocks(columns, table.rows, 2, problems), problems)
    elif form is rows.Format.parquet:
        with _parquet(data.path) as file:
            columns = columns_of(data, file.schema_arrow.names, label_needed=label_needed)
            yield Sheet(columns, _parquet_blocks(columns, file, problems), problems)
    else:
        found = rows.read_rows(data.path)
        names = dict.fromkeys(name for row in found for name in row)
        columns = columns_of(data, tuple(names), label_needed=label_needed)
        cells = ([row.get(name, "") for name in columns.names] for row in found)
        yield Sheet(columns, _text_blocks(columns, cells, 1, problems), problems)


def is_array(path: Path) -> bool:
    """Whether the file is an .npy array."""
    return path.suffix.lower() == ".npy"


def mapped(path: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped: rows by columns of numbers. Raises MisconfiguredError."""
    try:
        with system_errors(f"cannot read {path}", "check the path"):
            found = np.lib.format.open_memmap(path, mode="r")  # of no other format, and never a pickle
    except ValueError:
        raise MisconfiguredError(f"{path} is no .npy array of numbers, or is cut short") from None
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise MisconfiguredError(f"{path} is no .npy array of numbers with rows and columns")
    return found


def block_rows(width: int) -> int:
    """Rows of a block of so many columns."""
    return max(1, BLOCK_CELLS // (width + 1))


def check_numbers(block: Block, names: Sequence[str], problems: Problems) -> None:
    """Add every number that is NaN, infinite or beyond float32."""
    wrong_BF = ~(np.abs(block.numbers_BF) <= LARGEST)
    for row, column in np.argwhere(wrong_BF):
        problems.add(block.first + int(row), names[column], kind_of(float(block.numbers_BF[row, column])))


def kind_of(number: float) -> str:
    """What is wrong with a number; nothing, if it is finite as float32."""
    if np.isfinite(number):
        return "" if abs(number) <= LARGEST else "too large a number"
    return "no finite number"


def number_in(cell: str) -> tuple[float, str]:
    """The decimal number of a cell and no problem, or NaN and what is wrong with it.

    >>> number_in("-1.5e3"), number_in("1_000"), number_in("nan")
    ((-1500.0, ''), (nan, 'no number'), (nan, 'no finite number'))
    """
    if not cell.strip():
        return np.nan, "an empty cell"
    try:
        number = float(cell) if cell.isascii() and "_" not in cell else None
    except ValueError:
        number = None
    if number is None:
        return np.nan, "no number"
    kind = kind_of(number)
    return (np.nan if kind else number), kind


def _text_blocks(
    columns: Columns, cells: Iterator[list[str]], first: int, problems: Problems
) -> Iterator[Block]:
    size, names = block_rows(len(columns.names)), columns.feature_names
    pick = _picker(columns.features)
    while taken := list(itertools.islice(cells, size)):
        numbers = [_numbers(pick(row), first + place, names, problems) for place, row in enumerate(taken)]
        numbers_BF = np.array(numbers, np.float64).reshape(len(taken), len(names))
        labels = [] if columns.label is None else [row[columns.label] for row in taken]
        yield Block(first, [row[columns.key] for row in taken], labels, numbers_BF)
        first += len(taken)


def _picker(places: tuple[int, ...]) -> Any:
    """A function that gives a row's cells at these places."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda row: [row[one] for one in places]


def _numbers(cells: Sequence[str], row: int, names: Sequence[str], problems: Problems) -> Sequence[float]:
    """A row's numbers, at once where all are well, else cell by cell."""
    joined = "".join(cells)
    if joined.isascii() and "_" not in joined:
        try:
            numbers = [float(cell) for cell in cells]
        except ValueError:
            numbers = [np.nan]
        if sum(map(abs, numbers)) <= LARGEST:  # of a NaN it is not
            return numbers
    found = [number_in(cell) for cell in cells]
    for name, (_, kind) in zip(names, found, strict=True):
        if kind:
            problems.add(row, name, kind)
    return [number for number, _ in found]


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    with extra("parquet", "pyarrow"):
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped,unused-ignore]
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise MisconfiguredError(f"{path} cannot be read as Parquet ({type(error).__name__})") from None


def _parquet_blocks(columns: Columns, file: Any, problems: Problems) -> Iterator[Block]:
    used = [columns.key, *([] if columns.label is None else [columns.label]), *columns.features]
    first, names = 1, columns.feature_names
    wanted = [columns.names[one] for one in dict.fromkeys(used)]
    for batch in file.iter_batches(batch_size=block_rows(len(used)), columns=wanted):
        numbers_BF = np.empty((batch.num_rows, len(names)))
        for place, name in enumerate(names):
            numbers_BF[:, place] = _arrow_numbers(batch.column(name), first, name, problems)
        labels = [] if columns.label is None else _arrow_texts(batch.column(columns.names[columns.label]))
        yield Block(first, _arrow_texts(batch.column(columns.names[columns.key])), labels, numbers_BF)
        first += batch.num_rows


def _arrow_numbers(column: Any, first: int, name: str, problems: Problems) -> Any:
    """Numbers as they are, text as it reads; what is neither is a problem."""
    from pyarrow import types

    if types.is_integer(column.type) or types.is_floating(column.type):
        numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
        for wrong in map(int, np.flatnonzero(~(np.abs(numbers) <= LARGEST))):
            kind = kind_of(float(numbers[wrong])) if column[wrong].is_valid else "an empty cell"
            problems.add(first + wrong, name, kind)
        return numbers
    found = [_arrow_cell(cell) for cell in column.to_pylist()]
    for row, (_, kind) in enumerate(found, first):
        if kind:
            problems.add(row, name, kind)
    return [number for number, _ in found]


def _arrow_cell(cell: object) -> tuple[float, str]:
    if cell is None or isinstance(cell, str):
        return number_in(cell or "")
    return np.nan, "no number"


def _arrow_texts(column: Any) -> list[str]:
    """Texts as they are, whole numbers and truth values as JSON writes them; all others are empty."""
    return [
        cell if isinstance(cell, str) else json.dumps(cell) if isinstance(cell, int) else ""
        for cell in column.to_pylist()
    ]
