"""Attacks on hardened checkpoints that go beyond `transom.audit.attacks`: the worst case of the study.

Three ideas, each free of what the hardening measures hide behind:

- *Neurons from weights alone.* W~_down(l) W~_gate(l') carries no noise: keys cancel, and what is left is the
  public product with rows and columns permuted and rows rescaled. Its sorted entries name the neurons. Once
  these are known, (W_e + N) and (W_h + M) are read exactly, and naming a token is decoding a Gaussian channel
  with two looks, nearest neighbours in the metric of the noise. No attack on the tables can do better.
- *Seeded Gram matching.* W~_e W~_h needs no layer: known tokens give features of all others, the surest
  become known, and so on.
- *Seeded functional matching.* The same, with the logits after a known prefix for features: the host runs
  the model. It stands on the function alone, so whatever keeps the function keeps the attack.

Threat model: the host, with the public base model and every setting (also the covariance of the noise).
Does not prove anything about attacks that are not here.
Source: own. Decoding in the metric of the noise is maximum likelihood.

Shapes: V vocabulary, D width of the base, W of the target, N neurons, R rows to name, A anchors, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.matching import Floats, Ints, assign, nearest, quantiles, unit
from transom.audit.attacks.weights import Weights

_QUANTILES, _BLOCK = 199, 8192
_RIDGE = 1e-3
_DOUBLINGS, _ANCHORS = 9, 256


@dataclass(frozen=True)
class Neurons:
    """One layer's neurons found: the target's place of each public neuron, and the scale of its output."""

    places_N: Ints
    scale_N: Floats


def neurons(target: Weights, base: Weights, layer: int, reader: int) -> Neurons:
    """Neurons of `layer` by its down matrix times the gate of layer `reader`, free of noise.

    Rows are brought to length 1 and signs dropped, because each neuron's output has an unknown scale.
    """
    there, here = _product(target, layer, reader), _product(base, layer, reader)
    places_N = assign(_sorted(unit(there)), _sorted(unit(here)))
    columns_N = assign(_sorted(unit(there).T), _sorted(unit(here).T))
    aligned = there[places_N][:, columns_N]
    scale_N = np.einsum("nm,nm->n", aligned, here) / np.einsum("nm,nm->n", here, here)
    return Neurons(places_N, np.where(scale_N == 0, 1, scale_N).astype(np.float32))


def _product(weights: Weights, layer: int, reader: int) -> Floats:
    down, gate = weights.layers[layer].down, weights.layers[reader].gate
    if down is None or gate is None:
        raise AssertionError("a dense gated feed-forward is needed")
    return np.asarray(down @ gate, dtype=np.float32)


def _sorted(rows_NM: Floats) -> Floats:
    """Quantiles of each row's magnitudes, each quantile in units of its spread over rows."""
    found_NQ = quantiles(np.abs(np.ascontiguousarray(rows_NM)), _QUANTILES)
    return np.asarray(found_NQ / (found_NQ.std(0) + 1e-12), dtype=np.float32)


def tables(target: Weights, base: Weights, found: Neurons, layer: int, rows_R: Ints) -> tuple[Floats, Floats]:
    """(W_e + N, W_h + M) [R, D] of obfuscated ids, as far as the neurons of `layer` are right."""
    there, here = target.layers[layer], base.layers[layer]
    if there.gate is None or here.gate is None or there.down is None or here.down is None:
        raise AssertionError("a dense gated feed-forward is needed")
    gate_ND, down_DN = np.linalg.pinv(here.gate), np.linalg.pinv(here.down)
    embedding_RD = target.embedding_VD[rows_R] @ there.gate[:, found.places_N] @ gate_ND
    written_NR = (there.down[found.places_N] @ target.head_DV[:, rows_R]) / found.scale_N[:, None]
    return embedding_RD, (down_DN @ written_NR).T


def decode(
    looks: Sequence[Floats], candidates: Sequence[Floats], covariances: Sequence[NDArray[np.float64]]
) -> Ints:
    """Plain ids [R] by maximum likelihood: rows [R, D] seen, without noise [V, D], and the noise [D, D].

    Several looks at the same tokens (embedding and head, two uploads) count together.
    """
    sides = []
    for look_RD, table_VD, covariance_DD in zip(looks, candidates, covariances, strict=True):
        metric_DD, mean_D = _inverse_root(covariance_DD, table_VD), table_VD.mean(0)
        sides.append(((look_RD - mean_D) @ metric_DD, table_VD, mean_D, metric_DD))
    best_R, guess_R = np.full(len(looks[0]), np.inf, np.float32), np.zeros(len(looks[0]), np.int64)
    for start in range(0, len(candidates[0]), _BLOCK):
        away_RC = np.zeros((1, 1), np.float32)
        for rows_RD, table_VD, mean_D, metric_DD in sides:
            block_CD = (table_VD[start : start + _BLOCK] - mean_D) @ metric_DD
            away_RC = away_RC + np.einsum("cd,cd->c", block_CD, block_CD) / 2 - rows_RD @ block_CD.T
        nearer_R = away_RC.min(1) < best_R
        guess_R[nearer_R] = start + away_RC.argmin(1)[nearer_R]
        best_R = np.minimum(best_R, away_RC.min(1))
    return guess_R


def _inverse_root(covariance_DD: NDArray[np.float64], table_VD: Floats) -> Floats:
    """Sigma^-1/2, never finer than a hundredth of the table's own spread (rounding, wrong neurons)."""
    floor = (1e-2 * float(table_VD.std())) ** 2
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    return np.asarray((vectors_DD / np.sqrt(values_D + floor)) @ vectors_DD.T, dtype=np.float32)


