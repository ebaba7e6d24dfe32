"""A party's part of the joined rows: the partner's order, the rows to train on, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import CheckpointError, MisconfiguredError
from transom.vertical import align
from transom.vertical.ids import is_test_N
from transom.vertical.job import VerticalJob
from transom.vertical.part import load, load_here, make_part
from transom.vertical.table import Table

from .scene import make_jobs


def table(names: list[str], labels: bool = False) -> Table:
    """Each row has its ID's number in its first column, and as its label."""
    numbers_N = np.array([int(name) for name in names], np.float32)
    features_NF = np.stack([numbers_N, numbers_N % 7], 1)
    return Table(tuple(names), features_NF, ("number", "rest"), numbers_N if labels else None, digest="d")


def job_of(role: str) -> VerticalJob:
    return make_jobs("regression", Path())[0 if role == "label" else 1]


@given(st.randoms(use_true_random=False), st.integers(20, 60))
def test_rows_are_the_same_people_at_both_parties(pick: object, count: int) -> None:
    own, partners = ([str(number) for number in range(start, count)] for start in (0, 5))
    for names in (own, partners):
        pick.shuffle(names)  # type: ignore[attr-defined]
    tables = table(own, labels=True), table(partners)
    first, second = (
        make_part(job_of(role), one, aligned)
        for role, one, aligned in zip(("label", "feature"), tables, align.here(*tables), strict=True)
    )
    everyone = np.arange(len(first))
    assert first.ids == second.ids
    assert first.order_hash == second.order_hash
    np.testing.assert_array_equal(first.rows(everyone), second.rows(everyone))
    np.testing.assert_array_equal(first.rows(everyone)[:, 0], first.labels(everyone))
    assert [int(one) for one in first.ids] == first.labels(everyone).tolist()
    assert first.test.tolist() == second.test.tolist()
    assert sorted([*first.train, *first.test]) == everyone.tolist()
    assert np.isin(everyone, first.test).tolist() == is_test_N(first.ids, "test", 0.3).tolist()


def test_a_column_that_is_constant_where_it_is_trained_on_is_refused() -> None:
    names = [str(number) for number in range(40)]
    tables = table(names, labels=True), table(names)
    aligned = align.here(*tables)
    part = make_part(job_of("feature"), tables[1], aligned[1])
    tables[1].features_NF[part.places_M[part.train], 1] = 3
    with pytest.raises(MisconfiguredError, match=rf"'rest' is constant in the {len(part.train)} rows"):
        make_part(job_of("feature"), tables[1], aligned[1])
    assert len(make_part(job_of("feature"), tables[1], aligned[1], train=False)) == 40


def test_labels_that_are_not_there_are_missed_when_they_are_used() -> None:
    names = [str(number) for number in range(40)]
    part = make_part(job_of("label"), table(names), align.here(table(names), table(names))[0], train=False)
    with pytest.raises(MisconfiguredError, match="no labels"):
        part.labels(part.train)


def test_a_part_is_loaded_as_it_was_aligned_and_not_without(tmp_path: Path) -> None:
    path = tmp_path / "label.csv"
    path.write_text("id,a,y\n" + "".join(f"p{one},{one},{one % 5}\n" for one in range(30)), "utf-8")
    other = tmp_path / "feature.csv"
    other.write_text("id,b\n" + "".join(f"P{one} ,{one * one}\n" for one in range(9, 40)), "utf-8")
    label, feature = (
        replace(job, data=replace(job.data, path=file))
        for job, file in zip(make_jobs("regression", tmp_path / "out"), (path, other), strict=True)
    )
    with pytest.raises((CheckpointError, MisconfiguredError), match="aligned"):
        load(label)
    from transom.vertical.table import read_table

    both = align.here(read_table(label), read_table(feature))
    for job, aligned in zip((label, feature), both, strict=True):
        align.write(job, aligned)
    here = load_here((label, feature))
    assert load(label).ids == here[0].ids == load(feature).ids
    assert len(here[0]) == 21
    assert here[0].schema != here[1].schema
