"""TFMA and SDA read a permutation of real text, and read nothing where ids are drawn at random."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transom.audit.attacks import sda, tfma
from transom.audit.attacks.traffic import (
    Prior,
    Texts,
    Traffic,
    by_frequency,
    conceal,
    read_traffic,
    reveal,
    stream,
)
from transom.errors import MisconfiguredError
from transom.report.finding import Finding
from transom.report.statistics import (
    bleu4_of,
    bleu_counts,
    bleu_interval,
    clustered_interval,
    interval,
)
from transom.serving.tokenizer import load_tokenizer

PUBLISHED_TFMA_TOP_100 = 0.165  # Lin et al. 2026, the prior of the same distribution
PUBLISHED_SDA_BLEU_4 = 0.02
LANGUAGE = 300  # ids of a made-up language


@pytest.fixture(scope="module")
def corpus() -> tuple[Texts, Texts, int]:
    """(texts to send, held-out texts, vocabulary): SST-2's training sentences, in a random order."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    file = Path(os.environ.get("TRANSOM_DATA", beside)) / "sst2" / "train.tsv"
    if not file.exists():
        pytest.skip(f"no SST-2 in {file}; set TRANSOM_DATA to the folder that holds sst2/")
    tokenizer = load_tokenizer("smollm2")
    rows = file.read_text("utf-8").split("\n")[1:]
    texts = [tokenizer.encode_text(row.split("\t")[1]).ids for row in rows if "\t" in row]
    order = np.random.default_rng(0).permutation(len(texts))
    half = len(texts) // 2
    return (
        tuple(texts[i] for i in order[:half]),
        tuple(texts[i] for i in order[half:]),
        tokenizer.vocab_size,
    )


@pytest.fixture(scope="module")
def permuted(corpus: tuple[Texts, Texts, int]) -> Traffic:
    plain, _, vocabulary = corpus
    return Traffic(conceal(plain, np.random.default_rng(1).permutation(vocabulary)), vocabulary)


def random_ids(plain: Texts, vocabulary: int, seed: int = 2) -> Traffic:
    """A perfect defence: every token becomes an id that says nothing about it."""
    draw = np.random.default_rng(seed)
    return Traffic(
        tuple(tuple(draw.integers(0, vocabulary, len(text)).tolist()) for text in plain), vocabulary
    )


def test_frequencies_read_a_permutation_above_the_published_level(
    corpus: tuple[Texts, Texts, int], permuted: Traffic
) -> None:
    plain, held_out, _ = corpus
    found = tfma.findings(permuted, Prior("distribution", held_out), plain, 10.0)
    by_metric = {finding.metric: finding for finding in found}
    top_1, top_10, top_100 = (by_metric[f"top-{top} recovery of tokens"] for top in tfma.TOP)
    assert top_100.low is not None
    assert top_100.low > PUBLISHED_TFMA_TOP_100
    assert top_1.value < top_10.value < top_100.value
    assert all(finding.above_chance for finding in found)


def test_frequencies_need_the_right_prior(corpus: tuple[Texts, Texts, int], permuted: Traffic) -> None:
    plain, held_out, _ = corpus
    with_text = tfma.attack(permuted, Prior("distribution", held_out), plain, 10.0, top=100)
    without = tfma.attack(permuted, Prior("none"), plain, 10.0, top=100)
    assert without.high < with_text.low


def test_deciphering_reads_nine_tokens_of_ten(corpus: tuple[Texts, Texts, int], permuted: Traffic) -> None:
    plain, held_out, _ = corpus
    tokens, types, bleu = sda.findings(permuted, Prior("distribution", held_out), plain, 60.0)
    assert tokens.value > 0.9
    assert tokens.low > 0.9
    assert types.above_chance
    assert bleu.low > 10 * PUBLISHED_SDA_BLEU_4


def test_random_ids_leave_both_at_chance(corpus: tuple[Texts, Texts, int]) -> None:
    plain, held_out, vocabulary = corpus
    plain, held_out = plain[:1000], held_out[:1000]
    target, prior = random_ids(plain, vocabulary), Prior("distribution", held_out)
    found = (*tfma.findings(target, prior, plain, 10.0), *sda.findings(target, prior, plain, 2.0))
    for finding in found:
        assert finding.low <= finding.baseline <= finding.high, finding.metric
        assert finding.value < 0.02


