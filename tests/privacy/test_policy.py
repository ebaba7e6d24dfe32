"""A policy file is read back as written, and refused whole with every problem named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from transom.errors import MisconfiguredError, PolicyError
from transom.privacy import policy as policy_module
from transom.privacy.policy import (
    KINDS,
    Policy,
    load_overlay,
    load_policy,
    parse_rule,
    write_policy,
)
from transom.privacy.text import CLOSED_FORMS

Arguments = Callable[..., dict[str, Any]]


def test_round_trip(tmp_path: Path, tiny_arguments: Arguments) -> None:
    arguments = tiny_arguments()
    written = write_policy(tmp_path / "p", **arguments)
    read = load_policy(tmp_path / "p", expected_sha256=written.sha256.upper())
    assert read.words == arguments["words"]
    assert read.pass_words == set(arguments["pass_words"])
    assert dict(read.rules) == arguments["kinds"]
    assert (read.epsilon, read.mechanism, read.pass_share) == (1.0, "rnm", 0.4)
    assert np.array_equal(read.partition.starts_G1, arguments["starts_G1"])
    assert np.array_equal(read.partition.scores_S, arguments["scores_S"])
    assert np.array_equal(read.prior_V, arguments["prior_V"])
    assert read.sha256 == written.sha256
    assert [entry.name for entry in tmp_path.iterdir()] == ["p"]


def test_writing_is_reproducible(tmp_path: Path, tiny_arguments: Arguments) -> None:
    first = write_policy(tmp_path / "a", **tiny_arguments())
    second = write_policy(tmp_path / "b", **tiny_arguments(pass_words=list(first.pass_words)))
    assert first.sha256 == second.sha256


def test_wrong_hash_names_both(tiny_policy: Policy) -> None:
    assert tiny_policy.path is not None
    with pytest.raises(PolicyError) as caught:
        load_policy(tiny_policy.path, expected_sha256="0" * 64)
    assert tiny_policy.sha256 in str(caught.value)
    assert "0" * 64 in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ("cat", "cat", "cow", "horse", "red", "blue", "green")}, "1 words occur twice"),
        ({"words": ("Cat", "dog", "cow", "horse", "red", "blue", "well-made")}, "2 words are not single"),
        ({"pass_words": ("the", "cat")}, "1 words are both"),
        ({"names": ("cat", "ada", "red")}, "2 words are both names and vocabulary.*build the policy anew"),
        ({"names": ("ada", "will")}, "1 words are both names and pass words"),
        ({"names": ("Ada",)}, "1 words are not single lower-case words, the first is 'Ada'"),
        ({"starts_G1": np.array([0, 4, 6])}, "starts must run from 0"),
        ({"starts_G1": np.array([0, 6, 7])}, "smallest step 1"),
        ({"starts_G1": np.array([0, 137])}, "a group may hold 128 words, the largest has 137"),
        ({"starts_G1": np.array([0, 8, 7])}, "smallest step -1"),
        ({"scores_S": np.zeros(24)}, "scores must have 25 entries, got 24"),
        ({"prior_V": np.ones(6)}, "prior must have 7 entries"),
        ({"prior_V": np.array([np.nan] * 7)}, "prior must be finite"),
        ({"prior_V": np.zeros(7)}, "not all zero"),
        ({"kinds": {**dict.fromkeys(KINDS, "placeholder"), "word": 41.0}}, r"\(0, 40\], got 41.0"),
        ({"kinds": {**dict.fromkeys(KINDS, "placeholder"), "word": 0}}, "epsilon must lie in"),
        ({"kinds": {**dict.fromkeys(KINDS, "placeholder"), "name": 2.0}}, "'name' cannot have an epsilon"),
        ({"kinds": {**dict.fromkeys(KINDS, "placeholder"), "nmae": "pass"}}, "did you mean 'name'"),
        ({"kinds": {**dict.fromkeys(KINDS, "placeholder"), "name": "placehodler"}}, "mean 'placeholder'"),
        ({"kinds": {"word": 1.0}}, "kind 'stop' has no rule"),
        ({"pass_share": 1.5}, "pass_share"),
        ({"sources": [1]}, "sources must be a list of text"),
        ({"name": 5}, "name must be text"),
    ],
)  # fmt: skip
def test_invalid_policy_is_not_written(
    tmp_path: Path, tiny_arguments: Arguments, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        write_policy(tmp_path / "p", **tiny_arguments(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 6])
def test_no_vocabulary_holds_a_closed_form(tmp_path: Path, tiny_arguments: Arguments, place: int) -> None:
    for closed in [*CLOSED_FORMS, "é"]:
        words = list(tiny_arguments()["words"])
        words[place] = closed
        with pytest.raises(PolicyError, match=r"1 words of the vocabulary are closed forms.*words build"):
            write_policy(tmp_path / "p", **tiny_arguments(words=words, pass_words=()))


def test_all_problems_are_named_at_once(tmp_path: Path, tiny_arguments: Arguments) -> None:
    changes = {"prior_V": np.ones(3), "scores_S": np.zeros(3), "pass_words": ("cat",)}
    with pytest.raises(PolicyError, match=r"both.*scores.*prior"):
        write_policy(tmp_path / "p", **tiny_arguments(**changes))


def test_metadata_and_tensors_are_judged_together(tmp_path: Path) -> None:
    record = '{"format": 2, "nmae": 1, "kinds": {"word": [1]}}'
    (tmp_path / "p").write_bytes(save({"words": np.zeros(3, np.float32)}, {"policy": record}))
    with pytest.raises(PolicyError, match="is malformed") as caught:
        load_policy(tmp_path / "p")
    for said in (
        "does not know nmae; did you mean 'name'?",
        "format must be 1, got 2",
        "kinds.word must",
        "tensor 'words' must",
    ):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00" * 100, b"\x80\x04\x95pickle", b"\xff" * 64, b"words\nare",
        save({"words": np.zeros(3, np.uint8)}),
        save({"words": np.zeros(3, np.uint8)}, {"policy": "not json"}),
        save({"words": np.zeros(3, np.uint8)}, {"policy": "[1]"}),
        save({"words": np.zeros((3, 3), np.float32), "wrods": np.zeros(3)}, {"policy": '{"format": 2}'}),
    ],
)  # fmt: skip
def test_malformed_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(PolicyError):
        load_policy(tmp_path / "p")


def test_truncated_files_are_refused(tmp_path: Path, tiny_policy: Policy) -> None:
    assert tiny_policy.path is not None
    content = tiny_policy.path.read_bytes()
    for size in range(0, len(content), 37):
        (tmp_path / "p").write_bytes(content[:size])
        with pytest.raises(PolicyError):
            load_policy(tmp_path / "p")


def test_missing_and_oversized_files_and_directories_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(PolicyError, match="cannot be read"):
            load_policy(path)
    monkeypatch.setattr(policy_module, "SIZE_LIMIT_BYTES", 10)
    (tmp_path / "p").write_bytes(b"x" * 11)
    with pytest.raises(PolicyError, match="larger than 10 bytes"):
        load_policy(tmp_path / "p")


def test_absent_shipped_policy_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(policy_module, "ENGLISH_PATH", tmp_path / "english.safetensors")
    with pytest.raises(PolicyError, match="--policy"):
        load_policy()


def test_shipped_policy_is_pinned(monkeypatch: pytest.MonkeyPatch, tiny_policy: Policy) -> None:
    monkeypatch.setattr(policy_module, "ENGLISH_PATH", tiny_policy.path)
    monkeypatch.setattr(policy_module, "ENGLISH_SHA256", tiny_policy.sha256)
    assert load_policy().name == "tiny"
    monkeypatch.setattr(policy_module, "ENGLISH_SHA256", "0" * 64)
    with pytest.raises(PolicyError, match="not the expected one"):
        load_policy()


def test_rules_can_be_overlaid(tiny_policy: Policy) -> None:
    changed = tiny_policy.with_rules({"word": "placeholder", "number": "pass"}, mechanism="krr")
    assert changed.epsilon is None
    assert (changed.rules["number"], changed.rules["name"], changed.mechanism) == (
        "pass",
        "placeholder",
        "krr",
    )
    assert tiny_policy.rules["number"] == "placeholder"
    with pytest.raises(PolicyError, match=r"did you mean 'number'.*rule of kind 'word' 'drop'"):
        tiny_policy.with_rules({"nubmer": "pass", "word": "drop"})


def test_rules_from_the_command_line() -> None:
    assert [parse_rule(text) for text in ("word=2.5", "name = pass")] == [("word", 2.5), ("name", "pass")]
    with pytest.raises(PolicyError, match="kind=rule"):
        parse_rule("name")


def test_overlay_file(tmp_path: Path) -> None:
    path = tmp_path / "overlay.yaml"
    path.write_text("kinds: {word: 2, name: pass}\nmechanism: em\n")
    assert load_overlay(path) == {"kinds": {"word": 2, "name": "pass"}, "mechanism": "em"}
    for content, message in [
        ("kidns: {}", "did you mean 'kinds'"),
        ("- a", "must be a mapping"),
        ("kinds: [1]", "must be a mapping"),
        ("kinds: {word: [1]}\nmechanism: 5", "kinds.word must be text or be a number.*mechanism must"),
        ("{", "YAML"),
        ("!!python/object/apply:os.getcwd []", "YAML"),
    ]:
        path.write_text(content)
        with pytest.raises(PolicyError, match=message):
            load_overlay(path)


def test_unwritable_place_is_refused(tmp_path: Path, tiny_arguments: Arguments) -> None:
    with pytest.raises(MisconfiguredError, match="cannot be written"):
        write_policy(tmp_path / "absent" / "p", **tiny_arguments())
