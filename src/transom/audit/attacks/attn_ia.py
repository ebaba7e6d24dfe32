"""Attn-IA: name tokens by invariants of their attention scores, which keys and block permutation keep.

(W~_e W~_q)(W~_e W~_k)^T equals the public score matrix, rows and columns permuted by tau (positions left
out): rotations, scales and permutations of pairs cancel between query and key. Of each token and head the
attack takes what does not depend on the order of the other tokens: the score with itself, and mean and
spread of its scores with all tokens, as a query and as a key. Heads are permuted too.

Threat model: the host, with the public base model and no traffic.
Does not survive noise on the embedding larger than the differences between tokens in these few figures.
Source: Lin et al., arXiv 2603.01499, name the attack after invariants of attention; our reading of it.

Shapes: V vocabulary, D width, H query heads, G key-value heads, K head width, I invariants (5).
"""

from __future__ import annotations

import time

import numpy as np

from transom.audit.attacks.matching import Floats, assign, nearest, quantiles
from transom.audit.attacks.weights import Knowledge, Sample, Target, Weights, misfit, part, scored
from transom.report.finding import Finding
from transom.report.statistics import Ints

NAME = "Attn-IA"


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly, from as many layers as half the budget allows."""
    started = time.monotonic()
    if gap := misfit(NAME, target, knowledge, "query", "key"):
        return gap
    rows, base = [], []
    for layer in range(min(len(target.weights.layers), len(knowledge.base.layers))):
        if layer and time.monotonic() - started > budget_s / 2:
            break
        left_HVI, right_HVI = invariants(target.weights, layer), invariants(knowledge.base, layer)
        heads_H = match_heads(left_HVI, right_HVI)
        scale_HI = right_HVI.std(axis=1, keepdims=True) + np.float32(1e-12)
        rows += list(left_HVI[heads_H][:, data.obfuscated_S] / scale_HI)
        base += list(right_HVI / scale_HI)
    guess_S = nearest(np.hstack(rows), np.hstack(base))[0]
    note = f"{len(base) // knowledge.base.query_heads} layers"
    return scored(NAME, guess_S, data, candidates=knowledge.base.vocabulary, note=note)


def heads(weights: Weights, layer: int) -> list[tuple[Floats, Floats]]:
    """[(query [D, K], key [D, K])] of one layer's heads; a key is repeated for each query of its group."""
    queries = np.split(part(weights, layer, "query"), weights.query_heads, axis=1)
    keys = np.split(part(weights, layer, "key"), weights.key_value_heads, axis=1)
    group = weights.query_heads // weights.key_value_heads
    return [(queries[head], keys[head // group]) for head in range(weights.query_heads)]


def invariants(weights: Weights, layer: int) -> Floats:
    """[H, V, 5]: self score, mean and root mean square of a token's scores, as a query and as a key."""
    found = []
    for query_DK, key_DK in heads(weights, layer):
        q_VK, k_VK = weights.embedding_VD @ query_DK, weights.embedding_VD @ key_DK
        figures = [np.einsum("vk,vk->v", q_VK, k_VK)]
        for own_VK, other_VK in ((q_VK, k_VK), (k_VK, q_VK)):
            figures += [own_VK @ other_VK.mean(0), _spread(own_VK, other_VK)]
        found.append(np.stack(figures, axis=1))
    return np.stack(found)


def match_heads(left_HVI: Floats, right_HVI: Floats) -> Ints:
    """[H]: for each public head the target's, by the quantiles of all invariants over the vocabulary."""
    scale_HI = right_HVI.std(axis=1, keepdims=True).mean(axis=0, keepdims=True) + np.float32(1e-12)
    sides = []
    for side_HVI in (left_HVI, right_HVI):
        scaled = side_HVI / scale_HI
        each = [quantiles(np.ascontiguousarray(scaled[:, :, i]), 63) for i in range(scaled.shape[2])]
        sides.append(np.hstack(each))
    return assign(sides[0], sides[1])


def _spread(left_VK: Floats, right_VK: Floats) -> Floats:
    gram_KK = right_VK.T @ right_VK / np.float32(len(right_VK))
    squares_V = np.einsum("vk,vk->v", left_VK @ gram_KK, left_VK)
    return np.asarray(np.sqrt(np.maximum(squares_V, 0)), dtype=np.float32)
