"""A mechanism of a user's own: read exactly, learned where it is a function, or refused."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from transom import WordMechanism, audit_mechanism
from transom.audit import own
from transom.audit.attacks.words import read_channel
from transom.audit.own import WordFunction, own_mechanism
from transom.cli.main import app
from transom.errors import MisconfiguredError, NotYetError
from transom.privacy.kinds import KINDS
from transom.privacy.mechanisms import build
from transom.privacy.policy import Policy, load_policy, write_policy
from transom.report.finding import Finding, share

WORDS = ("cat", "dog", "cow", "horse", "red", "blue", "green", "grey")
AUDIT_PAGE = (Path(__file__).parents[2] / "docs/audit.md").read_text()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("policy") / "tiny.safetensors"
    write_policy(
        made,
        words=WORDS,
        starts_G1=np.array([0, 4, 8], dtype=np.int32),
        scores_S=np.tile((255 - 60 * np.abs(np.subtract.outer(range(4), range(4)))).ravel(), 2).astype("u1"),
        prior_V=np.array([0.3, 0.1, 0.05, 0.05, 0.2, 0.1, 0.1, 0.1], dtype=np.float32),
        pass_words=("the", "is"),
        kinds={**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 2.0},
        name="tiny",
        language="en",
        mechanism="krr",
        licence_notices=["made up"],
        sources=["nowhere"],
    )
    return made


@pytest.fixture(scope="module")
def policy(path) -> Policy:
    return load_policy(path)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [f"the {WORDS[rng.integers(4)]} is {WORDS[4 + rng.integers(4)]}" for _ in range(300)]


@dataclass
class Wrapped:
    """Another mechanism's integers, of a type that nobody knows."""

    inner: WordMechanism
    turned: bool = False

    def sample(self, ids):
        return self.inner.sample(ids)

    def row(self, word):
        outputs, weights = self.inner.row(word)
        return (outputs[::-1], weights[::-1]) if self.turned else (outputs, weights)

    def guarantee(self):
        return self.inner.guarantee()


def keep(word: str) -> str:
    return word


def anything(_: str) -> str:
    return random.choice(WORDS)


def noisy(word: str) -> str:
    """Each word stays in three of four cases."""
    return word if random.random() < 0.75 else random.choice([one for one in WORDS if one != word])


@pytest.mark.parametrize("name", ["krr", "rnm", "random-in-group"])
@pytest.mark.parametrize("turned", [False, True])
def test_rows_say_what_a_known_type_says(policy, name, turned):
    """The oracle is the group's own table, read the other way."""
    known = build(name, policy.partition, 2.0)
    one, other = (
        read_channel(WORDS, mechanism, range(len(WORDS)), policy.prior_V.astype(float))
        for mechanism in (known, Wrapped(known, turned))
    )
    assert other.optimum == pytest.approx(one.optimum)
    for output in range(len(WORDS)):
        seen = [
            dict(zip(*map(np.ndarray.tolist, side.likelihood(output)), strict=True)) for side in (one, other)
        ]
        assert seen[1] == pytest.approx(seen[0])


def test_an_object_is_attacked_as_a_built_in_one_is(policy, texts):
    """Optimum and what is read; the chance of one without groups is that of the whole vocabulary."""
    known = build("krr", policy.partition, 2.0)
    found = [
        audit_mechanism(mechanism, ["bayes"], texts * 4, policy=policy).findings[0]
        for mechanism in ("krr", Wrapped(known))
    ]
    assert found[0].note.split(";")[0] == found[1].note.split(";")[0]
    assert found[1].value == pytest.approx(found[0].value, abs=0.06)  # four standard errors of 2,400 words


def test_a_function_that_hides_nothing_is_read(policy, texts):
    report = audit_mechanism(keep, ["bayes", "inversion"], texts, policy=policy, gate=0.5)
    assert [(found.name, found.value) for found in report.findings] == [("bayes", 1.0), ("inversion", 1.0)]
    assert report.passed is False
    assert report.target["mechanism"] == "keep"


def test_a_function_that_says_nothing_leaves_chance(policy, texts):
    report = audit_mechanism(anything, ["bayes"], texts, policy=policy)
    (found,) = report.findings
    assert found.value <= found.baseline + 4 * np.sqrt(0.25 / found.n)
    assert not found.low > found.baseline


