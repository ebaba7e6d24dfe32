"""The English policy that ships: its claim is computed from its integers, its sampler drawn and compared."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from transom.audit.attacks.epsilon import distinguish
from transom.errors import PolicyError
from transom.privacy.channel import exact_epsilon
from transom.privacy.data import ENGLISH_PATH, ENGLISH_SHA256
from transom.privacy.mechanisms import build
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, load_policy
from transom.privacy.sanitize import Sanitizer

IN_GROUP = ("rnm", "rnm-laplace", "em", "krr", "random-in-group")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


def test_it_loads_under_its_pin_and_no_other(policy: Policy) -> None:
    assert policy.sha256 == ENGLISH_SHA256
    assert ENGLISH_PATH.stat().st_size < 2_000_000
    with pytest.raises(PolicyError, match="not the expected one"):
        load_policy(ENGLISH_PATH, "0" * 64)
    assert policy.polarity_coherent
    assert len(policy.licence_notices) == 4


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
    assert {"marguerite", "peter", "smith", "john", "anna"} <= policy.names <= set(policy.words)
    assert not {"hope", "mark", "rose", "may", "summer"} & policy.names  # words first, names second
    sanitizer = Sanitizer(policy)
    for _ in range(20):
        safe = sanitizer.sanitize(text, placeholders=Placeholders())
        kinds = {piece.source.lower(): piece.kind for piece in safe.pieces}
        for name in policy.names & set(kinds):
            assert kinds[name] == "name"
        assert "[NAME_1]" in safe.text
