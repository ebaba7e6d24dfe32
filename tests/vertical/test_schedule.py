"""Units cover each epoch once, in an order of their own; averages come often early and seldom late."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.link.message import Step
from transom.vertical.schedule import EVALUATED_ROWS, Units, chunks, interval, way_of

from .scene import make_jobs

UNITS = st.builds(
    Units, st.just("job"), st.integers(0, 99), st.integers(1, 60), st.integers(1, 70), st.integers(1, 3),
    st.integers(1, 4),
)  # fmt: skip


@given(UNITS)
def test_each_epoch_has_every_row_once_and_shares_make_up_a_batch(units: Units) -> None:
    whole = replace(units, shares=1)
    for epoch in range(units.epochs):
        numbers = range(epoch * units.per_epoch, (epoch + 1) * units.per_epoch)
        rows = [units.rows(unit) for unit in numbers]
        assert sorted(np.concatenate(rows)) == list(range(units.count))
        for unit in numbers:
            assert units.epoch(unit) == epoch
            assert units.batch_size(unit) == len(whole.rows(units.whole(unit)))
            assert units.steps_of(unit) == 1
            assert units.unit(units.step(unit, "train")) == unit
        batch = whole.rows(epoch * whole.per_epoch)
        assert list(np.concatenate(rows[: units.shares])) == list(batch)


@given(UNITS, st.integers(1, 5))
def test_a_bundle_has_the_batches_that_follow_each_other(units: Units, bundle: int) -> None:
    single = replace(units, shares=1)
    bundled = replace(single, bundle=bundle)
    rows, batches = [], []
    for unit in range(bundled.total):
        rows.append(bundled.rows(unit))
        batches.append(bundled.batches(unit))
        assert len(rows[-1]) == bundled.whole_rows(unit)
        assert len(set(batches[-1])) == bundled.steps_of(unit) <= bundle
    assert list(np.concatenate(rows)) == [row for unit in range(single.total) for row in single.rows(unit)]
    wanted = [unit for unit in range(single.total) for _ in single.rows(unit)]
    assert list(np.concatenate(batches)) == wanted
    assert sum(map(bundled.steps_of, range(bundled.total))) == bundled.steps == single.total


@given(UNITS, st.integers(0, 99), st.integers(0, 999))
def test_a_step_of_no_unit_is_none(units: Units, epoch: int, batch: int) -> None:
    found = units.unit(Step(epoch, batch, "forward"))
    assert (found >= 0) == (epoch < units.epochs and batch < units.per_epoch)


def test_orders_differ_by_epoch_seed_and_name() -> None:
    units = Units("job", 1, 50, 50, 3, 1)
    orders = [tuple(units.rows(unit)) for unit in (0, 1, 2, 1, 0)]
    assert orders[0] == orders[4]
    assert orders[1] == orders[3]
    others = [replace(units, seed=2), replace(units, name="other")]
    assert len({*orders, *(tuple(one.rows(0)) for one in others)}) == 5


@given(st.integers(1, 200), st.integers(1, 40))
def test_the_interval_is_the_formulas_and_rises(epoch: int, most: int) -> None:
    wanted = math.ceil(most / 2 * math.tanh(2 * epoch / most - 2) + most / 2)
    assert interval(epoch, most) == max(1, wanted)
    assert 1 <= interval(epoch, most) <= interval(epoch + 1, most) <= most


@given(st.integers(0, 10**6), st.integers(1, 2**20))
def test_chunks_cover_all_rows_in_messages_of_a_size(count: int, batch_rows: int) -> None:
    spans = chunks(count, batch_rows)
    assert 1 <= len(spans) <= count // max(batch_rows, EVALUATED_ROWS) + 1
    assert spans[0][0] == 0
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] == count


@pytest.mark.parametrize(
    ("schedule", "ahead", "workers", "shares"),
    [("vfl", 1, 1, 1), ("vfl-ps", 3, 3, 3), ("avfl", 3, 1, 1), ("avfl-ps", 3, 3, 1), ("pubsub", 4, 3, 1)],
)
def test_what_is_under_way_by_schedule(schedule: str, ahead: int, workers: int, shares: int) -> None:
    job = make_jobs("binary", Path(), schedule=schedule, workers=3, embeddings=4)[0]
    way = way_of(job)
    assert (way.ahead, way.workers, way.shares) == (ahead, workers, shares)
    few = replace(job, train=replace(job.train, staleness=1))
    assert way_of(few).ahead == (2 if schedule == "pubsub" else ahead)
    bundled = way_of(replace(job, train=replace(job.train, bundle=3, staleness=8)))
    assert bundled.bundle == (1 if schedule.startswith("vfl") else 3)
    assert bundled.ahead == (3 if schedule == "pubsub" else ahead)
