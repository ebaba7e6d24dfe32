"""Attacks on traffic for `obfuscate_attacks.py`: whole texts under a fixed permutation, three priors.

Target `xsum`: half of the news documents are sent, the other half is the prior of the same distribution, and
SST-2's training phrases are the prior of the domain (English text of another kind). Target `sst2`: the
sentences of the development split are sent; the prior of the same distribution is the training split without
phrases that occur in any sentence sent; the news documents are the prior of the domain.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from transom.audit.attacks import sda, tfma
from transom.audit.attacks.traffic import Prior, Texts, Traffic, conceal
from transom.report.finding import Finding

PUBLISHED = {"tfma_top_100": 0.165, "sda_bleu_4": 0.02}  # Lin et al. 2026, the prior of the same distribution


def data_folder() -> Path | None:
    """The folder of public data sets, if there is one with these two."""
    folder = Path(os.environ.get("TRANSOM_DATA", ""))
    both = (folder / "xsum" / "xsum-1000.jsonl").exists() and (folder / "sst2" / "train.tsv").exists()
    return folder if both and os.environ.get("TRANSOM_DATA") else None


def attacks(tokenizer: Any, folder: Path, budget_s: float, *, limit: int | None = None) -> dict[str, Any]:
    """The record of both targets: how they were split, and every finding under every prior."""
    news = [json.loads(line)["document"] for line in _lines(folder / "xsum" / "xsum-1000.jsonl")]
    order = np.random.default_rng(0).permutation(len(news))[:limit]
    sent, held = ([news[i] for i in part] for part in np.array_split(order, 2))
    phrases = [line.split("\t")[1] for line in _lines(folder / "sst2" / "train.tsv")[1:]][:limit]
    dev = [line.split("\t")[1] for line in _lines(folder / "sst2" / "dev.tsv")[1:]][:limit]
    joined = "\n".join(sentence.strip() for sentence in dev)
    fresh = [phrase for phrase in phrases if phrase.strip() not in joined]
    return {
        "published": PUBLISHED,
        "xsum": _target(tokenizer, sent, {"domain": phrases, "distribution": held}, budget_s),
        "sst2": _target(tokenizer, dev, {"domain": news, "distribution": fresh}, budget_s),
    }


def _target(tokenizer: Any, sent: list[str], priors: dict[str, list[str]], budget_s: float) -> dict[str, Any]:
    plain, vocabulary = _encoded(tokenizer, sent), tokenizer.get_vocab_size()
    target = Traffic(conceal(plain, np.random.default_rng(1).permutation(vocabulary)), vocabulary)
    found = _timed(tfma.findings, target, Prior("none"), plain, budget_s)
    for level in ("domain", "distribution"):
        prior = Prior(level, _encoded(tokenizer, priors[level]))
        found += _timed(tfma.findings, target, prior, plain, budget_s)
        found += [*sda.findings(target, prior, plain, budget_s)]
    return {
        "texts": len(plain),
        "tokens": sum(map(len, plain)),
        "prior_texts": {level: len(texts) for level, texts in priors.items()},
        "findings": [finding.to_dict() for finding in found],
    }


def _timed(findings: Callable[..., tuple[Finding, ...]], *given: Any) -> list[Finding]:
    """Findings with an even share each of what they took together."""
    started = time.monotonic()
    found = findings(*given)
    return [replace(one, cost_s=round((time.monotonic() - started) / len(found), 3)) for one in found]


def _encoded(tokenizer: Any, texts: list[str]) -> Texts:
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return tuple(tuple(ids) for ids in encoded if ids)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").split("\n") if line.strip()]
