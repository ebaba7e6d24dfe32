"""The sanitiser: nothing private survives, draws are independent, costs add up, placeholders come back."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from transom.privacy.channel import bayes
from transom.privacy.forms import PLACEHOLDER_LABELS
from transom.privacy.kinds import KINDS, SUBKINDS, base_of
from transom.privacy.mechanisms import build, partitioned
from transom.privacy.memo import PlaceMemo
from transom.privacy.partition import PartitionedMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, write_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitized, Sanitizer
from transom.privacy.techwords import TECHNICAL
from transom.privacy.text import CLOSED_FORMS, case_of, normalise, with_case

REPLACED = re.compile(rf"\[(?:{'|'.join(PLACEHOLDER_LABELS)})_[0-9]+(?:_[A-Z]+)?\]")
ALL_KINDS = KINDS | SUBKINDS
ANIMALS, COLOURS = {"cat", "dog", "cow", "horse"}, {"red", "blue", "green"}
PROMPT = (
    "The Red cat can't see Alice's DOG, and I paid $5 to a@b.de "
    "for the zyzzyva 😀 café [NAME_1]. My привет\nUS Horse"
)
FRAGMENTS = [
    "cat",
    "The",
    " ",
    "Ada",
    "[NAME_1]",
    "5",
    "_",
    "'s",
    "é",
    "\u200b",
    "[",
    "NAME",
    "1",
    "]",
    "CAT",
    "n't",
]
AROUND = [
    "5", "May", "two", ":", "at", "hundred", "past", "to",
    " ", ". ", " ", "'", "-", "\n", '"', "n't", "'s", "'t", "Ada", "5", "@", ".", "://", "The ", " of ",
    "Will ", "may ", " two ", "/", ": ", " - ", "(", "1) ", " 52 ", " CV ", "a", "ADA", ";",
]  # fmt: skip
ANY_TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=12).map("".join)


def sanitize(sanitizer: Sanitizer, text: str, **options: Any) -> Sanitized:
    return sanitizer.sanitize(text, placeholders=options.pop("placeholders", Placeholders()), **options)


@pytest.fixture(scope="module")
def sanitizer(tiny_policy: Policy) -> Sanitizer:
    return Sanitizer(tiny_policy)


@pytest.fixture(scope="module")
def replacer(tiny_policy: Policy) -> Sanitizer:
    return Sanitizer(tiny_policy.with_rules(dict.fromkeys(KINDS, "placeholder")))


def test_every_kind_is_treated_by_its_rule(sanitizer: Sanitizer) -> None:
    result = sanitize(sanitizer, PROMPT)
    treated = {piece.source: (piece.kind, piece.action) for piece in result.pieces if piece.kind in ALL_KINDS}
    assert treated == {
        "The": ("stop", "pass"), "Red": ("name", "placeholder"),
        "cat": ("word", "draw"), "ca": ("stop", "pass"),
        "n't": ("stop", "pass"), "see": ("rare", "placeholder"), "Alice": ("name", "placeholder"),
        "'s": ("stop", "pass"), "DOG": ("name", "placeholder"), "and": ("stop", "pass"), "I": ("stop",
        "pass"),
        "paid": ("rare", "placeholder"), "$5": ("money", "placeholder"), "to": ("rare", "placeholder"),
        "a@b.de": ("email", "placeholder"), "for": ("rare", "placeholder"), "the": ("stop", "pass"),
        "zyzzyva": ("rare", "placeholder"), "😀": ("symbol", "placeholder"),
        "café": ("foreign", "placeholder"),
        "[NAME_1]": ("identifier", "placeholder"), "My": ("stop", "pass"),
        "привет": ("foreign", "placeholder"),
        "US Horse": ("name", "placeholder"),
    }  # fmt: skip
    assert sum(result.counts.values()) == sum(piece.kind in ALL_KINDS for piece in result.pieces)
    assert set(map(base_of, result.counts)) == set(KINDS)


def test_no_private_value_is_in_the_text(sanitizer: Sanitizer) -> None:
    for _ in range(20):
        text = sanitize(sanitizer, PROMPT).text
        for secret in (
            "Red",
            "see",
            "Alice",
            "paid",
            "5 ",
            "a@b",
            "zyzzyva",
            "😀",
            "caf",
            "привет",
            "US",
            "Horse",
        ):
            assert secret not in text


@given(ANY_TEXT)
def test_output_is_made_of_listed_pieces_only(sanitizer: Sanitizer, text: str) -> None:
    policy = sanitizer.policy
    result = sanitize(sanitizer, text)
    for piece in result.pieces:
        if piece.action == "pass":
            assert piece.kind in ("space", "punct", "stop")
        elif piece.action == "draw":
            assert piece.output.lower() in policy.word_ids
        else:
            assert REPLACED.fullmatch(piece.output)
    assert result.text == "".join(piece.output for piece in result.pieces)


@given(ANY_TEXT)
def test_replacing_everything_is_undone_exactly(replacer: Sanitizer, text: str) -> None:
    placeholders = Placeholders()
    result = sanitize(replacer, text, placeholders=placeholders)
    assert result.epsilon == 0
    assert not any(character.isalnum() for character in REPLACED.sub("", result.text))
    assert placeholders.restore(result.text) == normalise(text)


@pytest.mark.parametrize("preset", PRESETS)
@given(st.data())
def test_exchanging_a_drawn_word_within_its_group_changes_nothing_else(
    tricky_of: Mapping[str, Sanitizer], preset: str, data: st.DataObject
) -> None:
    """Adjacency holds: neighbours of a drawn word are read the same whichever word of the group it is."""
    tricky = tricky_of[preset]
    every = [*tricky.policy.words, *sorted(CLOSED_FORMS)]
    words = [with_case(word, case) for word in every for case in ("lower", "title", "upper")]
    fragment = st.sampled_from([*words, *AROUND])
    text = "".join(data.draw(st.lists(fragment, max_size=12)))
    pieces = sanitize(tricky, text).pieces
    for index, piece in enumerate(pieces):
        if piece.source_id >= 0:
            kind_of, case = tricky.policy.kind_of, case_of(piece.source)
            group = [word for word in group_of(tricky.policy, piece.source_id) if kind_of[word] == piece.kind]
            drawn = [
                with_case(word, case) for word in group if not public(tricky.policy, with_case(word, case))
            ]
            sources = [p.source for p in pieces]
            sources[index] = data.draw(st.sampled_from(drawn))
            again = sanitize(tricky, "".join(sources)).pieces
            before = [(p.kind, p.action, p.source) for i, p in enumerate(pieces) if i != index]
            after = [(p.kind, p.action, p.source) for i, p in enumerate(again) if i != index]
            assert after == before
            assert (again[index].kind, again[index].action) == (piece.kind, piece.action)


def public(policy: Policy, word: str) -> bool:
    """Whether a spelling is one of software, which passes and is not drawn: a public rule of the spelling."""
    return policy.words_pass and word in TECHNICAL


def group_of(policy: Policy, word_id: int) -> list[str]:
    """The words of a word's group."""
    group = int(policy.partition.group_V[word_id])
    start, end = policy.partition.starts_G1[group : group + 2]
    return list(policy.words[start:end])


