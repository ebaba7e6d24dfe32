"""The embeddings pairs of `audit_strength.py`: our attacks and published ones, same target, same run.

    TRANSOM_DATA=DIR python benchmarks/_audit_strength_embeddings.py [--quick]

Sentences: MiniLM's embeddings of SST-2 dev sentences, with what was learnt from SST-2 train, shared sentences
removed. They are drawn from those after the 200th (the first 200 were looked at while the search was
written), less the 20 first drawn, on which an earlier way of scoring was measured. All attacks get the same
embeddings of the same training sentences. References: the three attacks of Song and Raghunathan 2020, arXiv
2004.00053, in `_audit_strength_song.py` with their published settings; and multi-label classification once
more with a threshold chosen on held-out training sentences, which is where our search starts. The metric is
theirs: F1 of the words of a sentence, each counted once. vec2text (Morris et al. 2023) needs its pretrained
T5 models and cannot be run here.

Rows: SmolLM2's table with Gaussian noise on SST-2 dev sentences; the reference is the nearest row.

Every pair: `recovery_ours`, `recovery_reference`, the gain with its paired bootstrap interval over sentences,
processor `minutes` for both together.
"""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import _audit_strength_song as song
from transom.audit.attacks import bag, beam, sentence_inversion
from transom.audit.attacks.rows import Noise, Rows, estimated
from transom.audit.attacks.sentences import Encoder, Public, Sentences, encoder_of, f1, faster, overlap
from transom.checkpoint import load

Texts = tuple[tuple[int, ...], ...]
Counts = NDArray[np.int64]

TRAIN, DEV, ROWS = 6000, 60, 24  # sentences
TOUCHED = 20  # sentences at the head of the drawing that were measured before
TRIES = 6000  # texts that the search encodes for one sentence: no clock, so load changes nothing
LEAST_WORDS = 5  # of a training sentence: SST-2 train has many fragments
NOISE = 0.6  # standard deviation at which the nearest row is right for about half of the tokens


def pairs(*, quick: bool = False) -> list[dict[str, Any]]:
    """The records of all pairs; `quick` takes a small sample, whose figures are no claim."""
    return list(_each(quick))


def _each(quick: bool) -> Iterator[dict[str, Any]]:
    yield _row_pair(quick)
    yield from _sentence_pairs(quick)


def _sentence_pairs(quick: bool) -> Iterator[dict[str, Any]]:
    encoder, encode = _encoder()
    plain = encode(_drawn(_sst2("dev")[200:], 3 if quick else DEV, skip=TOUCHED))
    train = tuple(
        text for text in encode(_drawn(_train_sentences(), 400 if quick else TRAIN)) if text not in plain
    )
    started = time.process_time()
    made_ND, goal_ND = encoder.embed(train), encoder.embed(plain)
    words = bag.fit(made_ND, train, float("inf"))
    log_odds_NU = words.log_odds(goal_ND)
    starts = words.read(log_odds_NU)
    learnt_min = (time.process_time() - started) / 60
    started, public = time.process_time(), Public(faster(encoder), train)
    most = 300 if quick else TRIES
    target = Sentences(goal_ND)
    ours, likeness = sentence_inversion.invert(
        target, public, words, log_odds_NU, starts, float("inf"), most=most
    )
    search_min = learnt_min + (time.process_time() - started) / 60
    epochs, iterations = (1, 20) if quick else (song.EPOCHS, song.ITERATIONS)
    references: dict[str, Callable[[], Texts]] = {
        "MLC": lambda: song.multi_label(train, made_ND, goal_ND, epochs),
        "MLC, threshold chosen": lambda: starts,
        "MSP": lambda: song.multi_set(train, made_ND, goal_ND, epochs),
        "white box": lambda: song.white_box(encoder, train, made_ND, goal_ND, iterations),
    }
    for name, read in references.items():
        started = time.process_time()
        theirs = read()
        counts = overlap(ours, plain), overlap(theirs, plain)
        record = _record(f"MiniLM sentences: search, {name}", f1, *counts)
        minutes = search_min + (time.process_time() - started) / 60
        recall = {
            f"multiset_recall_{who}": _recall(read_, plain)
            for who, read_ in (("ours", ours), ("reference", theirs))
        }
        yield record | recall | {"likeness": likeness, "training_sentences": len(train), "minutes": minutes}


