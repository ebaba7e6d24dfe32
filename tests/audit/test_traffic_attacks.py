"""TFMA and SDA read a permutation of real text, and read nothing where ids are drawn at random."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from transom.audit.attacks import sda, tfma
from transom.audit.attacks.traffic import (
    Prior,
    Texts,
    Traffic,
    bleu4,
    bleu_counts,
    bleu_interval,
    by_frequency,
    clustered_interval,
    conceal,
    read_traffic,
    reveal,
    stream,
)
from transom.errors import MisconfiguredError
from transom.serving.tokenizer import load_tokenizer

PUBLISHED_TFMA_TOP_100 = 0.165  # Lin et al. 2026, the prior of the same distribution
PUBLISHED_SDA_BLEU_4 = 0.02


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


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_clustered_interval_covers(share: float) -> None:
    """Texts of different length and their own rates: the overall rate lies in 95 % of the intervals."""
    draw = np.random.default_rng(4)
    inside = []
    for _ in range(400):
        sizes = draw.integers(1, 40, 120)
        rates = draw.beta(share * 4, (1 - share) * 4, 120)
        low, high = clustered_interval(draw.binomial(sizes, rates), sizes)
        inside.append(low <= share <= high)
    assert 0.92 <= np.mean(inside) <= 1.0


def test_tokens_of_one_text_are_not_independent() -> None:
    """All-or-nothing texts count as one trial each, however long they are."""
    hits, sizes = np.array([100, 0] * 20), np.full(40, 100)
    low, high = clustered_interval(hits, sizes)
    assert low < 0.36
    assert high > 0.64


def test_no_hit_leaves_room_for_one_text() -> None:
    low, high = clustered_interval(np.zeros(10, np.int64), np.full(10, 1000))
    assert low == 0.0
    assert 0.2 < high < 0.4


def test_bleu_follows_its_definition() -> None:
    """By hand: 5 of 6, 3 of 5, 2 of 4, 1 of 3 matches, and a brevity penalty of exp(1 - 7/6)."""
    reference, guess = (1, 2, 3, 4, 9, 6, 7), (1, 2, 3, 4, 5, 6)
    expected = np.exp(1 - 7 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu4([reference], [guess]) == pytest.approx(expected)
    assert bleu4([(1, 1, 2, 3, 4)], [(1, 1, 1, 1, 1)]) == 0.0


def test_the_bleu_interval_holds_the_value_and_narrows() -> None:
    draw = np.random.default_rng(5)
    texts = draw.integers(0, 50, (400, 12))
    guesses = np.where(draw.random((400, 12)) < 0.9, texts, -1)
    widths = []
    for count in (40, 400):
        counts = bleu_counts(texts[:count].tolist(), guesses[:count].tolist())
        low, high = bleu_interval(counts)
        assert low < bleu4(texts[:count].tolist(), guesses[:count].tolist()) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


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