@pytest.fixture(scope="module")
def tricky_of(tmp_path_factory: pytest.TempPathFactory, tiny_arguments: Any) -> Mapping[str, Sanitizer]:
    """Groups of ordinary words, some of which stand in numbers, addresses and contractions; by preset."""
    words = ("doctor", "nurse", "com", "http", "cat", "dollar", "pm", "km", "ish", "ph", "x" * 40, "ain")
    words += ("third", "cv", "über", "uncharacteristically", "street", "iv", "quid", "half", "past", "dot")
    words += ("ad", "be", "fade", "rose")
    groups = [words[start : start + 6] for start in range(0, len(words) - 2, 6)]
    groups[-1] += words[sum(map(len, groups)) :]
    sizes = np.array([0, *map(len, groups)])
    changes = {
        "words": words,
        "starts_G1": sizes.cumsum().astype(np.int32),
        "scores_S": np.full(int((sizes**2).sum()), 9, np.uint8),
        "prior_V": np.arange(len(words), 0, -1).astype(np.float32),
        "pass_words": ("the", "can", "of"),
    }
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("transom.privacy.policy.COMMON_WORDS", 2)
        path = tmp_path_factory.mktemp("policy") / "tricky.safetensors"
        policy = write_policy(path, **tiny_arguments(**changes))
        made = {preset: Sanitizer(with_preset(policy, preset)) for preset in PRESETS}
        assert {preset for preset in PRESETS if made[preset].policy.kind_of["cat"] == "uncommon"} == {
            *PRESETS
        }
    return made


def test_replacing_everything_promises_epsilon_zero(replacer: Sanitizer) -> None:
    result = sanitize(replacer, PROMPT)
    assert replacer.mechanism is None
    assert replacer.guarantee().epsilon == replacer.guarantee(result).epsilon == replacer.word_epsilon == 0
    assert replacer.bayes_guess(result).words == 0


