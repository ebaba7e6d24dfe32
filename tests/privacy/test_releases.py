"""What was released of a text is released again as it was, to the bit, and of no other text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.noise import d_chi, noised
from transom.privacy.releases import Releases, Rows
from transom.privacy.stream import Stream

WIDTH = 8
ids = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def noising(stream: Stream, ids_N: Any, rows_ND: Rows) -> Rows:
    return np.asarray(noised(rows_ND, d_chi(stream, len(ids_N), WIDTH, 2.0)), np.float32)


def states(text: list[int], off: float = 0.0) -> Rows:
    """Rows that depend on all of a text before them; `off` stands for last bits that differ."""
    sums_N = np.cumsum([(i + 1) * (place + 1) for place, i in enumerate(text)])
    return np.asarray(np.outer(sums_N, np.arange(WIDTH)) + off, np.float32)


def released(releases: Releases, text: list[int], pieces: list[int], off: float = 0.0) -> Rows:
    """A text's releases, asked for in pieces."""
    rows_ND, before, parts = states(text, off), releases.start, []
    edges = sorted({0, len(text), *(piece % len(text) for piece in pieces)})
    for start, stop in pairwise(edges):
        before, part_ND = releases.extend(before, text[start:stop], rows_ND[start:stop])
        parts.append(part_ND)
    return np.concatenate(parts)


@given(ids, ids, st.lists(st.integers(0, 11)), st.lists(st.integers(0, 11)))
def test_what_begins_alike_is_sent_alike_and_nothing_else(
    text: list[int], other: list[int], pieces: list[int], others: list[int]
) -> None:
    releases = Releases(noising)
    first_ND = released(releases, text, pieces)
    second_ND = released(releases, other, others, off=1e-3)
    alike = next(
        (place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b),
        min(len(text), len(other)),
    )
    assert (first_ND[:alike] == second_ND[:alike]).all()  # the very rows, last bits and all
    noise_ND = np.concatenate([first_ND - states(text), (second_ND - states(other, 1e-3))[alike:]])
    assert len(np.unique(noise_ND.round(3), axis=0)) == len(noise_ND)
    assert (released(releases, text, others) == first_ND).all()


@given(ids)
def test_what_was_forgotten_has_the_noise_of_a_lasting_secret(text: list[int]) -> None:
    secret, row_bytes = bytes(range(32)), WIDTH * 4
    small = Releases(noising, secret=secret, remembered_bytes=3 * row_bytes)
    first_ND = released(small, text, [])
    assert small._held_bytes == row_bytes * len(small._rows) <= 3 * row_bytes
    for other in (small, Releases(noising, secret=secret)):
        assert (released(other, text, [1]) == first_ND).all()
    assert (released(Releases(noising, secret=bytes(32)), text, []) != first_ND).all()


@given(ids)
def test_without_a_secret_no_noise_comes_twice(text: list[int]) -> None:
    """Or the last bits of a state that is computed again would show."""
    small = Releases(noising, remembered_bytes=0)
    first_ND, again_ND = released(small, [*text, 0], []), released(small, [*text, 0], [], off=1e-3)
    assert (abs(first_ND - again_ND)[:-1].max(1) > 1e-2).all()
    assert len(small._rows) == 1


def test_no_noise_is_no_noise() -> None:
    releases, text = Releases(None), [1, 2, 3]
    assert (released(releases, text, [1]) == states(text)).all()
    assert not releases._rows


def test_threads_agree() -> None:
    releases, text = Releases(noising), list(range(5)) * 20
    with ThreadPoolExecutor(4) as pool:
        first_ND, *others = pool.map(lambda off: released(releases, text, [], off), [0.0, 1e-3, 2e-3, 3e-3])
    assert all((first_ND == one_ND).all() for one_ND in others)
    assert releases._held_bytes == len(text) * WIDTH * 4
