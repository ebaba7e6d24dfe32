"""Presets, kinds with rules of their own, budgets by kind, and spans: each against what it promises."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import MisconfiguredError, PolicyError
from transom.privacy.kinds import FIELDS, KINDS, SUBKINDS, Span, about, base_of, rule_of
from transom.privacy.mechanisms import build
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, load_policy, write_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.reader import Reader
from transom.privacy.sanitize import Sanitizer

SHIPPED = with_preset(load_policy(), "entities")
COMMON, RARE = ("cat", "dog", "cow", "flu"), ("emu", "yak", "gnu", "rash")
LISTED = {
    "flu": "health",
    "rash": "health",
    "jane": "person",
    "leith": "place",
    "write": "instruction",
    "rose": "namesake",
    "quokka": "dictionary",
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    groups = (COMMON + RARE, ("write", "rose", "sing"))
    words = [word for group in groups for word in group]
    return write_policy(
        tmp_path_factory.mktemp("policy") / "p.safetensors",
        words=words,
        starts_G1=np.cumsum([0, *map(len, groups)]).astype(np.int32),
        scores_S=np.concatenate([np.eye(len(group), dtype=np.uint8).ravel() * 255 for group in groups]),
        prior_V=np.array([9 if word in COMMON else 1 for word in words], np.float32),
        pass_words=["the", "a", "of"],
        kinds={**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 1.0, "instruction": "pass"},
        name="tiny",
        language="en",
        mechanism="krr",
        listed=LISTED,
    )


@pytest.fixture(autouse=True)
def _few_common_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transom.privacy.policy.COMMON_WORDS", 4)


def treated(policy: Policy, text: str, **options: Any) -> list[tuple[str, str, str]]:
    pieces = Sanitizer(policy).sanitize(text, placeholders=Placeholders(), **options).pieces
    return [
        (piece.source, piece.kind, piece.action) for piece in pieces if piece.kind not in ("space", "punct")
    ]


TEXT = "write the cat, emu, flu, quokka, zyzzyva of Jane leith 7 rose"


@pytest.mark.parametrize(
    ("preset", "actions"),
    [
        ("entities", "pass pass pass pass pass pass hide pass hide hide hide pass"),
        ("sensitive", "pass pass pass draw hide hide hide pass hide hide hide draw"),
        ("words", "pass pass draw draw draw hide hide pass hide hide hide draw"),
    ],
)
def test_what_each_preset_does(policy: Policy, preset: str, actions: str) -> None:
    found = [action for _, _, action in treated(with_preset(policy, preset), TEXT)]
    assert found == actions.replace("hide", "placeholder").split()


def test_kinds_are_those_of_the_lists(policy: Policy) -> None:
    kinds = {source: kind for source, kind, _ in treated(policy, TEXT)}
    assert kinds == {
        "write": "instruction", "the": "stop", "cat": "word", "emu": "uncommon", "flu": "health",
        "quokka": "dictionary", "zyzzyva": "rare", "of": "stop", "Jane": "person", "leith": "place",
        "7": "number", "rose": "uncommon",
    }  # fmt: skip


def test_a_sub_kind_follows_its_base_or_its_own_rule(policy: Policy) -> None:
    rules = {"number": "pass", "date": "placeholder", "name": "placeholder", **policy.rules}
    for kind, (base, _) in SUBKINDS.items():
        assert rule_of(policy.rules, kind) == policy.rules.get(kind, policy.rules[base])
        assert about(kind)
        assert base_of(kind) == base
        assert base in KINDS
    assert rule_of({**rules, "number": "pass"}, "date") == "placeholder"
    assert rule_of({**rules, "number": "pass"}, "phone") == "pass"
    assert rule_of(policy.rules, "public") == "pass"


@pytest.mark.parametrize("kind", [kind for kind in (*KINDS, *SUBKINDS) if base_of(kind) != "word"])
def test_only_words_have_an_epsilon(policy: Policy, kind: str) -> None:
    with pytest.raises(PolicyError, match="cannot have an epsilon"):
        policy.with_rules({kind: 1.0})


def test_each_kind_is_charged_by_its_own_budget(policy: Policy) -> None:
    chosen = policy.with_rules({"word": 2.0, "uncommon": 3.0, "health": 0.5})
    sanitizer = Sanitizer(chosen)
    for text, draws, cost in [
        ("cat dog", 2, 4.0),
        ("emu", 1, 3.0),
        ("flu rash cat emu", 4, 6.0),
        ("the", 0, 0.0),
    ]:
        done = sanitizer.sanitize(text, placeholders=Placeholders())
        assert done.drawn == draws
        assert done.epsilon == pytest.approx(cost)
    batch = sanitizer.sanitize_batch(["cat", "emu flu", "write"])
    assert (batch.draws, batch.epsilons) == ((1, 2, 0), (2.0, 3.5, 0.0))
    assert batch.epsilon == 5.5
    assert sanitizer.word_epsilon == 3.0


def test_each_kind_is_drawn_from_its_own_table(policy: Policy) -> None:
    """A kind with a tiny budget is all but uniform over its group, one with a large budget keeps its word."""
    sanitizer = Sanitizer(policy.with_rules({"word": 12.0, "uncommon": 1e-3}))
    done = sanitizer.sanitize("cat emu " * 4000, placeholders=Placeholders())
    counts = {
        source: Counter(p.output for p in done.pieces if p.source == source) for source in ("cat", "emu")
    }
    assert counts["cat"]["cat"] > 3900
    assert set(counts["emu"]) == {*COMMON, *RARE}
    assert max(abs(count / 500 - 1) for count in counts["emu"].values()) < 0.35


def test_the_attacker_knows_which_words_a_rule_draws(policy: Policy) -> None:
    """Of a word drawn as uncommon the best guess is an uncommon word, however frequent the others are."""
    sanitizer = Sanitizer(policy.with_rules({"word": "pass", "uncommon": 1e-3, "health": "placeholder"}))
    done = sanitizer.sanitize("emu yak gnu", placeholders=Placeholders())
    guess = sanitizer.bayes_guess(done)
    assert {guessed for _, guessed in guess.guesses} <= {"emu", "yak", "gnu"}
    assert guess.success == pytest.approx(1 / 3, rel=0.01)
    assert guess.chance == pytest.approx(1 / 3, rel=0.01)


def test_the_guarantee_names_what_passes(policy: Policy) -> None:
    told = {preset: Sanitizer(with_preset(policy, preset)).guarantee() for preset in PRESETS}
    assert told["entities"].epsilon == 0
    assert told["words"].epsilon == pytest.approx(1.0)
    assert "every token of kind word, unchanged: the policy lets it pass" in told["entities"].discloses
    assert "every token of kind health, unchanged: the policy lets it pass" in told["entities"].discloses
    assert not any("every health" in line for line in told["sensitive"].discloses)
    assert "every token of kind instruction, unchanged: the policy lets it pass" in told["words"].discloses
    assert "same rule" in told["sensitive"].adjacency


@pytest.mark.parametrize("epsilon", [31.0, 40.0])
@pytest.mark.parametrize("mechanism", ["rnm", "krr", "em"])
def test_epsilons_above_thirty_are_exact_too(policy: Policy, mechanism: str, epsilon: float) -> None:
    exact = build(mechanism, policy.partition, epsilon).exact_epsilon()
    assert exact <= epsilon
    assert math.isfinite(exact)
    done = Sanitizer(policy, mechanism, epsilon).sanitize("cat", placeholders=Placeholders())
    assert done.epsilon == pytest.approx(epsilon)


def test_epsilon_goes_to_the_kinds_that_are_drawn(policy: Policy) -> None:
    sanitizer = Sanitizer(with_preset(policy, "sensitive"), epsilon=0.5)
    assert sanitizer.policy.rules["word"] == "pass"
    assert sanitizer.policy.rules["uncommon"] == 0.5


def test_unknown_presets_and_rules_are_refused(policy: Policy) -> None:
    with pytest.raises(PolicyError, match="did you mean 'entities'"):
        with_preset(policy, "entity")
    with pytest.raises(PolicyError, match="did you mean 'health'"):
        policy.with_rules({"heatlh": "pass"})


@settings(deadline=None)  # the first example makes the tables of the shipped policy
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 12), st.sampled_from(["public", "person", "health"]))
    )
)
def test_spans_are_taken_as_they_are_or_refused(cuts: list[tuple[int, int, str]]) -> None:
    policy = SHIPPED
    text = "the \ue000 Ada, 12😀 May: x.org/ the cat and Bob \ue000 see."
    spans = [Span(start, start + length, kind) for start, length, kind in cuts]
    apart = all(a.end <= b.start for a, b in zip(sorted(spans), sorted(spans)[1:], strict=False))
    if not apart or any(span.end > len(text) for span in spans):
        with pytest.raises(MisconfiguredError, match="spans overlap"):
            Sanitizer(policy).sanitize(text, placeholders=Placeholders(), spans=spans)
        return
    done = Sanitizer(policy).sanitize(text, placeholders=Placeholders(), spans=spans)
    claimed = Counter((text[span.start : span.end], span.kind) for span in spans if span.start < span.end)
    found = Counter((piece.source, piece.kind) for piece in done.pieces)
    assert all(found[one] >= count for one, count in claimed.items())
    public = [piece for piece in done.pieces if piece.kind == "public"]
    assert all(piece.output == piece.source for piece in public)


def test_an_unknown_kind_of_span_is_refused(policy: Policy) -> None:
    with pytest.raises(MisconfiguredError, match="unknown kind 'secret'"):
        treated(policy, "the cat", spans=[Span(0, 3, "secret")])


def test_fields_are_kinds_of_words() -> None:
    assert all(base_of(field) == "word" for field in FIELDS)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"cat": "person"}, "1 drawn words are listed as names"),
        ({"the": "place"}, "1 listed words pass"),
        ({"New York": "place"}, "no single words"),
        ({"may": "namesake"}, "are closed"),
        ({"jane": "people"}, "unknown list 'people'"),
    ],
)
def test_lists_that_contradict_the_policy_are_not_written(
    policy: Policy, tmp_path: Path, listed: dict[str, str], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        write_policy(
            tmp_path / "p",
            words=["cat", "dog"],
            starts_G1=np.array([0, 2], np.int32),
            scores_S=np.array([255, 0, 0, 255], np.uint8),
            prior_V=np.ones(2, np.float32),
            pass_words=["the"],
            kinds=policy.rules,
            name="p",
            language="en",
            mechanism="rnm",
            listed=listed,
        )
    assert list(tmp_path.iterdir()) == []


_READ: dict[str, Reader] = {}
_STRETCHES = st.sampled_from([
    "Rose Miller", "mark said", "Mark", "by April Weaver", "May", "the", "The", "I", "DON'T", "ca n't",
    "a@b.org",
    "[NAME_1]", "5 May 1995", "17", "ten", "page 3", "1. a", "Status: Open", "P.S.", "zyzzyva", "Zyzzyva",
    "Bank of Leith", "12 High Street", "Dear", "regards", "asthma",
    "¿", "¶", "’", "é", ", ", ". ", '"', "(", "—",
    "\n", "\n\n", "  ", "WINTER", "The Effect of Rain",
])  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.lists(_STRETCHES, max_size=12).map(" ".join), min_size=1, max_size=3))
@pytest.mark.parametrize("preset", PRESETS)
def test_what_was_read_before_changes_no_reading(preset: str, texts: list[str]) -> None:
    known = _READ.setdefault(preset, Reader(with_preset(SHIPPED, preset)))
    fresh = Reader(known._policy)
    assert [known.read(text) for text in texts] == [fresh.read(text) for text in reversed(texts)][::-1]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(_STRETCHES, max_size=12).map(" ".join), min_size=1, max_size=3))
def test_a_batch_is_its_texts_one_by_one(texts: list[str]) -> None:
    sanitizer = Sanitizer(SHIPPED)
    batch = sanitizer.sanitize_batch(texts)
    single = [sanitizer.sanitize(text, placeholders=Placeholders()) for text in texts]
    assert batch.texts == tuple(one.text for one in single)
    assert batch.counts == dict(sum((Counter(one.counts) for one in single), Counter()))
    assert batch.replaced == dict(sum((Counter(one.replaced) for one in single), Counter()))
