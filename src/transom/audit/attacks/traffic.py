"""Traffic of obfuscated ids: what the host sees, what an attacker brings, and how a guess is scored.

Threat model: an honest-but-curious host that sees every id of every prompt and answer, and owns public text.
A fixed permutation of ids is a substitution cipher; it hides neither counts nor order. The attacks on it are
`tfma` (counts) and `sda` (counts and neighbours). Does not protect anything.
Source: AloePri, arXiv 2603.01499 (the two attacks' metrics); Papineni et al. 2002 (BLEU); Korn and Graubard
1998, "Confidence intervals for proportions with small expected number of positive counts" (clustered
intervals: the tokens of one text are not independent, the texts are).

Shapes: N tokens, S texts, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transom.config import load_json
from transom.errors import MisconfiguredError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Texts = tuple[tuple[int, ...], ...]
Level = Literal["none", "domain", "distribution"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Traffic:
    """The target: observed ids, one tuple a text; ids are below `vocabulary`."""

    texts: Texts
    vocabulary: int

    def __post_init__(self) -> None:
        _check(self.texts, self.vocabulary, "traffic")


@dataclass(frozen=True)
class Prior:
    """What the attacker knows: plain ids of text like the traffic, and some pairs {observed id: plain id}.

    `level` says how like: "none" has no text at all and takes the order of the ids for the order of
    frequency, which holds for byte-pair vocabularies, whose commoner merges come first; "domain" is other
    text of the language; "distribution" is held-out text of the same source. `known` comes from chat
    templates, whose tokens and places are public.
    """

    level: Level
    texts: Texts = ()
    known: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.level == "none") == bool(self.texts):
            raise MisconfiguredError(
                f"a prior of level {self.level!r} came with {len(self.texts)} texts; "
                "give none exactly for level 'none'"
            )


def reveal(texts: Texts, tau_V: Ints) -> Texts:
    """The plain texts behind observed `texts`, where tau_V[plain id] is the observed id."""
    plain_V = np.argsort(tau_V)
    return tuple(tuple(int(plain_V[token]) for token in text) for text in texts)


def conceal(texts: Texts, tau_V: Ints) -> Texts:
    """The texts as the host sees them: each id through the permutation."""
    return tuple(tuple(int(tau_V[token]) for token in text) for text in texts)


def read_traffic(path: Path, vocabulary: int) -> Traffic:
    """Traffic from a file with one JSON list of ids a line. Raises MisconfiguredError, with the line."""
    texts = []
    for number, line in enumerate(_lines(path), 1):
        try:
            ids = load_json(line)
        except ValueError:
            ids = None
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise MisconfiguredError(f"{path}, line {number}: not a JSON list of token ids")
        texts.append(tuple(ids))
    return Traffic(tuple(text for text in texts if text), vocabulary)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path} cannot be read as UTF-8 text ({type(error).__name__})") from None


def _check(texts: Texts, vocabulary: int, what: str) -> None:
    if not texts or not all(texts):
        raise MisconfiguredError(f"{what} needs at least one text and no empty ones, got {len(texts)} texts")
    low, high = min(map(min, texts)), max(map(max, texts))
    if low < 0 or high >= vocabulary:
        raise MisconfiguredError(
            f"{what} holds ids from {low} to {high}, outside the vocabulary of {vocabulary}; "
            "is it another model's?"
        )


def flat(texts: Texts) -> Ints:
    """All ids in order [N]."""
    return np.fromiter((token for text in texts for token in text), dtype=np.int64)


def stream(texts: Texts) -> Ints:
    """All ids in order, with -1 before and after every text."""
    parts = [np.array([-1])]
    for text in texts:
        parts += [np.array(text), parts[0]]
    return np.concatenate(parts).astype(np.int64)


def by_frequency(texts: Texts, vocabulary: int) -> tuple[Ints, Ints]:
    """(ids by falling count, ties by id; counts by id [V])."""
    counts_V = np.bincount(flat(texts), minlength=vocabulary) if texts else np.zeros(vocabulary, np.int64)
    return np.argsort(-counts_V, kind="stable"), counts_V


def per_text(hit_N: Bools, texts: Texts) -> tuple[Ints, Ints]:
    """(hits [S], tokens [S]) of each text."""
    lengths_S = np.array([len(text) for text in texts])
    starts_S = np.cumsum(lengths_S) - lengths_S
    return np.add.reduceat(hit_N.astype(np.int64), starts_S), lengths_S


def clustered_interval(hits_S: Ints, sizes_S: Ints, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval for the share hits / sizes of a source whose texts are independent and whose tokens are not.

    Clopper-Pearson with the effective number of tokens, p (1 - p) / variance of the ratio estimator; where
    no text differs from the rest, that is the number of texts.
    """
    from scipy.stats import beta, t

    texts, total = len(sizes_S), sizes_S.sum()
    share = hits_S.sum() / total
    variance = ((hits_S - share * sizes_S) ** 2).sum() * texts / max(1, texts - 1) / total**2
    effective = min(total, share * (1 - share) / variance) if variance > 0 else texts
    tail = (1 - confidence) / 2
    if variance > 0 and texts > 1:  # few clusters know their own spread badly
        effective *= (t.ppf(tail, total - 1) / t.ppf(tail, texts - 1)) ** 2
    hits = share * effective
    low = beta.ppf(tail, hits, effective - hits + 1) if hits > 0 else 0.0
    high = beta.ppf(1 - tail, hits + 1, effective - hits) if hits < effective else 1.0
    return float(low), float(high)


