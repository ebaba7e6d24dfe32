"""Rows side by side: each once, the shortest first, and padding that a mask tells from ids."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transom.audit.batches import by_length, padded

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=7), min_size=1, max_size=12)


@given(ROWS, st.integers(1, 5))
def test_every_row_is_in_one_batch_and_none_is_longer_than_those_behind(
    rows: list[list[int]], size: int
) -> None:
    batches = list(by_length(rows, size))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(rows)))
    assert [len(rows[place]) for place in places] == sorted(map(len, rows))
    assert {len(batch) for batch in batches[:-1]} <= {size}


@given(ROWS, st.integers(0, 9))
def test_the_mask_gives_the_rows_back(rows: list[list[int]], fill: int) -> None:
    ids_BT, mask_BT = padded(rows, fill)
    assert ids_BT.shape == mask_BT.shape == (len(rows), max(map(len, rows)))
    assert [ids[mask.bool()].tolist() for ids, mask in zip(ids_BT, mask_BT, strict=True)] == rows
    assert set(ids_BT[mask_BT == 0].tolist()) <= {fill}