def _record(pair: str, value: Callable[[Counts], float], ours_N: Counts, theirs_N: Counts) -> dict[str, Any]:
    draw, n = np.random.default_rng(0), len(ours_N)
    resampled = (draw.integers(0, n, n) for _ in range(2000))
    gains = np.array([value(ours_N[rows]) - value(theirs_N[rows]) for rows in resampled])
    low, high = np.quantile(gains, [0.025, 0.975])
    return {
        "pair": pair,
        "recovery_ours": value(ours_N),
        "recovery_reference": value(theirs_N),
        "gain_low": float(low),
        "gain_high": float(high),
        "n": n,
    }


def _recall(read: Texts, plain: Texts) -> float:
    """Share of the sentences' tokens named, repetitions counted, order not."""
    found = ((Counter(a) & Counter(b)).total() for a, b in zip(read, plain, strict=True))
    return sum(found) / sum(map(len, plain))


def _row_pair(quick: bool) -> dict[str, Any]:
    """Beam search and nearest row; the attacker estimates the noise's scale."""
    loaded = load("smollm2")
    tokenizer = loaded.tokenizer.tokenizer
    sentences = _drawn(_sst2("dev")[200:], 2 if quick else ROWS)
    plain = tuple(tuple(one.ids) for one in tokenizer.encode_batch(sentences, add_special_tokens=False))
    table_VD = loaded.model.get_input_embeddings().weight.detach().float()
    prior = beam.causal(loaded.model, loaded.model.config.bos_token_id)
    started, draw = time.process_time(), torch.Generator().manual_seed(0)
    rows = tuple(Noise("gaussian", NOISE).protect(table_VD[list(text)], draw) for text in plain)
    target = estimated(Rows(rows, Noise("gaussian")), table_VD)
    ours = beam.decode(target, table_VD, prior, 16, 256, stop=float("inf"))
    theirs = tuple(tuple(torch.cdist(rows_TD, table_VD).argmin(1).tolist()) for rows_TD in rows)
    counts = _hits(ours, plain), _hits(theirs, plain)
    record = _record(f"SmolLM2 rows, Gaussian {NOISE:g}: beam, nearest", _ratio, *counts)
    return record | {"minutes": (time.process_time() - started) / 60, "noise_found": target.noise.scale}


def _hits(read: Texts, plain: Texts) -> Counts:
    """[N, 2]: tokens named rightly and tokens of each text."""
    return np.array([(sum(map(int.__eq__, a, b)), len(b)) for a, b in zip(read, plain, strict=True)])


def _ratio(counts: Counts) -> float:
    return float(counts[:, 0].sum() / counts[:, 1].sum())


def _encoder() -> tuple[Encoder, Callable[[Sequence[str]], Texts]]:
    loaded = load("minilm")
    tokenizer = loaded.tokenizer.tokenizer

    def encode(sentences: Sequence[str]) -> Texts:
        return tuple(
            tuple(one.ids) for one in tokenizer.encode_batch(list(sentences), add_special_tokens=False)
        )

    return encoder_of(loaded), encode


def _sst2(part: str) -> list[str]:
    with (Path(os.environ["TRANSOM_DATA"]) / "sst2" / f"{part}.tsv").open(encoding="utf-8") as file:
        return [
            row["sentence"].strip() for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def _train_sentences() -> list[str]:
    dev = set(_sst2("dev"))
    return [
        one for one in dict.fromkeys(_sst2("train")) if one not in dev and len(one.split()) >= LEAST_WORDS
    ]


def _drawn(sentences: Sequence[str], count: int, *, skip: int = 0) -> list[str]:
    order = np.random.default_rng(0).permutation(len(sentences))[skip : skip + count]
    return [sentences[number] for number in order]


if __name__ == "__main__":
    import argparse
    import json

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true")
    for made in _each(flags.parse_args().quick):
        print(json.dumps(made), flush=True)
