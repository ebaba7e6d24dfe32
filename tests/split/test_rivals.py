"""SANTEXT+ in the split benchmark: the law that it says, and an attacker who is the best at both ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from transom.split.rows import Rows

CLS = 0
TABLE_VD = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))


def rows_of(seed: int, count: int = 400) -> Rows:
    """Texts in which low ids are the commonest, each begun by a token of the tokenizer's."""
    draw = np.random.default_rng(seed)
    words = np.minimum(1 + draw.geometric(0.05, (count, 12)), 199)
    ids = tuple((CLS, *text) for text in words.tolist())
    return Rows(ids, (0,) * count, frozenset({CLS}))


@pytest.fixture
def way(benchmark_script: Callable[[str], Any]) -> Callable[[float], Any]:
    return lambda epsilon: benchmark_script("_split_rivals").Santext(TABLE_VD, rows_of(1), epsilon)


def test_what_is_drawn_follows_the_law_and_stays_where_it_must(way: Any) -> None:
    rows, found = rows_of(2, 3000), way(2.0)
    changed = found.changed(rows, 3)
    assert [len(text) for text in changed.ids] == [len(text) for text in rows.ids]
    assert {text[0] for text in changed.ids} == {CLS}
    assert int(found.sensitive_V.sum()) == 180
    pairs = Counter(
        pair
        for plain, drawn in zip(rows.ids, changed.ids, strict=True)
        for pair in zip(plain[1:], drawn[1:], strict=True)
    )
    often = next(token for token in range(2, 40) if not found.sensitive_V[token])
    total = sum(count for (token, _), count in pairs.items() if token == often)
    assert pairs[often, often] / total == pytest.approx(0.7, abs=0.04)
    rare = next(token for token in range(2, 60) if found.sensitive_V[token])
    law_S = found.log_law(torch.tensor([rare])).exp()[0]
    assert float(law_S.sum()) == pytest.approx(1.0)
    sensitive = found.sensitive_V.nonzero()[:, 0].tolist()
    total = sum(count for (token, _), count in pairs.items() if token == rare)
    drawn_S = np.array([pairs[rare, other] for other in sensitive]) / total
    assert np.abs(drawn_S - law_S.numpy()).sum() / 2 < 1.2 * np.sqrt(len(sensitive) / total) / 2 + 0.05


def test_the_likeliest_token_is_named_at_both_ends(way: Any) -> None:
    rows = rows_of(2)
    sharp, blunt = way(200.0), way(1e-6)
    assert sharp.hidden(rows, sharp.changed(rows, 3)) < 0.1  # some draws have two likely sources
    seen = blunt.changed(rows, 3)
    often_V = ~blunt.sensitive_V
    kept = [
        often_V[token] and token == drawn
        for text, other in zip(rows.ids, seen.ids, strict=True)
        for token, drawn in zip(text[1:], other[1:], strict=True)
    ]
    commonest = max(Counter(token for text in rows.ids for token in text[1:]).values()) / len(kept)
    named = 1 - blunt.hidden(rows, seen)
    assert np.mean(kept) - 0.01 <= named <= np.mean(kept) + commonest + 0.05
