"""Rows, columns and texts of a user's file, by its ending: text lines, CSV, TSV, JSON, Parquet.

Text is UTF-8, a text a line. CSV follows RFC 4180, with quotes and line breaks in cells; TSV splits at tabs
and knows no quotes; JSON lines hold an object each, a JSON document a list of objects or one. A cell is the
text that stands there: "NA", "null" and "007" are texts like any other. Parquet needs the extra `parquet`.
Threat model: malformed files. A row of another width, a name that stands twice, a cell that is no text, bytes
that are no UTF-8 and a JSON member given twice are errors; they name a row or a byte, never content.
Does not protect: what is not read stays as it is.
Source: RFC 4180 (CSV), RFC 3629 (UTF-8), RFC 8259 (JSON).
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from transom.config import load_json
from transom.errors import MisconfiguredError, extra


class Format(StrEnum):
    """How a file is cut into rows."""

    text = "text"
    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    json = "json"
    parquet = "parquet"


CELL_LIMIT_CHARS = 2**28  # of a CSV cell; the csv module's own limit is 2**17
_ENDINGS = {".csv": Format.csv, ".tsv": Format.tsv, ".jsonl": Format.jsonl, ".ndjson": Format.jsonl,
            ".json": Format.json, ".parquet": Format.parquet}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The names of the columns, or of a table without a header their numbers from 1, and the rows to come."""

    names: tuple[str, ...]
    rows: Iterator[list[str]]
    header: bool = True

    def index(self, column: str) -> int:
        """Where the column stands, given by name or by number from 1. Raises MisconfiguredError."""
        if self.names.count(column) > 1:
            raise MisconfiguredError(
                f"{self.names.count(column)} columns are named {column!r}; give their numbers"
            )
        if column in self.names:
            return self.names.index(column)
        if column.isdecimal() and 1 <= int(column) <= len(self.names):
            return int(column) - 1
        raise MisconfiguredError(
            f"there is no column {column!r}; name one of the header's or give a number from 1 to "
            f"{len(self.names)}" + ("; or is it another --delimiter?" if len(self.names) == 1 else "")
        )


def form_of(source: Path) -> Format:
    """The format by the file's ending; text, where the ending says nothing."""
    return _ENDINGS.get(source.suffix.lower(), Format.text)


@contextmanager
def opened(source: Path) -> Iterator[BinaryIO]:
    """The file's bytes; `-` is standard input. Raises MisconfiguredError."""
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise MisconfiguredError(f"{source} cannot be read ({error.strerror})") from error
    with file:
        yield file


def decoded(file: BinaryIO, name: str, advance: Callable[[int], object] = bool) -> Iterator[str]:
    """Lines with their ends; `advance` gets the bytes of each. Raises MisconfiguredError at a byte that is
    no UTF-8, with its offset."""
    offset = 0
    for line in file:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            where = offset + error.start
            raise MisconfiguredError(f"{name} is not valid UTF-8 at byte {where}; convert it first") from None
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(line)
        advance(len(line))


def table(lines: Iterator[str], form: Format, *, header: bool = True, delimiter: str = ",") -> Table:
    """The CSV or TSV table of these lines, read as its rows are taken. Raises MisconfiguredError."""
    rows = (
        _csv_rows(lines, delimiter)
        if form is Format.csv
        else (line.rstrip("\r\n").split("\t") for line in lines)
    )
    first = next(rows, None)
    if first is None:
        raise MisconfiguredError("the table is empty; nothing to read")
    if header:
        return Table(tuple(first), _of_width(rows, len(first), 2))
    names = tuple(str(number) for number in range(1, len(first) + 1))
    return Table(names, _of_width(itertools.chain([first], rows), len(first), 1), header=False)


