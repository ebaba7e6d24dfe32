"""Contributing tokens: which are chosen, for either task, and what is told of the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.privacy.contributing import Contributing, by_attention, by_class
from transom.privacy.empirical import empirical_privacy
from transom.privacy.noise import d_chi, d_chi_guarantee
from transom.privacy.stream import Stream

V = 40
GOOD, BAD, EVERY, RARE = 3, 4, 0, 30


def corpus(seed: int = 0, texts: int = 400, classes: int = 2) -> tuple[list[list[int]], list[int]]:
    """Token 0 in every text, 3 + c mostly in class c, one id in a single text, the rest at random."""
    rng = np.random.default_rng(seed)
    made, labels = [], []
    for number in range(texts):
        label = number % classes
        told = GOOD + (label if rng.random() < 0.9 else int(rng.integers(classes)))
        made.append([EVERY, *rng.integers(10, 20, 5).tolist(), *([told] if rng.random() < 0.7 else [])])
        labels.append(label)
    made[1] += [RARE]
    return made, labels


def test_the_words_that_tell_a_class_are_found_and_nothing_else() -> None:
    texts, labels = corpus()
    found = by_class(texts, labels, V, fraction=2 / 13)
    assert found.ids == (GOOD, BAD)
    tokens = [token for text in texts for token in text]
    assert found.of_tokens == pytest.approx(sum(token in (GOOD, BAD) for token in tokens) / len(tokens))
    assert found.of_kinds == pytest.approx(2 / len(set(tokens)))
    assert by_class(texts, labels, V, fraction=2 / 13, never=[GOOD]).ids[0] == BAD


def test_classes_may_be_many_and_named_by_any_number() -> None:
    texts, labels = corpus(classes=4)
    named = [10 * label - 5 for label in labels]
    assert by_class(texts, named, V, fraction=0.3).ids[:4] == (3, 4, 5, 6)


def test_the_contrast_is_a_test_of_two_shares() -> None:
    """The order is that of the chi-square statistic of the table class by presence."""
    from scipy.stats import chi2_contingency

    texts, labels = corpus(3)
    statistic = {}
    for token in range(10, 20):
        counts = np.zeros((2, 2))
        for text, label in zip(texts, labels, strict=True):
            counts[label, int(token in text)] += 1
        statistic[token] = chi2_contingency(counts, correction=False).statistic
    best = sorted(statistic, key=lambda token: -statistic[token])[:4]
    others = [token for token in range(V) if token not in statistic]
    assert by_class(texts, labels, V, 0.4, never=others).ids == tuple(sorted(best))


def test_a_token_of_few_texts_is_never_spared() -> None:
    """It stands in one class alone, as a name would, and however often in its one text."""
    texts, labels = corpus()
    texts[1] += [RARE] * 50
    everything = by_class(texts, labels, V, fraction=1.0)
    assert RARE not in everything.ids
    assert EVERY not in everything.ids
    assert RARE in by_class(texts, labels, V, fraction=1.0, least_texts=1).ids
    masses = [[1.0 + 99.0 * (token == RARE) for token in text] for text in texts]
    assert RARE not in by_attention(texts, masses, V, fraction=1.0).ids
    assert RARE in by_attention(texts, masses, V, fraction=1.0, least_texts=1).ids


def test_ties_are_taken_together_or_not_at_all() -> None:
    """Four tokens that tell as much, of two classes: room for three takes none, room for four all."""
    texts = [[5, 6]] * 10 + [[7, 8]] * 10 + [[9]] * 20
    labels = [0] * 10 + [1] * 10 + [0, 1] * 10
    assert [by_class(texts, labels, V, fraction=f / 5).ids for f in (3, 4, 5)] == [
        (),
        (5, 6, 7, 8),
        (5, 6, 7, 8),
    ]


@given(st.integers(0, 50), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.randoms(use_true_random=False))
def test_a_choice_keeps_its_fraction_grows_with_it_and_knows_no_order(
    seed: int, one: float, other: float, random: Any
) -> None:
    texts, labels = corpus(seed, texts=60)
    masses = [np.random.default_rng(len(text)).random(len(text)) for text in texts]
    order = list(range(60))
    random.shuffle(order)
    low, high = sorted((one, other))
    for choose, extra in ((by_class, labels), (by_attention, masses)):
        few, many = (choose(texts, extra, V, fraction=fraction) for fraction in (low, high))
        assert set(few.ids) <= set(many.ids)
        assert len(few.ids) <= low * V
        assert few.ids == tuple(sorted(set(few.ids)))
        assert 0 <= few.of_tokens <= 1
    moved = by_class([texts[i] for i in order], [labels[i] for i in order], V, fraction=high)
    assert moved == by_class(texts, labels, V, fraction=high)


def test_attention_chooses_what_gets_it() -> None:
    """Whatever the text's length or the scale of its attention; a sink counts for nothing."""
    rng = np.random.default_rng(0)
    texts, masses = [], []
    for number in range(60):
        body = rng.integers(10, 20, 4 + number % 20)
        text = np.concatenate([[EVERY], body, [GOOD]])
        mass = np.where(text == GOOD, 3.0, 1.0) * 10.0 ** (number % 5)
        mass[0] = 100 * mass.sum()
        texts.append(text)
        masses.append(mass)
    found = by_attention(texts, masses, V, fraction=0.1, never=[EVERY])
    assert found.ids == (GOOD,)
    assert by_attention(texts, masses, V, fraction=0.1).ids == (EVERY,)
    assert found.chosen_from == "texts and attention"
    none = [np.zeros(len(text)) for text in texts]
    assert by_attention(texts, none, V, fraction=1.0).ids == ()


