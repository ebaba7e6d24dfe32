"""The lm pairs of `audit_strength.py`: what a causal language model adds to contextual Bayes, on news.

Target: lines of XSum articles in random order, through the shipped policy at epsilon 4 and 1. The attacker
owns the lines of the other articles, SmolLM2 and the mechanism; it sets its powers on lines of its own.
`recovery_alone` is what the same attacker names without the outputs on the first ALONE lines, `ours_there`
what it names with them on these; `word_optimum` is the exact optimum of one who reads a word at a time.

Recovery: share of the drawn words that are named. Intervals of the gain: paired bootstrap over lines.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from _audit_strength_words import gain_interval
from transom.audit.attacks import bayes, causal, contextual
from transom.audit.attacks.word_text import observe, own_sentences
from transom.audit.attacks.words import WordData, WordKnowledge, WordTarget, mounted, right
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from words_sst2 import data_folder

EPSILONS = (4.0, 1.0)
SENTENCES = 300
ARTICLES = 150  # whose lines are the target; the rest are the attacker's
FEWEST_WORDS = 5
ALONE = 100


def pairs(*, sentences: int, quick: bool = False) -> list[dict[str, Any]]:
    """The record of each epsilon; `quick` takes a small sample, whose figures are no claim."""
    import torch

    torch.set_num_threads(1)
    audited, own = _lines()
    audited, own = (audited[:8], own[:1000]) if quick else (audited[:sentences], own)
    model = causal.load_causal("smollm2")
    records = []
    for epsilon in EPSILONS[:1] if quick else EPSILONS:
        target, knowledge, data = _case(audited, own, epsilon)
        if quick:
            knowledge = replace(knowledge, trial=knowledge.trial[:5], trial_seen=knowledge.trial_seen[:5])
        knowledge = replace(knowledge, causal=model)
        records.append(_on(f"XSum, epsilon {epsilon:g}", target, knowledge, data))
        print(json.dumps(records[-1]), file=sys.stderr, flush=True)
    return records


def _on(name: str, target: WordTarget, knowledge: WordKnowledge, data: WordData) -> dict[str, Any]:
    started = time.monotonic()
    reader = causal.learned(target.channel, knowledge, math.inf)
    named = {
        "ours": causal.guesses(reader, target.seen),
        "reference": contextual.guesses(reader.mind, target.seen),
        "bayes": bayes.guesses(target, knowledge.prior_V),
    }
    hit_N = {attack: right(target, data, guesses) for attack, guesses in named.items()}
    part = replace(target, seen=target.seen[:ALONE], repeats_RN=target.repeats_RN[:, :0])
    alone_N = right(part, WordData(data.plain[:ALONE]), causal.guesses(reader.unseeing, part.seen))
    low, high = gain_interval(target, hit_N["ours"], hit_N["reference"])
    return {
        "pair": f"{name}: {causal.NAME}, {contextual.NAME}",
        **{f"recovery_{attack}": float(hits.mean()) for attack, hits in hit_N.items()},
        "recovery_alone": float(alone_N.mean()),
        "ours_there": float(hit_N["ours"][: len(alone_N)].mean()),
        "gain_low": low,
        "gain_high": high,
        "n": len(hit_N["ours"]),
        "sentences": len(target.seen),
        "minutes": (time.monotonic() - started) / 60,
        "power": reader.power,
        "word_optimum": target.channel.optimum,
        "word_chance": target.channel.chance,
    }


def _case(
    audited: Sequence[str], own: Sequence[str], epsilon: float
) -> tuple[WordTarget, WordKnowledge, WordData]:
    policy = load_policy()
    sanitizer = Sanitizer(policy, epsilon=epsilon)
    assert sanitizer.mechanism is not None
    seen, plain = observe(sanitizer, audited)
    text = own_sentences(policy, own)
    return mounted(policy.words, sanitizer.mechanism, seen, plain, text, policy.prior_V, epsilon=epsilon)


def _lines() -> tuple[list[str], list[str]]:
    """Lines of the first ARTICLES of a random order, in random order; and those of all other articles."""
    rows = (data_folder() / "xsum" / "xsum-1000.jsonl").read_text(encoding="utf-8").splitlines()
    draw = np.random.default_rng(0)
    articles = [json.loads(rows[i])["document"].split("\n") for i in draw.permutation(len(rows))]
    lines = [line for article in articles[:ARTICLES] for line in article if len(line.split()) >= FEWEST_WORDS]
    audited = [lines[i] for i in draw.permutation(len(lines))]
    return audited, [line for article in articles[ARTICLES:] for line in article]
