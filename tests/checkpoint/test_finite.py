"""The least and largest value tell what torch's own check tells."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.checkpoint.finite import is_finite

WRONG = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(
    shape=st.lists(st.integers(0, 9), max_size=3),
    wrong=st.lists(st.tuples(st.integers(0, 999), st.sampled_from(WRONG)), max_size=3),
    steps=st.integers(1, 3),
)
def test_it_is_torchs_own_answer(
    dtype: torch.dtype, shape: list[int], wrong: list[tuple[int, float]], steps: int
) -> None:
    x = torch.arange(float(math.prod(shape))).reshape(shape).to(dtype)
    for place, value in wrong if x.numel() else ():
        x.view(-1)[place % x.numel()] = value
    x = x[..., ::steps].transpose(0, -1) if x.ndim else x  # in no order of memory
    assert is_finite(x) == bool(x.isfinite().all())


@pytest.mark.parametrize("value", WRONG)
def test_one_of_many_is_seen_wherever_it_stands(value: float) -> None:
    for place in (0, 4_999, 99_999):
        x = torch.zeros(100_000)
        assert is_finite(x)
        x[place] = value
        assert not is_finite(x)
        assert not is_finite(x.requires_grad_())


def test_the_largest_values_are_finite() -> None:
    assert is_finite(torch.tensor([torch.finfo(torch.float64).max, -5e-324], dtype=torch.float64))
