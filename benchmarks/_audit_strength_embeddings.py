"""The embeddings pairs of `audit_strength.py`: our attacks and published ones, same target, same run.

    TRANSOM_DATA=DIR python benchmarks/_audit_strength_embeddings.py [--quick]

Sentences: MiniLM's embeddings of SST-2 dev sentences, drawn from those after the 200th (the first 200 were
looked at while the search was written), with what was learnt from SST-2 train, shared sentences removed. All
attacks get the same embeddings of the same training sentences. References: Song and Raghunathan 2020, arXiv
2004.00053, section 3: multi-label classification (MLC) with a linear classifier a word, multi-set prediction
(MSP) with an LSTM, and the white-box attack on deep encoders (the embedding mapped to the lowest layer, then
a sparse combination of the words' own embeddings). What the paper leaves to the data is chosen on held-out
training sentences, which can only help them: MLC's threshold, MSP's number of words, the white box's ridge,
penalty and threshold. The metric is theirs: F1 of the words of a sentence, each counted once. vec2text
(Morris et al. 2023) needs its pretrained T5 models and cannot be run here.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transom.audit.attacks import bag, beam, sentence_inversion
from transom.audit.attacks.rows import Noise, Rows, estimated
from transom.audit.attacks.sentences import Encoder, Public, Sentences, encoder_of, f1, faster, overlap
from transom.checkpoint import load

Texts = tuple[tuple[int, ...], ...]
Counts = NDArray[np.int64]

TRAIN, DEV, ROWS = 6000, 20, 12  # sentences
TRIES = 6000  # texts that the search encodes for one sentence: no clock, so load changes nothing
LEAST_WORDS = 5  # of a training sentence: SST-2 train has many fragments
NOISE = 0.6  # standard deviation at which the nearest row is right for about half of the tokens
_MSP_WIDTH, _MSP_STEPS, _MSP_EPOCHS = 256, 30, 5
_SCALE = 20.0  # as `bag` scales embeddings


@dataclass(frozen=True)
class _Study:
    """What every attack on the sentences gets: training texts, their embeddings, words, the goal [N, D]."""

    encoder: Encoder
    train: Texts
    made_ND: torch.Tensor
    words: bag.Bag
    plain: Texts
    goal_ND: torch.Tensor


def pairs(*, quick: bool = False) -> list[dict[str, Any]]:
    """The records of all pairs; `quick` takes a small sample, whose figures are no claim."""
    return list(_each(quick))


def _each(quick: bool) -> Iterator[dict[str, Any]]:
    yield _row_pair(quick)
    yield from _sentence_pairs(quick)


def _sentence_pairs(quick: bool) -> Iterator[dict[str, Any]]:
    encoder, encode = _encoder()
    plain = encode(_drawn(_sst2("dev")[200:], 3 if quick else DEV))
    train = tuple(
        text for text in encode(_drawn(_train_sentences(), 400 if quick else TRAIN)) if text not in plain
    )
    started = time.process_time()
    made_ND = encoder.embed(train)
    words = bag.fit(made_ND, train, float("inf"))
    study = _Study(encoder, train, made_ND, words, plain, encoder.embed(plain))
    log_odds_NU = words.log_odds(study.goal_ND)
    starts = words.read(log_odds_NU)
    learnt_min = (time.process_time() - started) / 60
    started, public = time.process_time(), Public(faster(encoder), train)
    ours, likeness = sentence_inversion.invert(
        Sentences(study.goal_ND),
        public,
        words,
        log_odds_NU,
        starts,
        float("inf"),
        most=300 if quick else TRIES,
    )
    search_min = learnt_min + (time.process_time() - started) / 60
    for name, read in (("MLC", lambda _: starts), ("MSP", _msp), ("white box", _white_box)):
        started = time.process_time()
        theirs = read(study)
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


def _msp(study: _Study) -> Texts:
    """Multi-set prediction: a recurrent network names one word after another; at each step every word not yet
    named is as right as any other."""
    torch.manual_seed(0)
    words_U, held = study.words.words_U, len(study.train) // 10
    sets = [np.searchsorted(words_U, sorted(set(text))) for text in study.train]
    net = _Namer(study.goal_ND.shape[1], np.bincount(np.concatenate(sets), minlength=len(words_U)))
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    draw = np.random.default_rng(0)
    for _ in range(_MSP_EPOCHS):
        for rows in np.array_split(held + draw.permutation(len(sets) - held), len(sets) // 64):
            made_BD = _SCALE * study.made_ND[torch.from_numpy(rows)]
            loss = net.loss(made_BD, [draw.permutation(sets[row]) for row in rows])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
    known, found = (net.name(_SCALE * made, words_U) for made in (study.made_ND[:held], study.goal_ND))
    values = [f1(overlap(_first(known, count), study.train[:held])) for count in range(1, _MSP_STEPS + 1)]
    return _first(found, 1 + int(np.argmax(values)))


def _first(texts: Texts, count: int) -> Texts:
    return tuple(text[:count] for text in texts)


class _Namer(torch.nn.Module):
    """From an embedding [B, D] and the word named last to the next word's log-probabilities [B, U]."""

    def __init__(self, width: int, counts_U: NDArray[np.int64]) -> None:
        super().__init__()
        self.size = len(counts_U)
        self.cell = torch.nn.LSTMCell(width + _MSP_WIDTH // 2, _MSP_WIDTH)
        self.names = torch.nn.Embedding(self.size + 1, _MSP_WIDTH // 2)
        self.out = torch.nn.Linear(_MSP_WIDTH, self.size)
        self.out.bias.data = torch.from_numpy(counts_U + 0.1).log().float()

    def next(self, made_BD: torch.Tensor, last_B: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        state = self.cell(torch.cat([made_BD, self.names(last_B)], 1), state)
        return self.out(state[0]).log_softmax(1), state

    def loss(self, made_BD: torch.Tensor, orders: list[NDArray[np.int64]]) -> torch.Tensor:
        """Cross-entropy to the words left, evenly; words leave in the order given, which was drawn."""
        left_BU = torch.zeros(len(orders), self.size)
        for left_U, order in zip(left_BU, orders, strict=True):
            left_U[order] = 1.0
        last_B, state, losses = torch.full((len(orders),), self.size), None, []
        for step in range(max(map(len, orders))):
            logs_BU, state = self.next(made_BD, last_B, state)
            many_B1 = left_BU.sum(1, keepdim=True)
            losses.append(-(left_BU / many_B1.clamp_min(1) * logs_BU).sum() / (many_B1 > 0).sum())
            last_B = torch.tensor([order[min(step, len(order) - 1)] for order in orders])
            left_BU = left_BU.scatter(1, last_B[:, None], 0.0)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def name(self, made_ND: torch.Tensor, words_U: NDArray[np.int64]) -> Texts:
        """Words in the order in which they are named, none twice."""
        last_N, state, named_NU = (
            torch.full((len(made_ND),), self.size),
            None,
            torch.zeros(len(made_ND), self.size),
        )
        found = []
        for _ in range(_MSP_STEPS):
            logs_NU, state = self.next(made_ND, last_N, state)
            last_N = (logs_NU - 1e9 * named_NU).argmax(1)
            named_NU.scatter_(1, last_N[:, None], 1.0)
            found.append(words_U[last_N.numpy()])
        return tuple(map(tuple, np.stack(found, 1).tolist()))


def _white_box(study: _Study) -> Texts:
    """Map the embedding to the mean of the words' own embeddings (ridge regression), then find the few words,
    with weights of at least 0, whose combination it is (iterative shrinkage)."""
    words, train, made_ND, goal_ND = study.words, study.train, study.made_ND, study.goal_ND
    table_UE = study.encoder.table_VE[torch.from_numpy(words.words_U)].float()
    table_UE = table_UE - table_UE.mean(0)
    means_NE = torch.stack([table_UE[np.searchsorted(words.words_U, text)].mean(0) for text in train])
    held = len(train) // 10
    bare_ND = torch.cat([made_ND, torch.ones(len(made_ND), 1)], 1)
    square = bare_ND[held:].T @ bare_ND[held:]
    best: tuple[float, Callable[[torch.Tensor], Texts]] = (-1.0, lambda _: ())
    sample = min(held, 200)
    for ridge in (0.1, 1.0, 10.0):
        mapped = torch.linalg.solve(
            square + ridge * torch.eye(len(square)), bare_ND[held:].T @ means_NE[held:]
        )
        for penalty in (0.05, 0.1, 0.2, 0.4):
            weights_NU = _sparse(bare_ND[:sample] @ mapped, table_UE, penalty)
            for least in (0.0, 0.01, 0.02, 0.04):
                read = _heavy(weights_NU, words, least)
                value = f1(overlap(read, train[:sample]))
                if value > best[0]:
                    best = (
                        value,
                        lambda rows, m=mapped, p=penalty, w=least: _heavy(
                            _sparse(rows @ m, table_UE, p), words, w
                        ),
                    )
    return best[1](torch.cat([goal_ND, torch.ones(len(goal_ND), 1)], 1))


def _sparse(goal_NE: torch.Tensor, table_UE: torch.Tensor, penalty: float) -> torch.Tensor:
    """Weights [N, U] of at least 0 that minimise |goal - weights table|^2 / 2 + penalty' |weights|_1, where
    penalty' is that share of the largest product of goal and table (FISTA, 100 steps)."""
    step = 1 / float(torch.linalg.matrix_norm(table_UE, 2) ** 2)
    target_NU = goal_NE @ table_UE.T
    shrink_N1 = step * penalty * target_NU.amax(1, keepdim=True)
    weights = ahead = torch.zeros_like(target_NU)
    speed = 1.0
    for _ in range(100):
        now = (ahead - step * (ahead @ table_UE @ table_UE.T - target_NU) - shrink_N1).clamp_min(0)
        faster_speed = (1 + (1 + 4 * speed**2) ** 0.5) / 2
        ahead = now + (speed - 1) / faster_speed * (now - weights)
        weights, speed = now, faster_speed
    return weights


def _heavy(weights_NU: torch.Tensor, words: bag.Bag, least: float) -> Texts:
    """The words whose weight is above `least`."""
    return replace(words, threshold=least).read(weights_NU)


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


def _drawn(sentences: Sequence[str], count: int) -> list[str]:
    order = np.random.default_rng(0).permutation(len(sentences))[:count]
    return [sentences[number] for number in order]


if __name__ == "__main__":
    import argparse
    import json

    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true")
    for made in _each(flags.parse_args().quick):
        print(json.dumps(made), flush=True)
