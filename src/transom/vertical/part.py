"""A party's part of the joined table: its columns of the common rows, in the order that both parties have.

Threat model: mistakes in a file. Does not protect: rows that are well formed and wrong. Source: own.
Shapes: N rows of the table, M common ones, R of them, F columns.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.config import listed
from transom.errors import MisconfiguredError
from transom.vertical import align, sheet
from transom.vertical.align import Aligned
from transom.vertical.ids import is_test_N
from transom.vertical.job import VerticalJob
from transom.vertical.psi import Advance
from transom.vertical.table import Table, constant, read_table


@dataclass(frozen=True, eq=False)
class Part:
    """Common rows by number, from 0, in the order of their IDs. `features_NF` is the whole table's (F is 0
    for a label-only party), `places_M` says where the common rows are; `labels_M` are the label party's;
    `train` and `test` are numbers of rows."""

    ids: tuple[str, ...]
    features_NF: NDArray[np.float32]
    places_M: NDArray[np.int64]
    labels_M: NDArray[Any] | None
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    names: tuple[str, ...] = ()
    order_hash: str = ""
    digest: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """How many columns."""
        return int(self.features_NF.shape[1])

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The columns [R, F] of these rows, a copy."""
        return self.features_NF[self.places_M[numbers]]

    def labels(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """The labels [R] of these rows. Raises MisconfiguredError where there are none."""
        if self.labels_M is None:
            raise MisconfiguredError("these rows have no labels; give a file that has data.label_column")
        return np.asarray(self.labels_M[numbers])

    @property
    def schema(self) -> str:
        """A hash of the columns' names, for this party alone."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()[:16]


def make_part(job: VerticalJob, table: Table, aligned: Aligned, *, train: bool = True) -> Part:
    """The part of a table that both parties have.

    Raises MisconfiguredError, to train, where no row is left for it, or a column is constant in those rows.
    """
    is_test_M = is_test_N(aligned.ids, job.name, job.data.test_share)
    numbers_M, labels_N = np.arange(len(aligned)), table.labels_N
    part = Part(
        aligned.ids, table.features_NF, aligned.rows_M,
        None if labels_N is None else labels_N[aligned.rows_M],
        numbers_M[~is_test_M], numbers_M[is_test_M], table.names, aligned.order_hash, table.digest,
    )  # fmt: skip
    if not train:
        return part
    if not len(part.train):
        raise MisconfiguredError(
            f"no row is left to train on, of {len(part)} that both parties have; lower data.test_share"
        )
    if found := constant(table, aligned.rows_M[~is_test_M], array=sheet.is_array(job.data.path)):
        raise MisconfiguredError(
            listed(
                f"{job.data.path} cannot be used",
                (f"column {name!r} is constant in the {len(part.train)} rows of training" for name in found),
            )
        )
    return part


def load(job: VerticalJob) -> Part:
    """The part to train on, and to predict from again, as `transom vertical psi` aligned it.

    Raises MisconfiguredError for rows that cannot be used, CheckpointError for an alignment of others.
    """
    table = read_table(job)
    return make_part(job, table, align.read(job, table))


def load_new(job: VerticalJob, path: Path, advance: Advance = lambda done, total: None) -> Part:
    """The part of another file, aligned with the partner's over the link, to predict."""
    table = read_table(job, path, train=False)
    return make_part(job, table, align.with_partner(job, table, advance), train=False)


def load_here(
    jobs: tuple[VerticalJob, VerticalJob], paths: tuple[Path, Path] | None = None
) -> tuple[Part, Part]:
    """Both parties' parts where both files are here, of the jobs' files to train, or of others to predict."""
    train, (first, second) = paths is None, paths or (None, None)
    tables = read_table(jobs[0], first, train=train), read_table(jobs[1], second, train=train)
    aligned = align.here(*tables)
    return (
        make_part(jobs[0], tables[0], aligned[0], train=train),
        make_part(jobs[1], tables[1], aligned[1], train=train),
    )
