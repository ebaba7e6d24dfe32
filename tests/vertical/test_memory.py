"""A party's memory is bounded by its buffers: with the rows grow their IDs and order, and no columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transom.vertical.table import read_table


def test_memory_grows_with_ids_and_not_with_rows(
    tmp_path: Path, benchmark_script: Callable[[str], Any]
) -> None:
    """Two processes that train over TCP on files of 1,000 bytes a row."""
    synthetic = benchmark_script("_vertical_synthetic")
    few, many = (synthetic.peak_mb(tmp_path / str(rows), rows) for rows in (16_000, 112_000))
    grown = synthetic.growth([few, many])
    if max(grown.values()) >= synthetic.BOUND_BYTES:  # buffers are fuller where processors are shared
        again = synthetic.growth([few, synthetic.peak_mb(tmp_path / "again", 112_000)])
        grown = {role: min(grown[role], again[role]) for role in grown}
    for role, grown_bytes in grown.items():
        assert grown_bytes < synthetic.BOUND_BYTES, (role, few, many)


def test_the_made_up_set_is_what_both_parties_read(
    tmp_path: Path, benchmark_script: Callable[[str], Any]
) -> None:
    synthetic = benchmark_script("_vertical_synthetic")
    paths = synthetic.write(tmp_path, 300, columns=8)
    label, feature = (
        read_table(job) for job in synthetic.make_jobs(paths, tmp_path / "out", synthetic.Train())
    )
    assert (len(label), len(label.names), len(feature.names)) == (300, 4, 4)
    assert label.labels_N is not None
    assert 0.3 < label.labels_N.mean() < 0.7
    for table in (label, feature):
        assert isinstance(table.features_NF.base, np.memmap)
