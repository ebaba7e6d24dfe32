"""What is read of a whole text, by hand; several budgets at once; values behind placeholders."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.audit.listed_policy import WORDS, listed_policy

from transom.audit.attack import choose
from transom.audit.attacks.by_rule import ByRule, by_rule
from transom.audit.attacks.values import Values
from transom.audit.attacks.word_text import own_sentences
from transom.audit.rarity import Rarity
from transom.audit.recovery import Attacker, recovery
from transom.audit.words import ATTACKS, sanitised_case
from transom.errors import MisconfiguredError
from transom.privacy.kinds import KINDS, SUBKINDS
from transom.privacy.mechanisms import build
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Piece, Sanitizer
from transom.report.finding import Finding

HEALTH = ("flu", "rash")
TEXTS = ["the cat has the flu", "a dog is red and a cow is blue", "my horse has a cough and a cold"] * 20


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return listed_policy(tmp_path_factory.mktemp("listed"))


def pieces_of(sanitizer: Sanitizer, texts: list[str]) -> list[tuple[Piece, ...]]:
    return [sanitizer.sanitize(text, placeholders=Placeholders()).pieces for text in texts]


def read(policy: Policy, texts: list[str], *own: str) -> Finding:
    sanitizer = Sanitizer(policy)
    return recovery(sanitizer, pieces_of(sanitizer, texts), Attacker(own, budget_s=20.0))


def all_rules(policy: Policy, rule: str) -> Policy:
    return policy.with_rules(dict.fromkeys((*KINDS, *SUBKINDS), rule))


def test_what_passes_is_read_and_what_is_hidden_is_not(policy: Policy) -> None:
    shown, hidden = (read(all_rules(policy, rule), TEXTS) for rule in ("pass", "placeholder"))
    assert (shown.value, shown.baseline) == (1.0, 1.0)
    assert (hidden.value, hidden.baseline) == (0.0, 0.0)
    assert shown.n == hidden.n == 20 * (5 + 9 + 8)
    assert read(policy, ["... !"]).status == "not run"


def test_rare_words_weigh_more(policy: Policy) -> None:
    """Eight pass words share a half of all tokens, twelve words the other half."""
    rarity = Rarity(policy)
    the, cat = math.log2(16), math.log2(24)
    assert rarity.weight("The") == pytest.approx(the)
    assert rarity.weight("cat") == rarity.weight("Kowalski") == pytest.approx(cat)
    assert rarity.weight("cat Kowalski") == pytest.approx(2 * cat)
    found = read(policy.with_rules({"word": "placeholder"}), ["the cat"])
    assert found.value == pytest.approx(the / (the + cat))


def test_the_strongest_attack_reads_what_is_hardly_drawn(policy: Policy) -> None:
    kept, lost = (read(policy.with_rules({"word": epsilon}), TEXTS) for epsilon in (40.0, 0.01))
    assert kept.value == pytest.approx(1.0)
    assert kept.baseline is not None
    assert lost.value is not None
    assert kept.baseline < lost.value < 0.8
    assert "drawn words by" in kept.note


def test_an_attacker_with_the_same_sort_of_text_reads_in_context(policy: Policy) -> None:
    own = [f"my {one} is {other}" for one in WORDS[:4] for other in WORDS[4:8]] * 8
    found = read(policy, TEXTS, *own)
    assert found.status == "run"
    assert "not run" not in found.note


def test_values_are_named_after_the_word_before(policy: Policy) -> None:
    sanitizer = Sanitizer(with_preset(policy, "entities"))
    own = ["the cat owes 40"] * 3 + ["the dog owes 40 and a cow has 7", "my dog has 7", "to Jane"]
    attacked = pieces_of(sanitizer, ["my cat owes 40 and has 7 to Zyxq"])
    values = Values.of(sanitizer, own, attacked)
    named = [piece.source for piece, hit in zip(attacked[0], values.named(attacked[0]), strict=True) if hit]
    assert named == ["40", "7"]
    assert not any(Values.of(sanitizer, [], attacked).named(attacked[0]))


def test_what_was_read_already_is_not_named(policy: Policy) -> None:
    sanitizer = Sanitizer(with_preset(policy, "entities"))
    text = "the cat has a cold and the dog owes 40 to my cow"
    attacked = pieces_of(sanitizer, [text])
    assert not any(Values.of(sanitizer, [text], attacked).named(attacked[0]))


def test_several_budgets_are_read_with_the_rule_known(policy: Policy) -> None:
    """Illnesses at next to nothing, other words at 40: these are all read, those by a coin."""
    rules = policy.with_rules({"word": 40.0, "health": 1e-3})
    case = sanitised_case(Sanitizer(rules), ["a flu and a rash and a cold and a cat"] * 100, ())
    mechanism, channel = case.knowledge.mechanism, case.target.channel
    assert isinstance(mechanism, ByRule)
    tags = {output // len(WORDS) for output in channel.columns}
    assert len(tags) == 2
    candidates = {frozenset(WORDS[i] for i in column.words_K) for column in channel.columns.values()}
    assert frozenset(HEALTH) in candidates
    assert all(words == frozenset(HEALTH) or not words & set(HEALTH) for words in candidates)
    attack = choose(ATTACKS, ["bayes"])[0].attack(case.target, case.knowledge, case.data, 1.0)
    assert attack.value is not None
    assert 0.5 + 0.5 * 0.3 < attack.value < 0.5 + 0.5 * 0.7


def test_every_attack_runs_on_several_budgets(policy: Policy) -> None:
    rules = policy.with_rules({"word": 3.0, "health": 1.0})
    own = own_sentences(rules, [f"my {one} is {other} and a flu" for one in WORDS for other in WORDS])
    case = sanitised_case(Sanitizer(rules), TEXTS, own, repeats=4)
    names = ("bayes", "inversion", "learned inversion", "averaging", "contextual")
    for attack in choose(ATTACKS, names):
        found = attack.attack(case.target, case.knowledge, case.data, 20.0)
        assert found.status == "run", found.reason
        assert found.value is not None
        assert 0 <= found.value <= 1


def test_the_mechanism_by_rule_is_that_of_its_parts(policy: Policy) -> None:
    rules = policy.with_rules({"word": 3.0, "health": 1.0})
    mechanism = by_rule(Sanitizer(rules))
    assert isinstance(mechanism, ByRule)
    flu, cat = WORDS.index("flu"), WORDS.index("cat")
    for word, epsilon in ((flu, 1.0), (cat, 3.0)):
        plain = build("rnm", policy.partition, epsilon)
        outputs, weights = mechanism.row(word)
        number = mechanism.number_V[word]
        expected, wanted = plain.row(word)
        assert (outputs - number * len(WORDS) == expected).all()
        assert (weights == wanted).all()
        assert int(weights.sum(dtype=object)) == 2**64
    drawn = mechanism.sample(np.array([flu, cat] * 200))
    assert set((drawn // len(WORDS)).tolist()) == {0, 1}
    uniform = np.full(len(WORDS), 1 / len(WORDS))
    assert mechanism.guarantee().epsilon == 3.0
    assert mechanism.exact_epsilon() <= 3.0
    best = mechanism.bayes(uniform)
    assert 1 / 4 < best.chance < best.success < 1


def test_one_budget_over_all_words_stays_the_mechanism_itself(policy: Policy) -> None:
    sanitizer = Sanitizer(policy)
    assert by_rule(sanitizer) is sanitizer.mechanism
    with pytest.raises(MisconfiguredError, match="no word is drawn"):
        by_rule(Sanitizer(with_preset(policy, "entities")))


def test_a_listed_word_in_no_group_is_no_word_of_the_attackers(policy: Policy) -> None:
    ((*_, gout),) = own_sentences(policy, ["the gout"])
    assert (gout.kind, gout.word) == ("placeholder", -1)
