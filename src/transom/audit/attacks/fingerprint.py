"""Sorted-output fingerprint: a token is what the model says after it, in order of probability.

After a prompt of one token the sorted next-token distribution does not depend on tau. Of its sorted
logits 127 quantiles are kept, shifted and scaled to mean 0 and length 1, and each obfuscated token is named
after the public token with the nearest such fingerprint.

Threat model: the host, with the public base model, that runs both; no traffic.
Does not survive noise in the output head (0.05 of its spread is enough).
Source: own measurement.

Shapes: V vocabulary, B batch, C candidates, S sampled ids, Q quantiles.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from transom.audit.attacks.matching import Floats, Ints, nearest, quantiles, unit, with_others
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, misfit, scored
from transom.audit.finding import Finding, not_run

NAME = "sorted-output fingerprint"
_QUANTILES, _BATCH = 127, 64


def attack(
    target: Target,
    knowledge: Knowledge,
    data: Sample,
    budget_s: float = 600.0,
    *,
    candidates: int | None = None,
) -> Finding:
    """The share of sampled ids named rightly among `candidates` public tokens (None: the whole vocabulary).

    Fewer candidates are the sampled plain ids and random others: an easier question, which the baseline and
    the note state. The candidates are cut to what the budget allows, never below twice the sample.
    """
    started = time.monotonic()
    if gap := misfit(NAME, target, knowledge):
        return gap
    if target.model is None or knowledge.model is None:
        return not_run(NAME, METRIC, "needs both models to run, and one was not given")
    rows_SQ = _fingerprints(target.model, data.obfuscated_S)
    per_id_s = (time.monotonic() - started) / len(data.obfuscated_S)
    affordable = max(2 * len(data.obfuscated_S), int(budget_s / per_id_s) - len(data.obfuscated_S))
    vocabulary = knowledge.base.vocabulary
    among_C = with_others(data.plain_S, vocabulary, min(candidates or vocabulary, affordable))
    guess_S = among_C[nearest(rows_SQ, _fingerprints(knowledge.model, among_C))[0]]
    note = f"among {len(among_C)} of {vocabulary} ids"
    return scored(NAME, guess_S, data, candidates=len(among_C), started=started, note=note)


def _fingerprints(model: Any, ids_S: Ints) -> Floats:
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(ids_S), _BATCH):
            ids_B1 = torch.from_numpy(ids_S[start : start + _BATCH, None]).to(model.device)
            logits_BV = model(input_ids=ids_B1).logits[:, -1].float()
            found.append(quantiles(logits_BV.cpu().numpy(), _QUANTILES))
    fingerprints_SQ = np.concatenate(found)
    # A norm's constant weight leaves the logits a few percent too large or small, which length 1 takes out.
    return unit(fingerprints_SQ - fingerprints_SQ.mean(axis=1, keepdims=True))