def bleu4(references: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> float:
    """Corpus BLEU-4 in [0, 1], brevity penalty included; 0 when some n-gram order has no match.

    >>> bleu4([(1, 2, 3, 4, 5)], [(1, 2, 3, 4, 5)])
    1.0
    >>> bleu4([(1, 2, 3, 4, 5)], [(1, 2, 4, 3, 5)])
    0.0
    """
    return bleu4_of(bleu_counts(references, guesses))


def bleu_counts(references: Sequence[Sequence[int]], guesses: Sequence[Sequence[int]]) -> Ints:
    """Per text [S, 10]: clipped matches and n-grams guessed for n = 1 to 4, reference and guess length."""
    rows = []
    for reference, guess in zip(references, guesses, strict=True):
        row = []
        for n in range(1, 5):
            wanted, got = _grams(reference, n), _grams(guess, n)
            row += [(wanted & got).total(), got.total()]
        rows.append([*row, len(reference), len(guess)])
    return np.array(rows, dtype=np.int64)


def bleu4_of(counts: Ints | Floats) -> float:
    """BLEU-4 of texts whose `bleu_counts` are given."""
    return float(_bleu4(counts.sum(axis=0)))


def _bleu4(totals: Ints | Floats) -> Floats:
    """BLEU-4 of each row [..., 10] of summed counts."""
    matches, grams = totals[..., 0:8:2], totals[..., 1:8:2]
    with np.errstate(divide="ignore", invalid="ignore"):  # where some order has no match the value is 0
        brevity = np.minimum(0.0, 1 - totals[..., 8] / totals[..., 9])
        precision = np.exp(brevity + np.log(matches / grams).mean(axis=-1))
    return np.where(matches.all(axis=-1), precision, 0.0)


def bleu_interval(counts: Ints, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap over texts, with one more text of mean length: not read at all for the low end,
    read wholly for the high one. A plain bootstrap knows no n-grams that no text happened to match."""
    draws = np.random.default_rng(0).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), 400)
    sums, tail = draws @ counts, (1 - confidence) / 2
    unread, read = counts.mean(axis=0), counts.mean(axis=0)
    unread[0:8:2], read[0:8:2] = 0, read[1:8:2]
    ends = zip((unread, read), (tail, 1 - tail), strict=True)
    low, high = (np.quantile(_bleu4(sums + more), at) for more, at in ends)
    value = bleu4_of(counts)
    return min(float(low), value), max(float(high), value)


def _grams(text: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(zip(*(text[i:] for i in range(n)), strict=False))
