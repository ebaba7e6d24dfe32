"""Sorted-output fingerprint: a token is what the model says after it, in order of probability.

After a prompt of one token the sorted next-token distribution does not depend on tau. Each obfuscated token
is named after the public token whose standardised logits, at some hundreds of ranks, are nearest.

Keys change fingerprints a little, because one constant stands for each norm. An attacker that knows the
method sees in which directions keys of its own do, and weighs those down.

Threat model: the host, with the public base model, that runs both; no traffic.
Does not survive noise in the output head (0.05 of its spread is enough).
Source: own measurement; Fisher 1936 for the weighting.

Shapes: V vocabulary, B batch, C candidates, S sampled ids, R ranks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from transom.audit.attacks.matching import Floats, nearest, with_others
from transom.audit.attacks.own_keys import obfuscated, settings_of
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, misfit, scored
from transom.obfuscation.keys import Settings
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

NAME = "sorted-output fingerprint"
_BATCH, _ENDS, _INNER = 64, 192, 127
_KEYS, _TOKENS, _TEXT = 4, 512, 256  # own keys, tokens compared under each, ids that calibrate them
_RIDGE = 1e-2  # of the mean variance: directions that own keys hardly move are not trusted further than this


def attack(
    target: Target,
    knowledge: Knowledge,
    data: Sample,
    budget_s: float = 600.0,
    *,
    candidates: int | None = None,
    settings: Settings | None = None,
    public_VR: Floats | None = None,
) -> Finding:
    """The share of sampled ids named rightly among `candidates` public tokens (None: the whole vocabulary).

    Fewer candidates are the sampled plain ids and random others: an easier question, which the baseline and
    the note state. The candidates are cut to what the budget allows, never below twice the sample.
    `settings` are the method's (None: no noise, and h from the widths); `public_VR` is `fingerprints` of the
    public model over the whole vocabulary, for who attacks several targets.
    """
    started = time.monotonic()
    if gap := misfit(NAME, target, knowledge):
        return gap
    if target.model is None or knowledge.model is None:
        return not_run(NAME, METRIC, "needs both models to run, and one was not given")
    vocabulary = knowledge.base.vocabulary
    rows_SR = fingerprints(target.model, data.obfuscated_S)
    per_id_s = (time.monotonic() - started) / len(data.obfuscated_S)
    weigh_RR, keys = _weights(target, knowledge, settings, until=started + budget_s / 3)
    if public_VR is None:
        left = started + budget_s - time.monotonic()
        affordable = max(2 * len(data.obfuscated_S), int(left / per_id_s))
        among_C = with_others(data.plain_S, vocabulary, min(candidates or vocabulary, affordable))
        public_CR = fingerprints(knowledge.model, among_C)
    else:
        among_C = with_others(data.plain_S, vocabulary, candidates or vocabulary)
        public_CR = public_VR[among_C]
    guess_S = among_C[nearest(rows_SR @ weigh_RR, public_CR @ weigh_RR)[0]]
    note = f"among {len(among_C)} of {vocabulary} ids; {keys} own keys"
    return scored(NAME, guess_S, data, candidates=len(among_C), note=note)


def fingerprints(model: Any, ids_S: Ints) -> Floats:
    """[S, R]: standardised logits at the ranks of interest after each id alone."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(ids_S), _BATCH):
            ids_B1 = torch.from_numpy(ids_S[start : start + _BATCH, None]).to(model.device)
            logits_BV = model(input_ids=ids_B1, use_cache=False).logits[:, -1].float().cpu().numpy()
            found.append(np.sort(logits_BV, axis=1)[:, _ranks(logits_BV.shape[1])])
    logits_SR = np.concatenate(found)
    logits_SR -= logits_SR.mean(axis=1, keepdims=True)
    return np.asarray(logits_SR / logits_SR.std(axis=1, keepdims=True), dtype=np.float32)


def _ranks(vocabulary: int) -> Ints:
    """Ranks in rising order: geometric from both ends, and evenly spaced between."""
    ends = np.geomspace(1, vocabulary / 2, _ENDS).astype(np.int64) - 1
    inner = np.linspace(0, vocabulary - 1, _INNER + 2).astype(np.int64)
    return np.unique(np.concatenate([ends, vocabulary - 1 - ends, inner]))


def _weights(
    target: Target, knowledge: Knowledge, settings: Settings | None, *, until: float
) -> tuple[Floats, int]:
    """(whitening of what own keys do to fingerprints [R, R], number of keys); the identity where no width
    was added, since nothing was then done to the norms."""
    settings = settings or settings_of(target, knowledge)
    if settings is None:
        return np.eye(len(_ranks(knowledge.base.vocabulary)), dtype=np.float32), 0
    draw = np.random.default_rng(2)
    ids_S = draw.permutation(knowledge.base.vocabulary)[:_TOKENS].astype(np.int64)
    public_SR = fingerprints(knowledge.model, ids_S)
    moves: list[Floats] = []
    while len(moves) < _KEYS and (not moves or time.monotonic() < until):
        own, tau_V = obfuscated(knowledge.model, settings, draw.bytes(32), ids_S[:_TEXT])
        moves.append(fingerprints(own, tau_V[ids_S]) - public_SR)
    moved_R = np.concatenate(moves).astype(np.float64)
    within_RR = moved_R.T @ moved_R / len(moved_R)
    within_RR += _RIDGE * np.trace(within_RR) / len(within_RR) * np.eye(len(within_RR))
    variances_R, directions_RR = np.linalg.eigh(within_RR)
    return np.asarray(directions_RR / np.sqrt(variances_R), dtype=np.float32), len(moves)