def test_what_is_learned_of_a_function_is_its_law(policy):
    mechanism = own_mechanism(noisy, policy)
    outputs, weights = mechanism.row(2)
    shares = dict(zip(outputs.tolist(), (weights / 2.0**64).tolist(), strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[2] == pytest.approx(0.75, abs=0.2)  # of 100 draws; over four standard errors
    assert mechanism.guarantee().kind == "empirical"
    assert mechanism.exact_epsilon() == float("inf")
    with pytest.raises(NotYetError, match="function"):
        mechanism.bayes(policy.prior_V)


def test_a_slow_function_is_asked_less_and_about_the_likeliest_words(policy, monkeypatch):
    clock = iter([0.0, 20.0])  # a second a call
    monkeypatch.setattr(own.time, "monotonic", lambda: next(clock))
    mechanism = own_mechanism(noisy, policy)
    assert isinstance(mechanism, WordFunction)
    assert (mechanism.draws, mechanism.asked) == (10, frozenset({0, 4, 1, 5, 6, 7}))
    assert len(mechanism.row(2)[0]) == 0
    channel = read_channel(WORDS, mechanism, [2], policy.prior_V.astype(float))
    assert set(channel.likelihood(2)[0].tolist()) <= set(range(8))


def test_an_output_that_no_row_has_says_nothing(policy):
    mechanism = WordFunction("keep", keep, WORDS, policy.word_ids, asked=frozenset({0}))
    words_K, likelihood_K = read_channel(WORDS, mechanism, [3], policy.prior_V.astype(float)).likelihood(3)
    assert words_K.tolist() == np.argsort(-policy.prior_V, kind="stable").tolist()
    assert set(likelihood_K) == {1.0}


class Broken(Wrapped):
    def __init__(self, outputs, weights):
        self.parts = np.array(outputs), np.array(weights, dtype=np.uint64)

    def row(self, _word):
        return self.parts


@pytest.mark.parametrize(
    ("outputs", "weights"), [([8], [2**64 - 1]), ([-1], [2**64 - 1]), ([0, 1], [2**62, 2**62]), ([0], [0])]
)
def test_rows_that_are_no_distribution_are_refused(outputs, weights):
    with pytest.raises(MisconfiguredError, match="a row of the mechanism"):
        read_channel(WORDS, Broken(outputs, weights), [0], np.ones(8))


def test_only_a_built_in_mechanism_takes_an_epsilon(policy, texts):
    def read(mechanism, **settings):
        return audit_mechanism(mechanism, ["bayes"], texts, policy=policy, **settings).findings[0].value

    assert read("krr", epsilon=0.01) < 0.6 < 0.95 < read("krr", epsilon=20.0)
    with pytest.raises(MisconfiguredError, match="its own epsilon"):
        read(keep, epsilon=1.0)
    with pytest.raises(MisconfiguredError, match="nope"):
        read("nope")


def raises(word: str) -> str:
    raise ValueError(f"secret {word}")


@pytest.mark.parametrize(
    ("mechanism", "message"),
    [
        (raises, "raised ValueError"),
        (lambda _: "zebra", "a word that it does not draw"),
        (lambda _: 7, "returned a int"),
        (Wrapped, "is a class"),
        (3, "neither a function"),
        ("no_such_module:f", "cannot be imported"),
    ],
)
def test_what_is_no_mechanism_is_refused_without_the_word(policy, texts, mechanism, message):
    with pytest.raises(MisconfiguredError, match=message) as caught:
        audit_mechanism(mechanism, ["bayes"], texts, policy=policy)
    assert not any(word in str(caught.value) for word in (*WORDS, "zebra", "secret"))


class Mine:
    NAME, METRIC = "mine", "token recovery"

    def attack(self, target, knowledge, data, budget_s) -> Finding:
        return share(self.NAME, self.METRIC, hits=1, n=2, baseline=0.5)


def test_attacks_are_names_objects_or_all(policy, texts):
    def names(*attacks):
        report = audit_mechanism(keep, attacks, texts[:20], policy=policy)
        return [found.name for found in report.findings]

    assert names(Mine(), "inversion") == ["inversion", "mine"]
    assert names(Mine()) == ["mine"]
    assert names() == [
        "bayes", "inversion", "learned inversion", "averaging", "contextual", "language model"
    ]  # fmt: skip
    with pytest.raises(MisconfiguredError, match="needs all three"):
        names(3)


MODULE = """
import random

def keep(word):
    print("much", word)
    return word.upper()
"""


@pytest.fixture
def here(tmp_path, monkeypatch, texts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    Path("my_own.py").write_text(MODULE)
    Path("notes.txt").write_text("\n".join(texts[:50]))
    return tmp_path


def command(*arguments):
    return CliRunner().invoke(app, ["audit", "words", "notes.txt", *map(str, arguments), "--json"])


def test_the_command_takes_one_by_its_place(here, path):
    done = command("--policy", path, "--mechanism", "my_own:keep", "--attack", "bayes", "--gate", 0.5)
    assert done.exit_code == 20
    report = json.loads(done.stdout)  # what it printed went elsewhere
    assert report["target"]["mechanism"] == "my_own:keep"
    assert [(one["value"], one["setting"]) for one in report["findings"]] == [(1.0, "epsilon of its own")]


def test_the_command_gives_it_no_epsilon(here, path):
    done = command("--policy", path, "--mechanism", "my_own:keep", "--epsilon", 2)
    assert isinstance(done.exception, MisconfiguredError)
    assert "its own epsilon" in str(done.exception)


def test_the_page_s_own_example_runs(tmp_path, monkeypatch):
    """`docs/audit.md`: its mechanism, and the lines that audit it."""
    blocks = re.findall(r"```python\n(.+?)```", AUDIT_PAGE, re.DOTALL)
    (module,) = (block for block in blocks if block.startswith('"""my_words.py"""'))
    (script,) = (block for block in blocks if "audit_mechanism" in block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("my_words.py").write_text(module)
    ran: dict[str, object] = {}
    exec(script, ran)  # noqa: S102
    assert "of the replaced words can be read back" in ran["report"].verdict
    assert Path("report.html").read_text().startswith("<!doctype html>")
    monkeypatch.delitem(sys.modules, "my_words")
