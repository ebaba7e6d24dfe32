"""A party's rows in memory: canonical IDs, features as float32, labels; all that is wrong is told at once.

A file of a million rows by 500 columns takes its 2 GB and a block; an .npy array of float32 with its features
side by side stays mapped and takes a block. Rows whose ID stands twice are merged where they say the same.
Threat model: mistakes in a file; errors tell numbers of rows and names of columns, never a cell.
Does not protect: a row that is well formed and wrong. The digest is for the party's own folder: whoever can
guess a whole file could check the guess with it.
Source: own. Shapes: N rows of the table, B of a block, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.config import listed
from transom.errors import MisconfiguredError
from transom.vertical import ids as spelling
from transom.vertical import sheet
from transom.vertical.job import VerticalJob
from transom.vertical.sheet import Block, Problems

LEAST_ROWS = 2
_GROW_BYTES = 2**27  # so much is reserved at a time


@dataclass(frozen=True)
class Table:
    """Rows in the file's order. `labels_N` are places in the job's classes (int64), or numbers (float32).

    `names` are the features'. `merged` rows said again what another row said. `digest` is of all of it.
    """

    ids: tuple[str, ...]
    features_NF: NDArray[np.float32]
    names: tuple[str, ...]
    labels_N: NDArray[Any] | None
    merged: int = 0
    digest: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def read_table(job: VerticalJob, path: Path | None = None, *, train: bool = True) -> Table:
    """The rows of the job's file, or of another with the same columns.

    To be trained on they need at least two rows, the label where the job names one, and columns that are not
    constant. Raises MisconfiguredError with every problem, MissingExtraError for Parquet.
    """
    data = job.data if path is None else replace(job.data, path=path)
    job = replace(job, data=data)
    array = sheet.is_array(data.path)
    table, problems, first = _array(job, train) if array else _sheet(job, train)
    found = list(problems)
    if not table.names and job.role == "feature":
        found.append("there is no column beside the ID, and the feature party needs one")
    if len(table) < (LEAST_ROWS if train else 1):
        found.append(f"it has {len(table)} rows, and needs at least {LEAST_ROWS if train else 1}")
    if not found:
        table, found = _merged(table, first)
    if train and not found:
        found = [f"column {name!r} is constant; take it out" for name in constant(table, array=array)]
    if found:
        raise MisconfiguredError(listed(f"{data.path} cannot be used", found))
    return replace(table, digest=_digest(table))


def constant(table: Table, rows_M: NDArray[np.int64] | None = None, *, array: bool = False) -> list[str]:
    """The features that have one value in all rows, or in those at `rows_M`; "the label", if it has. Of an
    array, whose columns may be the border of images, features are named where all have one."""
    features_NF, labels_N = table.features_NF, table.labels_N
    size, count = sheet.block_rows(features_NF.shape[1]), len(table if rows_M is None else rows_M)
    if not count:
        return []
    first_F = features_NF[0 if rows_M is None else rows_M[0]]
    changes_F = np.zeros(len(first_F), np.bool_)
    for start in range(0, count, size):
        part = slice(start, start + size)
        changes_F |= (features_NF[part if rows_M is None else rows_M[part]] != first_F).any(0)
    found = [name for name, changes in zip(table.names, changes_F, strict=True) if not changes]
    if array and changes_F.any():
        found = []
    if labels_N is not None and len({*(labels_N if rows_M is None else labels_N[rows_M]).tolist()}) == 1:
        found.append("the label")
    return found


def _sheet(job: VerticalJob, train: bool) -> tuple[Table, Problems, int]:
    """The table of a file with names and cells, and the number of its first row."""
    with sheet.opened(job.data, label_needed=train) as opened:
        names, problems = opened.columns.feature_names, opened.problems
        rows, labels, first = _Rows(len(names)), [], 1
        found: list[str] = []
        for block in opened.blocks:
            first = block.first if not found else first
            rows.add(block.numbers_BF)
            found += _ids(block, job.data.id_column, problems)
            labels.append(_labels(block, job, problems))
        has_label = opened.columns.label is not None
    return (
        Table(tuple(found), rows.all(), names, _joined(job, labels) if has_label else None),
        problems,
        first,
    )


def _array(job: VerticalJob, train: bool) -> tuple[Table, Problems, int]:
    """The table of an .npy array. Its rows are numbered from 0, and so are IDs and columns."""
    found, problems = sheet.mapped(job.data.path), Problems()
    numbers = [str(one) for one in range(found.shape[1])]
    columns = sheet.columns_of(job.data, numbers, label_needed=train, keyed=False)
    rows, labels, names = _Rows(len(columns.features)), [], columns.feature_names
    view_NF = _view(found, columns.features)
    size = sheet.block_rows(len(numbers))
    for start in range(0, len(found), size):
        part = found[start : start + size]
        cells = [] if columns.label is None else [_spelled(one) for one in part[:, columns.label].tolist()]
        block = Block(start, [], cells, part[:, columns.features].astype(np.float64))
        sheet.check_numbers(block, names, problems)
        labels.append(_labels(block, job, problems))
        if view_NF is None:
            rows.add(block.numbers_BF)
    features_NF = rows.all() if view_NF is None else view_NF
    labels_N = None if columns.label is None else _joined(job, labels)
    return Table(tuple(map(str, range(len(found)))), features_NF, names, labels_N), problems, 0


def _view(found: NDArray[Any], places: Sequence[int]) -> NDArray[np.float32] | None:
    """The columns without a copy, where they are float32 and stand side by side."""
    if not places or found.dtype != np.float32 or list(places) != [*range(places[0], places[-1] + 1)]:
        return None
    return found[:, places[0] : places[-1] + 1]


def _spelled(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else repr(number)


class _Rows:
    """A float32 table that grows in place, so that it is never in memory twice."""

    def __init__(self, width: int) -> None:
        self._rows_NF, self._count = np.empty((0, width), np.float32), 0
        self._step = max(1, _GROW_BYTES // (4 * width + 1))

    def add(self, numbers_BF: NDArray[np.float64]) -> None:
        end = self._count + len(numbers_BF)
        if end > len(self._rows_NF):
            more = min(self._step, self._count)  # twice as much, and later so much more
            self._rows_NF.resize((end + more, self._rows_NF.shape[1]), refcheck=False)
        with np.errstate(over="ignore"):  # told already
            self._rows_NF[self._count : end] = numbers_BF
        self._count = end

    def all(self) -> NDArray[np.float32]:
        self._rows_NF.resize((self._count, self._rows_NF.shape[1]), refcheck=False)
        return self._rows_NF


def _ids(block: Block, column: str, problems: Problems) -> list[str]:
    """Canonical IDs; a wrong one stays empty."""
    found = []
    for row, text in enumerate(block.ids, block.first):
        try:
            found.append(spelling.canonical(text))
        except MisconfiguredError as error:
            problems.add(row, column, str(error))
            found.append("")
    return found


def _labels(block: Block, job: VerticalJob, problems: Problems) -> NDArray[Any]:
    """A block's labels as numbers; a wrong one is 0."""
    column, places = str(job.data.label_column), {one: place for place, one in enumerate(job.classes)}
    found = []
    for row, text in enumerate(block.labels, block.first):
        value, kind = _class(text, places) if places else _target(text, whole=job.task == "counts")
        if kind:
            problems.add(row, column, kind)
        found.append(0 if kind else value)
    return np.array(found, np.int64 if places else np.float32)


