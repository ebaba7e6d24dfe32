"""The words pairs of `audit_strength.py`: contextual Bayes and published attacks on the same sanitised text.

Targets: SANTEXT+ (Yue et al. 2021) and CUSTEXT+ (Chen et al. 2023) at epsilon 1 to 4 on sentences of SST-2
dev, with raw GloVe vectors as in their papers: SANTEXT+ over the words of the corpus (train and dev, as its
authors do), of which at most half the tokens pass; CUSTEXT+ in groups of 20 over the vocabulary of the
shipped policy, with its stop words. Attackers own SST-2 train, without sentences that share eight tokens in
a row with dev. References, with the settings of Tong et al. (arXiv 2410.17052): mask-token inference (top-1
on the sanitised sentence), embedding inversion (top-1), inversion learnt from a hundred sanitisations of
the attacker's text. Mask-token inference takes the BERT given with --model (the papers': bert-base-
uncased). Without one MiniLM gets a masked-language head and both are trained on the attacker's text, which
bert-base has not read; but it is six layers and 384 wide instead of twelve and 768.

Recovery: share of the drawn words that are named; a word that SANTEXT+ visibly keeps is not drawn. Intervals
of the gain: paired bootstrap over sentences. `minutes` is the time of both attacks of a pair.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks import bayes, contextual, mask_token, word_inversion
from transom.audit.attacks.word_text import Sentences, Token, drawn, sanitised
from transom.audit.attacks.words import WordData, WordKnowledge, WordTarget, mounted, right
from transom.privacy.lexicon import read_vectors
from transom.privacy.mechanisms import build
from transom.privacy.policy import load_policy
from words_sst2 import (
    SANTEXT_KEEP,
    UNKNOWN,
    Materials,
    Method,
    Setting,
    Task,
    data_folder,
    method_for,
    public_frequency,
    sensitive_share,
    tokens_of,
    vectors_for,
)

EPSILONS = (1.0, 2.0, 3.0, 4.0)
METHODS = ("santext+", "custext+")
HEAD_S = 420.0  # for the training of the mask-token reference
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Corpus:
    """Sentences of the attacker and of the target as tokens; counts of the former, words of all of both."""

    own: list[list[str]]
    dev: list[list[str]]
    counts: Counter[str]
    words: frozenset[str]


def pairs(
    embeddings: Path, *, model: str | None = None, sentences: int | None = None, quick: bool = False
) -> list[dict[str, Any]]:
    """The records of all pairs, on the first so many sentences of a random order (all by default).

    `quick` takes a small sample, whose figures are no claim.
    """
    corpus = _corpus(quick, sentences)
    materials = Materials({True: load_policy(None)}, read_vectors(embeddings, 400_000))
    language = None if model is None else mask_token.load_masked(model)
    records = []
    for name in METHODS:
        task = Task("sst2", [], [], corpus.counts)
        method = (
            _santext(corpus, materials)
            if name == "santext+"
            else method_for(Setting("sst2", name), materials, task)
        )
        dev, own = (_sentences(method, rows) for rows in (corpus.dev, corpus.own))
        for epsilon in EPSILONS[-1:] if quick else EPSILONS:
            mechanism = method.make(epsilon)
            seen = sanitised(dev, mechanism, method.words)
            frequency_V = public_frequency(method.words, materials.vectors)
            case = mounted(method.words, mechanism, seen, dev, own, frequency_V, epsilon=epsilon)
            if language is None:
                language = mask_token.trained(case[1].text, budget_s=5.0 if quick else HEAD_S)
            target, knowledge, data = case
            knowledge = replace(knowledge, language=language)
            records += _on(f"{name}, epsilon {epsilon:g}", target, knowledge, data)
            print(*map(json.dumps, records[-len(REFERENCES) :]), sep="\n", file=sys.stderr, flush=True)
    return records


def _on(name: str, target: WordTarget, knowledge: WordKnowledge, data: WordData) -> list[dict[str, Any]]:
    """Our attack against each reference on one target."""
    named = {attack: _timed(attack, target, knowledge) for attack in ATTACKS}
    hit_N = {attack: right(target, data, guesses) for attack, (guesses, _) in named.items()}
    records = []
    for reference in REFERENCES:
        low, high = gain_interval(target, hit_N[OURS], hit_N[reference])
        records.append(
            {
                "pair": f"{name}: {OURS}, {reference}",
                "recovery_ours": float(hit_N[OURS].mean()),
                "recovery_reference": float(hit_N[reference].mean()),
                "gain_low": low,
                "gain_high": high,
                "n": len(hit_N[OURS]),
                "minutes": (named[OURS][1] + named[reference][1]) / 60,
                "bayes": float(hit_N["bayes"].mean()),
                "bayes_optimum": target.channel.optimum,
            }
        )
    return records


def _timed(attack: str, target: WordTarget, knowledge: WordKnowledge) -> tuple[list[str], float]:
    started = time.monotonic()
    return ATTACKS[attack](target, knowledge), time.monotonic() - started


OURS = "contextual"
ATTACKS: dict[str, Callable[[WordTarget, WordKnowledge], list[str]]] = {
    OURS: lambda target, own: contextual.guesses(
        contextual.learned(target.channel, own, math.inf), target.seen
    ),
    "bayes": lambda target, own: bayes.guesses(target, own.prior_V),
    "mask token": lambda target, own: mask_token.fill(own.language, target.seen),
    "inversion": lambda target, own: [token.text for token in drawn(target.seen)],
    "learned inversion": lambda target, own: word_inversion.learned_guesses(target, own)[0],
}
REFERENCES = ("mask token", "inversion", "learned inversion")


def gain_interval(
    target: WordTarget, ours_N: NDArray[np.bool_], theirs_N: NDArray[np.bool_]
) -> tuple[float, float]:
    """95 % interval of the mean difference, by a paired bootstrap over sentences."""
    drawn_S = np.array([sum(token.kind == "drawn" for token in sentence) for sentence in target.seen])
    sentence_N = np.repeat(np.arange(len(drawn_S)), drawn_S)
    gain_S = np.bincount(sentence_N, weights=ours_N.astype(float) - theirs_N, minlength=len(drawn_S))
    rows_BS = np.random.default_rng(0).integers(0, len(drawn_S), (BOOTSTRAPS, len(drawn_S)))
    gains = gain_S[rows_BS].sum(axis=1) / np.maximum(1, drawn_S[rows_BS].sum(axis=1))
    low, high = np.quantile(gains, (0.025, 0.975))
    return float(low), float(high)


def _santext(corpus: Corpus, materials: Materials) -> Method:
    """SANTEXT+ over the words of the corpus that have vectors, function words among them."""
    policy, known = materials.policies[True], set(materials.vectors.words)
    words = tuple(
        word for word in sorted({*policy.words, *policy.pass_words}) if word in known and word in corpus.words
    )
    frequency_V = public_frequency(words, materials.vectors)
    options: dict[str, Any] = {
        "frequency_V": frequency_V,
        "keep": SANTEXT_KEEP,
        "sensitive_share": sensitive_share(words, frequency_V, corpus.counts),
    }
    space_VE = vectors_for(words, materials.vectors)
    return Method(
        "santext+", words, frozenset(), lambda epsilon: build("santext+", space_VE, epsilon, **options)
    )


def _corpus(quick: bool, sentences: int | None) -> Corpus:
    def read(name: str) -> list[list[str]]:
        lines = (data_folder() / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]
        return [tokens_of(line.split("\t")[1]) for line in lines]

    own, dev = read("train"), read("dev")
    counts = Counter(token for tokens in own for token in tokens)
    words = frozenset(counts) | {token for tokens in dev for token in tokens}
    order = np.random.default_rng(0).permutation(len(dev))[: 60 if quick else sentences]
    return Corpus(own[:4000] if quick else own, [dev[i] for i in order], counts, words)


def _sentences(method: Method, rows: Sequence[Sequence[str]]) -> Sentences:
    """Tokens as `words_sst2.py` treats them: words that pass, punctuation, drawn words, unknown ones."""
    ids = method.ids()

    def token(word: str) -> Token:
        if word in method.passing or not any(c.isalnum() for c in word):
            return Token("passed", word)
        return Token("drawn", word, ids[word]) if word in ids else Token("placeholder", UNKNOWN)

    return tuple(tuple(map(token, row)) for row in rows if row)