def test_users_own_placeholder_text_never_passes(tiny_policy: Policy) -> None:
    lenient = Sanitizer(tiny_policy.with_rules({"identifier": "pass"}))
    placeholders = Placeholders()
    result = sanitize(lenient, "it is [NAME_1] B2B and Ada", placeholders=placeholders)
    assert result.text == "it is [ID_1] B2B and [NAME_1]"
    assert placeholders.restore(result.text) == "it is [NAME_1] B2B and Ada"
    assert any("identifier" in item for item in lenient.guarantee().discloses)


def test_draws_stay_in_the_group_and_keep_case(sanitizer: Sanitizer) -> None:
    for _ in range(30):
        animal, colour, shout, _ = sanitize(sanitizer, "cat red\nDOG CAT").text.split()
        assert animal in ANIMALS
        assert colour in COLOURS
        assert shout.isupper()
        assert shout.lower() in ANIMALS


def test_one_line_in_capitals_is_read_as_words(sanitizer: Sanitizer) -> None:
    counts = sanitize(sanitizer, "THE CAT IS RED ZYZZYVA").counts
    assert counts == {"stop": 2, "word": 2, "rare": 1}


def test_cost_is_the_sum_of_the_draws(sanitizer: Sanitizer) -> None:
    result = sanitize(sanitizer, "the cat is red and cat")
    assert result.epsilon == result.drawn * 1.0 == 3.0
    assert sanitizer.guarantee(result).epsilon == 3.0
    assert sanitizer.guarantee().epsilon == 1.0
    assert sanitize(sanitizer, "the and").epsilon == 0


def test_epsilon_and_mechanism_can_be_chosen(tiny_policy: Policy) -> None:
    chosen = Sanitizer(tiny_policy, mechanism="krr", epsilon=2.5)
    assert sanitize(chosen, "cat dog").epsilon == 5.0
    assert chosen.mechanism is not None
    assert chosen.mechanism.name == "krr"
    assert sanitize(Sanitizer(tiny_policy, mechanism="random-in-group"), "cat dog").epsilon == 0
    other = partitioned("em", tiny_policy.partition, 0.5)
    assert sanitize(Sanitizer(tiny_policy, mechanism=other), "cat").epsilon == 0.5


def test_a_metric_promise_has_no_price_a_ledger_could_add_up(tiny_policy: Policy) -> None:
    vectors_VE = np.random.default_rng(0).normal(size=(len(tiny_policy.words), 4))
    metric = Sanitizer(tiny_policy, mechanism=build("tem", vectors_VE, 2.0, gamma=1.0))
    result = sanitize(metric, "cat dog")
    assert set(result.text.split()) <= set(tiny_policy.words)
    assert result.epsilon == metric.guarantee(result).epsilon == math.inf
    assert metric.guarantee().kind == "metric-dp"
    attack = metric.mechanism.bayes(tiny_policy.prior_V.astype(np.float64)) if metric.mechanism else None
    assert attack is not None
    assert metric.bayes_guess(result).success == pytest.approx(attack.success)
    assert sanitize(metric, "the").epsilon == 0


def test_draws_follow_the_table(sanitizer: Sanitizer) -> None:
    texts = sanitizer.sanitize_batch(["cat"] * 20_000).texts
    assert isinstance(sanitizer.mechanism, PartitionedMechanism)
    expected = sanitizer.mechanism.channel(0).p_XY[0] * len(texts)
    observed = [texts.count(word) for word in sanitizer.policy.words[:4]]
    assert chisquare(observed, expected).pvalue > 1e-6


def test_equal_words_are_drawn_independently(sanitizer: Sanitizer) -> None:
    """A draw shared by equal words would make `cat cat` agree always and `cat dog` not."""
    memo = PlaceMemo()
    pairs: Counter[tuple[str, ...]] = Counter()
    for message in range(3000):
        result = sanitize(sanitizer, "cat cat", memo=memo, session="s", place=message)
        memo.keep(result.pending)
        pairs[tuple(result.text.split())] += 1
    assert any(first != second for first, second in pairs)
    words = sorted(ANIMALS)
    table = np.array([[pairs[first, second] for second in words] for first in words])
    assert chi2_contingency(table).pvalue > 1e-6


def test_resent_message_is_repeated_at_no_cost(sanitizer: Sanitizer) -> None:
    memo = PlaceMemo()
    text = " ".join(["cat", "Horse", "red"] * 10)
    first = sanitize(sanitizer, text, memo=memo, session="s", place=2)
    assert first.pending is not None
    assert first.epsilon == len(first.pending.places) == 20 + 0
    memo.keep(first.pending)
    again = sanitize(sanitizer, text, memo=memo, session="s", place=2)
    assert (again.text, again.epsilon, again.pending) == (first.text, 0.0, first.pending)
    assert {piece.action for piece in again.pieces if piece.kind == "word"} == {"memo"}