def zipf_language(count: int, seed: int) -> Texts:
    """Texts of 15 ids out of LANGUAGE: half of them follow Zipf, half are favourites of the id before."""
    shares = 0.75 ** np.arange(LANGUAGE)
    favourites = np.random.default_rng(0).permuted(np.tile(shares / shares.sum(), (LANGUAGE, 1)), axis=1)
    zipf = 1 / np.arange(1, LANGUAGE + 1)
    zipf /= zipf.sum()
    follow = ((favourites + zipf) / 2).cumsum(axis=1)
    draw = np.random.default_rng(seed)
    columns = [draw.choice(LANGUAGE, count, p=zipf)]
    while len(columns) < 15:
        beyond = follow[columns[-1]] < draw.random(count)[:, None]
        columns.append(np.minimum(beyond.sum(axis=1), LANGUAGE - 1))
    return tuple(map(tuple, np.stack(columns, axis=1).tolist()))


def attacked(target: Traffic, held_out: Texts, plain: Texts) -> tuple[Finding, ...]:
    prior = Prior("distribution", held_out)
    return (*tfma.findings(target, prior, plain, np.inf), *sda.findings(target, prior, plain, np.inf))


def test_a_made_up_language_under_a_permutation_is_read() -> None:
    """Without any data: frequencies read some of it, deciphering all of it."""
    plain, held_out = zipf_language(3000, seed=1), zipf_language(3000, seed=2)
    tau = np.random.default_rng(3).permutation(LANGUAGE)
    found = attacked(Traffic(conceal(plain, tau), LANGUAGE), held_out, plain)
    values = {one.metric: one.value for one in found}
    assert all(one.above_chance for one in found)
    assert values["top-1 recovery of tokens"] > 0.2
    assert values["top-100 recovery of tokens"] > 0.9
    assert values["recovery of tokens"] > 0.95
    assert values["recovery of types"] > 0.9
    assert values["BLEU-4"] > 0.9


def test_a_made_up_language_behind_random_ids_is_read_at_chance() -> None:
    """Five draws; a random id is right one time in LANGUAGE, and among 10 or 100 as much more often."""
    held_out = zipf_language(500, seed=2)
    draws = []
    for seed in range(10, 15):
        plain = zipf_language(500, seed)
        draws.append(attacked(random_ids(plain, LANGUAGE, seed), held_out, plain))
    for found in zip(*draws, strict=True):
        metric = found[0].metric
        covered = [one.low <= one.baseline <= one.high for one in found]
        assert sum(covered) >= 3, metric  # of five; fewer happen once in a thousand times
        if metric.endswith(" of tokens"):
            top = int(metric.split("-")[1].split()[0]) if metric.startswith("top") else 1
            assert np.mean([one.value for one in found]) == pytest.approx(top / LANGUAGE, rel=0.25), metric


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_intervals_of_tokens_and_of_types_cover_what_a_guess_reads(covers: Any, share: float) -> None:
    """A guess of every id, each right with probability `share`, as TFMA and SDA end in.

    Of tokens the truth is that of a guess on 4,000 texts; intervals come from 40. Of types it is `share`.
    """
    draw = np.random.default_rng(8)
    plain, tau = zipf_language(4000, seed=9), draw.permutation(LANGUAGE)
    seen, undo = conceal(plain, tau), np.argsort(tau)

    def guessed() -> Any:
        return np.where(draw.random(LANGUAGE) < share, undo, -1)

    guess_V = guessed()
    truth = tfma.token_finding("x", Traffic(seen, LANGUAGE), plain, guess_V, "tokens").value
    tokens, types = [], []
    for _ in range(200):
        some = draw.integers(0, len(plain), 40)
        target = Traffic(tuple(seen[i] for i in some), LANGUAGE)
        data = tuple(plain[i] for i in some)
        tokens.append(tfma.token_finding("x", target, data, guess_V, "tokens"))
        types.append(tfma.token_finding("x", target, data, guessed(), "types"))
    assert covers([(one.low, one.high) for one in tokens], truth)
    assert covers([(one.low, one.high) for one in types], share)