def percolate(
    features_of: Callable[[Ints], Floats],
    base_features_of: Callable[[Ints], Floats],
    raw_RW: Floats,
    base_raw_CD: Floats,
    rows_R: Ints,
    candidates_C: Ints,
    known: dict[int, int],
) -> Ints:
    """Plain ids [R] of the obfuscated `rows_R` among `candidates_C`, from a few known pairs.

    `features_of(anchors)` [R, F] and `base_features_of(anchors)` [C, F] describe rows by known tokens; the
    surest names double the anchors, round after round. Last, a linear map from `raw_RW` to `base_raw_CD` is
    fitted on the surest half and every row is named by it.
    """
    seeds, names = np.array(list(known)), np.array(list(known.values()))
    obfuscated, plain = seeds, names
    for _ in range(_DOUBLINGS):
        here, there = base_features_of(plain), features_of(obfuscated)
        scale_F = here.std(0) + 1e-9
        guess_R, margin_R = nearest(there / scale_F, here / scale_F)
        if len(plain) >= min(_ANCHORS, len(rows_R) // 2):
            break
        sure = _distinct(guess_R, margin_R)[: 2 * len(plain)]
        sure = sure[~np.isin(rows_R[sure], seeds) & ~np.isin(candidates_C[guess_R[sure]], names)]
        obfuscated = np.concatenate([seeds, rows_R[sure]]).astype(np.int64)
        plain = np.concatenate([names, candidates_C[guess_R[sure]]]).astype(np.int64)
    for _ in range(2):
        sure = _distinct(guess_R, margin_R)[: max(64, len(rows_R) // 2)]
        guess_R, margin_R = _regress(raw_RW, base_raw_CD, sure, guess_R)
    return candidates_C[guess_R]


def _distinct(guess_R: Ints, margin_R: Floats) -> Ints:
    """Rows in falling order of margin, each plain id once."""
    order = np.argsort(-margin_R, kind="stable")
    first = np.unique(guess_R[order], return_index=True)[1]
    return order[np.sort(first)]


def _regress(raw_RW: Floats, base_VD: Floats, sure: Ints, guess_R: Ints) -> tuple[Ints, Floats]:
    """Ridge regression from the surest rows to their public rows; then nearest in units of the residual."""
    mean_W, mean_D = raw_RW[sure].mean(0), base_VD[guess_R[sure]].mean(0)
    x, y = raw_RW[sure] - mean_W, base_VD[guess_R[sure]] - mean_D
    gram = (x.T @ x).astype(np.float64)
    gram += np.eye(len(gram)) * (_RIDGE * np.trace(gram) / len(gram) + 1e-9)
    undo_WD = np.linalg.solve(gram, x.T @ y).astype(np.float32)
    spread_D = (y - x @ undo_WD).std(0) + np.float32(1e-2) * y.std(0) + np.float32(1e-9)
    return nearest(((raw_RW - mean_W) @ undo_WD) / spread_D, (base_VD - mean_D) / spread_D)


def gram_matching(target: Weights, base: Weights, rows_R: Ints, known: dict[int, int]) -> Ints:
    """Plain ids [R] from the two tables alone: no layer is read."""

    def features(weights: Weights, rows: Ints | slice) -> Callable[[Ints], Floats]:
        def of(anchors_A: Ints) -> Floats:
            as_input = weights.embedding_VD[rows] @ weights.head_DV[:, anchors_A]
            as_output = (weights.embedding_VD[anchors_A] @ weights.head_DV[:, rows]).T
            return np.hstack([as_input, as_output])

        return of

    raw = np.hstack([target.embedding_VD[rows_R], target.head_DV[:, rows_R].T])
    base_raw = np.hstack([base.embedding_VD, base.head_DV.T])
    everything = np.arange(base.vocabulary)
    here, there = features(base, slice(None)), features(target, rows_R)
    return percolate(there, here, raw, base_raw, rows_R, everything, known)


@dataclass(frozen=True)
class Behaviour:
    """States [rows, contexts * D] before the head after each context and one token, and the head [V, D]."""

    states: Floats
    head_VD: Floats
    contexts: int

    def logits(self, anchors_A: Ints) -> Floats:
        """Logits of the anchors after each context, less their mean."""
        parts = np.split(self.states, self.contexts, axis=1)
        found = [part @ self.head_VD[anchors_A].T for part in parts]
        return np.hstack([part - part.mean(1, keepdims=True) for part in found])


def behaviour(model: Any, ids: Ints, contexts: list[list[int]], batch: int = 256) -> Behaviour:
    """Run `model` on every context followed by each of `ids` (in the model's own numbering)."""
    import torch

    found = []
    with torch.inference_mode():
        for context in contexts:
            parts = []
            for start in range(0, len(ids), batch):
                block = torch.as_tensor(ids[start : start + batch])[:, None]
                past = model.model(input_ids=torch.tensor([context]), use_cache=True).past_key_values
                past.batch_repeat_interleave(len(block))
                out = model.model(input_ids=block, past_key_values=past, use_cache=True)
                parts.append(out.last_hidden_state[:, -1].numpy())
            found.append(np.concatenate(parts))
    head = model.get_output_embeddings().weight.detach().numpy()
    return Behaviour(np.hstack(found), head, len(contexts))


def functional_matching(
    target: Behaviour, base: Behaviour, rows_R: Ints, candidates_C: Ints, known: dict[int, int]
) -> Ints:
    """Plain ids [R] by what the model says after each token."""
    return percolate(target.logits, base.logits, target.states, base.states, rows_R, candidates_C, known)
