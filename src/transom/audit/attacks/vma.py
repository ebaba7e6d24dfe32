"""Row-sort vocabulary matching, as in the paper: sort each row of a product of weights, match sorted rows.

A permutation of the columns (neurons, experts, tokens) does not change a sorted row. Products: E Wh, (E
Wq)(E Wk)^T per head, E Wgate, E Wup, Wdown Wh (read by token), E Wrouter; of every layer as time allows.
Each product names each token once, and the names vote with the margin between the nearest and the next row.
Columns of E Wup and Wdown Wh are brought to the same power first, since the method scales them.

Threat model: the host, with the public base model and no traffic.
Does not survive noise on the embedding: order statistics of all columns lie too close together.
Source: Lin et al., arXiv 2603.01499, vocabulary-matching attack. Ours: voting, some order statistics a row,
and a random subset of columns of a product that is as wide as a large vocabulary.

Shapes: V vocabulary, D width, N columns, S sampled ids, K head width, Q order statistics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from transom.audit.attacks.attn_ia import heads, invariants, match_heads
from transom.audit.attacks.matching import Floats, nearest, product_quantiles
from transom.audit.attacks.weights import Knowledge, Layer, Sample, Target, Weights, misfit, scored
from transom.report.finding import Finding
from transom.report.statistics import Ints

NAME = "row-sort VMA"
_STATISTICS, _ALL_COLUMNS, _SOME_COLUMNS = 256, 4096, 512
_PARTS = ("gate", "up", "down", "router")
Pair = tuple[Floats, Floats]  # rows [V, D] and columns [D, N] of one product


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids that the vote of all products names rightly."""
    started = time.monotonic()
    if gap := misfit(NAME, target, knowledge):
        return gap
    votes_SV: list[dict[int, float]] = [{} for _ in data.obfuscated_S]
    done: list[str] = []
    for name, pairs in _products(target.weights, knowledge.base):
        left, right = zip(*((_sorted(a, data.obfuscated_S), _sorted(b)) for a, b in pairs), strict=True)
        guess_S, margin_S = nearest(np.hstack(left), np.hstack(right))
        for votes, guess, margin in zip(votes_SV, guess_S, margin_S, strict=True):
            votes[int(guess)] = votes.get(int(guess), 0.0) + float(margin)
        done.append(name)
        if time.monotonic() - started > budget_s:
            break
    guess_S = np.array([max(votes, key=lambda plain: votes[plain]) for votes in votes_SV])
    note = f"{len(done)} products: {', '.join(dict.fromkeys(name.split()[0] for name in done))}"
    return scored(NAME, guess_S, data, candidates=knowledge.base.vocabulary, note=note)


def _products(a: Weights, b: Weights) -> Iterator[tuple[str, list[tuple[Pair, Pair]]]]:
    """Named products of both sides, made one after the other; attention gives one pair a head."""
    yield "head", [(_vocabulary_wide(a), _vocabulary_wide(b))]
    for layer, (left, right) in enumerate(zip(a.layers, b.layers, strict=False)):
        for part in _PARTS:
            if _fits(left, right, part):
                yield f"{part} {layer}", [(_pair(a, left, part), _pair(b, right, part))]
        if _fits(left, right, "query") and _fits(left, right, "key") and a.query_heads == b.query_heads:
            yield f"attention {layer}", _attention(a, b, layer)


def _fits(left: Layer, right: Layer, part: str) -> bool:
    x, y = getattr(left, part), getattr(right, part)
    return x is not None and y is not None and x.shape[part != "down"] == y.shape[part != "down"]


def _pair(weights: Weights, layer: Layer, part: str) -> Pair:
    matrix = getattr(layer, part)
    rows_VD = weights.head_DV.T if part == "down" else weights.embedding_VD
    columns_DN = matrix.T if part == "down" else matrix
    if part not in ("up", "down"):
        return rows_VD, columns_DN
    power_N = np.einsum("dn,dn->n", columns_DN, (rows_VD.T @ rows_VD) @ columns_DN)
    return rows_VD, columns_DN / np.sqrt(np.maximum(power_N / len(rows_VD), np.float32(1e-30)))


def _vocabulary_wide(weights: Weights) -> Pair:
    return weights.embedding_VD, weights.head_DV[:, _some(weights.vocabulary)]


def _attention(a: Weights, b: Weights, layer: int) -> list[tuple[Pair, Pair]]:
    order_H = match_heads(invariants(a, layer), invariants(b, layer))
    left, right = _scores(a, layer), _scores(b, layer)
    return [(left[order_H[head]], right[head]) for head in range(len(right))]


def _scores(weights: Weights, layer: int) -> list[Pair]:
    some_VD = weights.embedding_VD[_some(weights.vocabulary)]
    return [(weights.embedding_VD @ q_DK, (some_VD @ k_DK).T) for q_DK, k_DK in heads(weights, layer)]


def _some(vocabulary: int) -> slice | Ints:
    if vocabulary <= _ALL_COLUMNS:
        return slice(None)
    return np.random.default_rng(3).choice(vocabulary, _SOME_COLUMNS, replace=False)


def _sorted(pair: Pair, rows: Ints | slice = slice(None)) -> Floats:
    return product_quantiles(pair[0][rows], pair[1], _STATISTICS)
