"""The English policy that ships: its claim is computed from its integers, its sampler drawn and compared."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.audit.attacks.epsilon import distinguish
from transom.errors import PolicyError
from transom.privacy.channel import exact_epsilon
from transom.privacy.data import ENGLISH_PATH, ENGLISH_SHA256
from transom.privacy.explain import explain
from transom.privacy.kinds import base_of
from transom.privacy.mechanisms import build
from transom.privacy.partition import PartitionedMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, load_policy
from transom.privacy.sanitize import Sanitizer
from transom.privacy.text import CLOSED_FORMS

IN_GROUP = ("rnm", "rnm-laplace", "em", "krr", "random-in-group")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


def test_it_loads_under_its_pin_and_no_other(policy: Policy) -> None:
    assert policy.sha256 == ENGLISH_SHA256
    assert ENGLISH_PATH.stat().st_size < 3_000_000
    with pytest.raises(PolicyError, match="not the expected one"):
        load_policy(ENGLISH_PATH, "0" * 64)
    assert policy.polarity_coherent
    assert len(policy.licence_notices) == 5


@pytest.mark.parametrize("mechanism", IN_GROUP)
def test_the_claim_holds_over_every_group(policy: Policy, mechanism: str) -> None:
    budget = 3.0
    made = build(mechanism, policy.partition, budget)
    claim = made.guarantee().epsilon
    assert claim is not None
    assert claim <= budget
    step = 10 if mechanism == "rnm-laplace" else 1  # its quadrature takes 10 ms a group
    groups = range(0, policy.partition.groups, step)
    if step == 1:
        made.prepare_all()
    exact = max(exact_epsilon(made.channel(group)) for group in groups)
    assert exact <= claim
    if mechanism != "random-in-group":
        assert exact > 0.99 * budget  # the budget is spent, not wasted


def test_all_tables_made_at_once_are_those_made_one_by_one(policy: Policy) -> None:
    assert policy.epsilon is not None
    together, alone = (build(policy.mechanism, policy.partition, policy.epsilon) for _ in range(2))
    together.prepare_all()
    for group in range(policy.partition.groups):
        assert np.array_equal(together.channel(group).weights_XY, alone.channel(group).weights_XY)


def test_optimal_keeps_its_claim_on_sampled_groups(policy: Policy) -> None:
    made = build("optimal", policy.partition, 2.0)
    for group in range(0, policy.partition.groups, 150):
        assert exact_epsilon(made.channel(group)) <= 2.0


def test_the_default_sampler_matches_its_table(policy: Policy) -> None:
    made = build(policy.mechanism, policy.partition, policy.epsilon)
    p_values = []
    for word in range(0, len(policy.words), len(policy.words) // 12):
        candidates, weights = made.row(word)
        expected = weights / 2.0**64 * 40_000
        drawn = made.sample(np.full(40_000, word))
        counts = np.array([(drawn == candidate).sum() for candidate in candidates])
        assert counts.sum() == 40_000
        common = expected >= 5
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[common], max(expected[~common].sum(), 1e-9))
        p_values.append(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)
    assert min(p_values) > 1e-6


def test_the_distinguisher_accepts_the_default_and_rejects_a_smaller_claim(policy: Policy) -> None:
    made = build(policy.mechanism, policy.partition, policy.epsilon)
    # The pair of words, in some group, at which the table's epsilon is attained.
    group = max(range(0, policy.partition.groups, 20), key=lambda g: exact_epsilon(made.channel(g)))
    weights_KK = made.channel(group).weights_XY.astype(np.float64)
    y = int((weights_KK.max(axis=0) / weights_KK.min(axis=0)).argmax())
    start = int(policy.partition.starts_G1[group])
    a, b = start + int(weights_KK[:, y].argmax()), start + int(weights_KK[:, y].argmin())

    def draw(word: object) -> int:
        return int(made.sample(np.array([word]))[0])

    assert not distinguish(draw, a, b, epsilon=policy.epsilon, samples=8_000, alpha=1e-3).rejected
    assert distinguish(draw, a, b, epsilon=0.2, samples=8_000, alpha=1e-3).rejected


@pytest.mark.parametrize(
    "text", ["Marguerite owes me.", "peter smith owes me", "PETER SMITH OWES ME", "I met john. Anna left."]
)
def test_listed_names_are_replaced_in_any_case_and_position(policy: Policy, text: str) -> None:
    assert {"marguerite", "peter", "smith", "john", "anna"} <= policy.names - set(policy.words)
    assert not {"hope", "mark", "rose", "may", "summer"} & policy.names  # words first, names second
    sanitizer = Sanitizer(policy)
    for _ in range(20):
        safe = sanitizer.sanitize(text, placeholders=Placeholders())
        kinds = {piece.source.lower(): piece.kind for piece in safe.pieces}
        for name in policy.names & set(kinds):
            assert base_of(kinds[name]) == "name"
        assert "[PERSON_1]" in safe.text


def drawn_in_a_sentence(sanitizer: Sanitizer, words: Iterable[str]) -> list[str]:
    """Which of the words are drawn, in lower case, each inside a sentence of its own."""
    text = "\n".join(f"the {word} is" for word in words)
    pieces = sanitizer.sanitize(text, placeholders=Placeholders()).pieces
    return [piece.source for piece in pieces if piece.action == "draw"]


@pytest.fixture(scope="module")
def sanitizer(policy: Policy) -> Sanitizer:
    return Sanitizer(policy)


def test_every_word_of_the_vocabulary_is_drawn_and_no_other_is(policy: Policy, sanitizer: Sanitizer) -> None:
    assert drawn_in_a_sentence(sanitizer, policy.words) == list(policy.words)
    others = policy.names | CLOSED_FORMS | policy.pass_words
    assert len(others) > 800
    assert drawn_in_a_sentence(sanitizer, sorted(others)) == []


@given(
    st.lists(st.text(max_size=8) | st.sampled_from(["peter", "st", "mr", "prozac", " ", "the"]), max_size=8)
)
def test_whatever_is_written_only_words_of_the_vocabulary_are_drawn(
    sanitizer: Sanitizer, fragments: list[str]
) -> None:
    for text in ("".join(fragments), " ".join(fragments)):
        for piece in sanitizer.sanitize(text, placeholders=Placeholders()).pieces:
            if base_of(piece.kind) == "word":  # `prozac` is a word of health that no group holds
                known = piece.source.lower() in sanitizer.policy.word_ids
                assert piece.action == ("draw" if known else "placeholder")
            else:
                assert piece.action != "draw"


def test_the_printed_attacker_is_the_best_of_all_guesses_at_drawn_words(
    policy: Policy, sanitizer: Sanitizer
) -> None:
    """Enumerated: each word that the sanitiser draws, each output, in exact numbers, over all groups."""
    assert policy.epsilon is not None
    mechanism, starts = sanitizer.mechanism, policy.partition.starts_G1.tolist()
    assert isinstance(mechanism, PartitionedMechanism)
    drawn = set(drawn_in_a_sentence(sanitizer, policy.words))
    priors = zip(policy.words, policy.prior_V.tolist(), strict=True)
    counts = [int(Fraction(prior) * 2**60) if word in drawn else 0 for word, prior in priors]
    success = chance = 0
    for start, end in pairwise(starts):
        rows = mechanism.channel(mechanism.partition.group_V[start]).weights_XY.tolist()
        joint = [
            [count * weight for weight in row] for count, row in zip(counts[start:end], rows, strict=True)
        ]
        best = [max(column) for column in zip(*joint, strict=True)]
        success, chance = success + sum(best), chance + max(counts[start:end])
        if start % 40:
            continue
        # The guess at each word that may come back, and how often it is right.
        result = sanitizer.sanitize(" ".join(policy.words[start:end]), placeholders=Placeholders())
        guessed = sanitizer.bayes_guess(result)
        outputs = [piece.output_id - start for piece in result.pieces if piece.output_id >= 0]
        share = [Fraction(best[y], sum(row[y] for row in joint)) for y in outputs]
        assert guessed.success == pytest.approx(float(sum(share) / len(share)), rel=1e-9)
        for y, (_, guess) in zip(outputs, guessed.guesses, strict=True):
            assert joint[policy.word_ids[guess] - start][y] >= best[y] * (1 - 1e-12)
    printed = explain(policy, policy.mechanism, policy.epsilon)
    assert printed.bayes_success == pytest.approx(success / sum(counts) / 2**64, rel=1e-9)
    assert printed.bayes_chance == pytest.approx(chance / sum(counts), rel=1e-9)