def read_rows(source: Path) -> list[dict[str, str]]:
    """Every row by column; numbers of JSON and Parquet as JSON writes them, nulls and lists left out.

    Raises MisconfiguredError, and MissingExtraError for Parquet.
    """
    form = form_of(source)
    if form not in (Format.csv, Format.tsv):
        return [_spelled(row) for row in _objects(source, form)]
    with opened(source) as file:
        found = table(decoded(file, str(source)), form)
        for name in found.names:
            found.index(name)  # refuses one that stands twice
        return [dict(zip(found.names, row, strict=True)) for row in found.rows]


def read_column(source: Path, column: str) -> tuple[str, ...]:
    """The cells of one column: by name, or in CSV and TSV by number from 1, and then there is no header.

    Raises MisconfiguredError, also for a cell of JSON or Parquet that is no text, and MissingExtraError.
    """
    form = form_of(source)
    if form in (Format.csv, Format.tsv):
        with opened(source) as file:
            found = table(decoded(file, str(source)), form, header=not column.isdecimal())
            index = found.index(column)
            return tuple(row[index] for row in found.rows)
    cells = [row.get(column) for row in _objects(source, form, column)]
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, str):
            raise MisconfiguredError(
                f"{source}, row {number}: {column!r} holds no text but a {type(cell).__name__}"
            )
    return tuple(map(str, cells))


def read_texts(source: Path, column: str | None = None) -> tuple[str, ...]:
    """The texts of a file that hold something: its lines, or the cells of a column where it has columns.

    Raises MisconfiguredError, also where there is no text, and MissingExtraError for Parquet.
    """
    if form_of(source) is Format.text:
        with opened(source) as file:
            texts: Sequence[str] = tuple(decoded(file, str(source)))
    elif column is None:
        raise MisconfiguredError(f"{source} has columns; name the one to read with --column")
    else:
        texts = read_column(source, column)
    found = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise MisconfiguredError(f"{source} holds no text")
    return found


def _csv_rows(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(CELL_LIMIT_CHARS)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise MisconfiguredError(f"line {reader.line_num} is not valid CSV ({error})") from error


def _of_width(rows: Iterator[list[str]], width: int, start: int) -> Iterator[list[str]]:
    for number, row in enumerate(rows, start):
        if len(row) != width:
            raise MisconfiguredError(f"row {number} has {len(row)} columns, the first has {width}")
        yield row


def _objects(source: Path, form: Format, column: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of JSON or Parquet with their typed values; of Parquet only `column`, if one is named."""
    if form is Format.text:
        raise MisconfiguredError(f"{source} has no columns; give a .csv, .tsv, .jsonl, .json or .parquet")
    if form is Format.parquet:
        yield from _parquet(source, column)
        return
    if form is Format.json:
        yield from _document(source)
        return
    with opened(source) as file:
        for number, line in enumerate(decoded(file, str(source)), 1):
            if not line.strip():
                continue
            try:
                row = load_json(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise MisconfiguredError(
                    f"{source}, line {number} ({len(line)} characters) is no JSON object"
                )
            yield row


def _document(source: Path) -> list[dict[str, Any]]:
    """The objects of a JSON document: those of its list, or the one that it is."""
    with opened(source) as file:
        try:
            found = load_json("".join(decoded(file, str(source))))
        except (ValueError, RecursionError):
            raise MisconfiguredError(f"{source} is not valid JSON") from None
    rows = found if isinstance(found, list) else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise MisconfiguredError(f"{source} holds neither an object nor a list of objects")
    return rows


def _parquet(source: Path, column: str | None) -> Iterator[dict[str, Any]]:
    with extra("parquet", "pyarrow"):
        from pyarrow import ArrowException, parquet  # type: ignore[import-untyped,unused-ignore]
    try:
        with parquet.ParquetFile(source) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise MisconfiguredError(f"{source} names a column twice")
            if column is not None and column not in names:
                raise MisconfiguredError(f"{source} has no column {column!r}")
            for batch in file.iter_batches(columns=None if column is None else [column]):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise MisconfiguredError(f"{source} cannot be read as Parquet ({type(error).__name__})") from None


def _spelled(row: dict[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in row.items()
        if isinstance(value, (str, bool, int, float))
    }