def test_what_is_spared_gets_its_own_eta_and_is_measured_apart() -> None:
    texts, labels = corpus()
    found = by_class(texts, labels, V, fraction=2 / 13)
    ids = np.concatenate([np.array(text) for text in texts])
    etas_V = found.etas(3.0, spare=4.0)
    assert etas_V.tolist() == [12.0 if token in found.ids else 3.0 for token in range(V)]
    table_VD = np.random.default_rng(1).normal(size=(V, 16)).astype(np.float32)
    noise_ND = d_chi(Stream(bytes(32), "cti"), len(ids), 16, etas_V[ids])
    spared_N = found.mask(ids)
    assert spared_N.mean() == pytest.approx(found.of_tokens)
    apart = [
        empirical_privacy(table_VD, ids[kept_N], noise_ND[kept_N], eta_V=etas_V)
        for kept_N in (spared_N, ~spared_N)
    ]
    whole = empirical_privacy(table_VD, ids, noise_ND, eta_V=etas_V)
    assert apart[0] < apart[1]
    assert found.of_tokens * apart[0] + (1 - found.of_tokens) * apart[1] == pytest.approx(whole)
    with pytest.raises(MisconfiguredError, match="at least 1"):
        found.etas(3.0, spare=0.5)


def test_the_guarantee_says_what_was_spared_and_that_labels_were_used() -> None:
    found = Contributing((1, 2), 9, of_tokens=0.125, of_kinds=0.2, chosen_from="texts and labels")
    guarantee = d_chi_guarantee(0.1, 1.0, clip=1.0, spared=found.told)
    assert guarantee.kind == "empirical"
    assert guarantee.discloses[0].endswith("2 tokens, 12.5% of the texts, chosen from texts and labels")


@pytest.mark.parametrize(
    ("texts", "labels", "fraction", "said"),
    [
        ([[1], [2]], [0], 0.1, "2 texts and 1 labels"),
        ([[1], [2]], [1, 1], 0.1, "got 1"),
        ([], [], 0.1, "got 0"),
        ([[], []], [0, 1], 0.1, "no tokens"),
        ([[1], [V]], [0, 1], 0.1, "tokenizer"),
        ([[1], [-1]], [0, 1], 0.1, "tokenizer"),
        ([[1], [2]], [0, 1], 1.1, "fraction"),
        ([[1], [2]], [0, 1], float("nan"), "fraction"),
    ],
)
def test_texts_that_tell_no_classes_apart_are_refused(
    texts: Any, labels: Any, fraction: float, said: str
) -> None:
    with pytest.raises(MisconfiguredError, match=said):
        by_class(texts, labels, V, fraction)


@pytest.mark.parametrize("masses", [[[1.0]], [[1.0], [1.0]], [[1.0, -1.0], [1.0]], [[1.0, np.nan], [1.0]]])
def test_attention_that_does_not_fit_is_refused(masses: Any) -> None:
    with pytest.raises(MisconfiguredError, match="attention"):
        by_attention([[1, 2], [3]], masses, V, 0.1)