def test_findings_on_traffic_carry_those_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed here again, from what TFMA and SDA named."""
    plain, held_out = zipf_language(200, seed=1), zipf_language(500, seed=2)
    target = Traffic(conceal(plain, np.random.default_rng(3).permutation(LANGUAGE)), LANGUAGE)
    named: list[Any] = []

    def spy(name: str, metric: str, target: Traffic, hit: Any, *rest: Any) -> Finding:
        named.append(hit)
        return scored(name, metric, target, hit, *rest)

    scored = tfma.scored
    monkeypatch.setattr(tfma, "scored", spy)
    *counted, bleu = attacked(target, held_out, plain)
    assert len(counted) == len(named) == 8
    for one, hit in zip(counted, named, strict=True):
        hits_S = hit.reshape(200, 15).sum(axis=1) if len(hit) == 3000 else None
        wanted = (
            interval(int(hit.sum()), len(hit))
            if hits_S is None
            else clustered_interval(hits_S, np.full(200, 15))
        )
        assert (hits_S is not None) == one.metric.endswith("tokens")
        assert one.value == hit.mean()
        assert (one.low, one.high) == wanted
    guess_V = sda.decipher(target, Prior("distribution", held_out), np.inf)
    counts = bleu_counts(plain, [guess_V[list(text)].tolist() for text in target.texts])
    assert (bleu.value, bleu.low, bleu.high) == (bleu4_of(counts), *bleu_interval(counts))


def test_known_pairs_are_pinned_and_help_short_traffic(corpus: tuple[Texts, Texts, int]) -> None:
    plain, held_out, vocabulary = corpus
    plain, held_out = plain[:150], held_out[:3000]
    tau = np.random.default_rng(3).permutation(vocabulary)
    target = Traffic(conceal(plain, tau), vocabulary)
    common = by_frequency(plain, vocabulary)[0][:60]
    known = {int(tau[token]): int(token) for token in common}
    guess = sda.decipher(target, Prior("distribution", held_out, known), 20.0)
    assert all(guess[observed] == token for observed, token in known.items())
    alone = sda.decipher(target, Prior("distribution", held_out), 20.0)
    rare = np.setdiff1d(np.concatenate(plain), common)
    assert (guess[tau[rare]] == rare).sum() > (alone[tau[rare]] == rare).sum()


def test_a_guess_names_no_plain_id_twice(corpus: tuple[Texts, Texts, int]) -> None:
    plain, held_out, vocabulary = corpus
    guess = sda.decipher(Traffic(plain[:100], vocabulary), Prior("distribution", held_out[:100]), 20.0)
    named = guess[guess >= 0]
    assert len(named) > 300
    assert len(np.unique(named)) == len(named)


def test_deciphering_stops_at_its_budget_with_a_guess(
    corpus: tuple[Texts, Texts, int], permuted: Traffic
) -> None:
    _, held_out, _ = corpus
    guess = sda.decipher(permuted, Prior("distribution", held_out), 0.0)
    assert 0 < (guess >= 0).sum() <= sda.FIRST_TYPES


def test_without_text_deciphering_is_not_run() -> None:
    target = Traffic(((1, 2, 3),), 5)
    (finding,) = sda.findings(target, Prior("none"), target.texts, 1.0)
    assert finding.status == "not run"
    assert finding.reason
    with pytest.raises(MisconfiguredError):
        sda.decipher(target, Prior("none"), 1.0)


def test_texts_pass_the_permutation_both_ways() -> None:
    tau = np.array([2, 0, 1])
    assert conceal(((0, 1), (2,)), tau) == ((2, 0), (1,))
    assert reveal(conceal(((0, 1), (2,)), tau), tau) == ((0, 1), (2,))
    assert stream(((0, 1), (2,))).tolist() == [-1, 0, 1, -1, 2, -1]


def test_traffic_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text("\n".join([json.dumps([3, 1]), "", json.dumps([]), json.dumps([2])]))
    assert read_traffic(file, 4).texts == ((3, 1), (2,))


@pytest.mark.parametrize("line", ["[1, 4]", "[-1]", '["1"]', "[1.0]", "[true]", "{}", "[1", ""])
def test_bad_traffic_is_refused_without_its_content(tmp_path: Path, line: str) -> None:
    file = tmp_path / "traffic.jsonl"
    file.write_text("\n" + line)
    with pytest.raises(MisconfiguredError) as caught:
        read_traffic(file, 4)
    assert line not in str(caught.value) or not line


def test_a_prior_has_text_exactly_when_its_level_says_so() -> None:
    with pytest.raises(MisconfiguredError):
        Prior("none", ((1,),))
    with pytest.raises(MisconfiguredError):
        Prior("domain")