def _class(text: str, places: dict[str, int]) -> tuple[float, str]:
    place = places.get(text.strip())
    return (0, "a label that is none of the job's classes") if place is None else (place, "")


def _target(text: str, *, whole: bool) -> tuple[float, str]:
    number, kind = sheet.number_in(text)
    if not kind and whole and not (number >= 0 and number.is_integer()):
        kind = "no whole number from 0"
    return number, kind


def _joined(job: VerticalJob, parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, np.int64 if job.classes else np.float32), *parts])


def _merged(table: Table, first: int) -> tuple[Table, list[str]]:
    """Without the rows that say again what another said, and the pairs of rows that contradict each other."""
    places: dict[str, int] = {}
    again = [(places[one], row) for row, one in enumerate(table.ids) if places.setdefault(one, row) != row]
    problems = [
        f"rows {one + first} and {other + first} have one ID (by the rule {spelling.RULE}) and differ"
        for one, other in again
        if not _alike(table, one, other)
    ]
    if problems or not again:
        return table, problems
    keep_N = np.ones(len(table), np.bool_)
    keep_N[[row for _, row in again]] = False
    labels_N = None if table.labels_N is None else table.labels_N[keep_N]
    return replace(
        table,
        ids=tuple(places),
        features_NF=table.features_NF[keep_N],
        labels_N=labels_N,
        merged=len(again),
    ), []


def _alike(table: Table, one: int, other: int) -> bool:
    labels_N = table.labels_N
    same = labels_N is None or labels_N[one] == labels_N[other]
    return bool(same and (table.features_NF[one] == table.features_NF[other]).all())


def _digest(table: Table) -> str:
    digest = hashlib.sha256(spelling.order_hash(table.ids).encode())
    digest.update(json.dumps([table.names, table.labels_N is not None]).encode())
    size = sheet.block_rows(len(table.names))
    for start in range(0, len(table), size):
        digest.update(np.ascontiguousarray(table.features_NF[start : start + size]).data)
    if table.labels_N is not None:
        digest.update(np.ascontiguousarray(table.labels_N).data)
    return digest.hexdigest()