def test_uncharged_draw_is_not_released_free_later(sanitizer: Sanitizer) -> None:
    memo = PlaceMemo()
    assert sanitize(sanitizer, "cat", memo=memo, session="s").epsilon == 1.0
    assert sanitize(sanitizer, "cat", memo=memo, session="s").epsilon == 1.0


def test_only_the_edited_place_is_charged_also_on_return(sanitizer: Sanitizer) -> None:
    memo = PlaceMemo()

    def send(text: str, **where: Any) -> float:
        result = sanitize(sanitizer, text, memo=memo, **{"session": "s", "place": 0, **where})
        memo.keep(result.pending)
        return result.epsilon

    assert send("cat red cow") == 3.0
    assert send("cat blue cow") == 1.0
    assert send("cat red cow") == 1.0
    assert send("cat red cow dog") == 1.0
    assert send("cat red cow dog", session="t") == 4.0
    assert send("cat red cow dog", place=1) == 4.0
    assert send("cat red cow dog", session=None) == 4.0


def test_batch_equals_single_texts_in_kinds_and_cost(sanitizer: Sanitizer) -> None:
    texts = [PROMPT, "", "Ada and Ada and Bob", "the", "cat dog"]
    batch = sanitizer.sanitize_batch(texts)
    singles = [sanitize(sanitizer, text) for text in texts]
    assert batch.draws == tuple(single.drawn for single in singles)
    assert batch.epsilon == sum(single.epsilon for single in singles)
    assert Counter(batch.counts) == sum((Counter(single.counts) for single in singles), Counter())
    assert batch.texts[2] == "[NAME_1] and [NAME_1] and [NAME_2]"
    assert [len(text.split()) for text in batch.texts] == [22, 0, 5, 1, 2]  # `US Horse` is one name
    assert sanitizer.sanitize_batch([]).texts == ()


def test_bayes_guess_is_the_tables_own_attacker(sanitizer: Sanitizer) -> None:
    assert isinstance(sanitizer.mechanism, PartitionedMechanism)
    prior_K = sanitizer.policy.prior_V[:4].astype(np.float64)
    attack = bayes(sanitizer.mechanism.channel(0), prior_K / prior_K.sum())
    result = sanitize(sanitizer, "cat dog cow horse the Ada")
    guess = sanitizer.bayes_guess(result)
    words = sanitizer.policy.words
    assert guess.words == 4
    assert [pair[0] for pair in guess.guesses] == result.text.split()[:4]
    assert [pair[1] for pair in guess.guesses] == [
        words[attack.guess_Y[words.index(r)]] for r, _ in guess.guesses
    ]
    assert guess.recovered == sum(
        pair[1] == word for pair, word in zip(guess.guesses, ("cat", "dog", "cow", "horse"), strict=True)
    )
    assert guess.chance == pytest.approx(attack.chance)


def test_expected_success_matches_what_the_attacker_recovers(sanitizer: Sanitizer) -> None:
    generator = np.random.default_rng(0)
    prior_K = sanitizer.policy.prior_V[:4].astype(np.float64)
    truth = generator.choice(sanitizer.policy.words[:4], size=4000, p=prior_K / prior_K.sum())
    guess = sanitizer.bayes_guess(sanitize(sanitizer, " ".join(truth)))
    error = 5 * (guess.success * (1 - guess.success) / guess.words) ** 0.5
    assert abs(guess.recovered / guess.words - guess.success) < error
    assert guess.success > guess.chance - error


def test_reprs_hold_no_private_word(sanitizer: Sanitizer) -> None:
    result = sanitize(sanitizer, "Zebedee paid 99 to zyzzyva", memo=PlaceMemo(), session="s")
    shown = repr(result) + repr(result.pieces)
    for secret in ("Zebedee", "zyzzyva", "99"):
        assert secret not in shown


def test_guarantee_states_unit_adjacency_and_disclosures(sanitizer: Sanitizer) -> None:
    promise = sanitizer.guarantee()
    disclosed = " ".join(promise.discloses)
    assert promise.kind == "pure-dp"
    assert "group" in promise.adjacency
    for item in ("group", "case", "punctuation", "placeholder", "edited", "number of words"):
        assert item in disclosed
    assert promise.to_dict()["epsilon"] == 1.0
