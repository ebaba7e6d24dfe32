"""Pictures: against another reader of PNG, and what a page shows of them."""

from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.report.picture import picture, png


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_another_reader_sees_the_same_grey_values(height: int, width: int, seed: int) -> None:
    grey_HW = np.random.default_rng(seed).random((height, width))
    data = base64.b64decode(png(grey_HW).removeprefix("data:image/png;base64,"))
    seen_HW = matplotlib.image.imread(io.BytesIO(data), format="png")
    assert seen_HW.shape == (height, width)
    assert np.abs(seen_HW - grey_HW).max() <= 0.5 / 255 + 1e-6


def test_values_outside_are_drawn_back() -> None:
    assert png(np.array([[-3.0, 7.0]])) == png(np.array([[0.0, 1.0]]))


def test_a_picture_shows_neither_in_logs() -> None:
    shown = picture(np.zeros((2, 2)), np.ones((2, 2)))
    assert repr(shown) == "Picture()"
    assert shown.original != shown.recovered
    assert pytest.approx(len(shown.original), abs=40) == len(shown.recovered)
