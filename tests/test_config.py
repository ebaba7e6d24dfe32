"""JSON and YAML of others: what can be read in two ways is not read, wherever it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transom.config import MAX_YAML_CHARS, load_json, load_yaml
from transom.enclave.release import MessageError
from transom.errors import TransomError

SOURCE = Path(__file__).parents[1] / "src" / "transom"
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_unambiguous_is_read_as_ever(value: Any) -> None:
    assert load_json(json.dumps(value)) == value
    text = yaml.safe_dump(value)
    assert load_yaml(text) == yaml.safe_load(text)


@given(st.dictionaries(st.text(max_size=5), plain, min_size=1, max_size=3), plain, st.data())
def test_a_name_twice_is_refused_wherever_it_stands(
    value: dict[str, Any], other: Any, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(list(value)))
    twice = f"{json.dumps(value)[:-1]}, {json.dumps(name)}: {json.dumps(other)}}}"
    for text in (twice, f"[{twice}]", f'{{"a": {{"b": [{twice}]}}}}'):
        with pytest.raises(ValueError, match="twice"):
            load_json(text)
        with pytest.raises(ValueError, match=r"twice|\n|YAML"):  # not each JSON text is YAML
            load_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        "allow: [1]\nallow: [2]",
        "allow: [1]\n'allow': [2]",
        "1: a\n0x1: b",
        "yes: a\nyes: b",
        "a: {b: 1, b: 2}",
        "- a: 1\n  b: 2\n  a: 3",
        "? [x]\n: 1",
        "a: &x [1]\nb: *x",
        "a: &x {k: 1}\nb:\n  <<: *x\n  k: 2",
        "a: 1\n---\na: 2",
        "[" * 5000,
        "a: " + "b" * MAX_YAML_CHARS,
        "!!python/object/apply:os.getcwd []",
        "a: [1",
        "\x00",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_yaml_that_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        load_yaml(text)


def test_aliases_do_not_grow() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    with pytest.raises(ValueError, match="aliases"):
        load_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, b"\xff", ""])
def test_json_that_is_not_read(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w|^$"):
        load_json(text)


# Parsers elsewhere, and why they may: what they read was written by this program or by the library asked.
OTHERS = {
    ("audit/draws.py", "json.loads"): "between the audit and the process that it starts",
    ("enclave/sgx_tdx.py", "json.loads"): "what the verifying library returns",
    ("serving/tokenizer.py", "json.loads"): "what the tokenizer library returns",
    ("serving/detokenizer.py", "json.loads"): "what the tokenizer library returns",
    ("serving/gateway/requests.py", "model_validate_json"): "followed by load_json",
}


def test_nothing_is_parsed_past_it() -> None:
    found = {
        (str(path.relative_to(SOURCE)), call)
        for path in SOURCE.rglob("*.py")
        for call in re.findall(
            r"json\.loads?\b|yaml\.\w*load\w*|model_validate_json", path.read_text("utf-8")
        )
        if path.name != "config.py" or path.parent != SOURCE
    }
    assert found == set(OTHERS)


RULE = "- {kind: insecure-dev, registers: {dev: '00'}}\n"
CLIENT = '"version": 1, "source": "x", "vocabulary": 3, "stop_ids": []'
HEAD = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


def write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def check_checkpoint(folder: Path, head: str) -> None:
    from transom.checkpoint.source import check, find

    write(folder / "config.json", "{}")
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head.encode() + b"abcd")
    check(find(str(folder)))


def read_policy(folder: Path, text: str) -> None:
    from transom.enclave.policy import load_evidence_policy

    load_evidence_policy(write(folder / "policy.yaml", text))


def read_overlay(folder: Path, text: str) -> None:
    from transom.privacy.policy import load_overlay

    load_overlay(write(folder / "overlay.yaml", text))


def read_config(folder: Path, text: str) -> None:
    from transom.checkpoint.source import read_json

    read_json(write(folder / "config.json", text))


def read_card(folder: Path, text: str) -> None:
    from transom.obfuscation.card import _read

    _read(write(folder / "card.json", text))


def read_client(folder: Path, text: str) -> None:
    from transom.obfuscation.client import load_client

    load_client(write(folder / "client.json", text).parent)


def read_key(folder: Path, text: str) -> None:
    from transom.obfuscation.keyfile import _read

    _read(write(folder / "key", text))


def read_lines(folder: Path, text: str) -> None:
    from transom.cli.audit_words import read_corpus

    read_corpus(write(folder / "texts.jsonl", text), None, "document")


def read_task(folder: Path, text: str) -> None:
    from transom.audit.utility.files import _rows

    _rows(write(folder / "task.jsonl", text * 3))


def read_message(_folder: Path, text: str) -> None:
    from transom.enclave.release import read_message

    read_message(text.encode(), {"a": int})


def read_request(_folder: Path, text: str) -> None:
    from transom.serving.gateway.requests import CompletionRequest, parse

    parse(CompletionRequest, text.encode())


def read_body(_folder: Path, text: str) -> None:
    from transom.serving.engines.wire import parse_json_object

    parse_json_object(text.encode())


@pytest.mark.parametrize(
    ("read", "once", "twice"),
    [
        (read_policy, f"allow:\n{RULE}", f"allow:\n{RULE}allow:\n{RULE}"),
        (read_overlay, "kinds: {word: pass}\n", "kinds: {word: placeholder}\nkinds: {word: pass}\n"),
        (check_checkpoint, f"{{{HEAD}}}", f"{{{HEAD}, {HEAD}}}"),
        (read_config, '{"a": 1}', '{"a": 1, "a": 1}'),
        (read_card, '{"version": 1}', '{"version": 1, "version": 1}'),
        (read_client, f"{{{CLIENT}}}", f'{{{CLIENT}, "vocabulary": 4}}'),
        (
            read_key,
            '{"format": "transom-obfuscation-key", "version": 1}',
            '{"format": "transom-obfuscation-key", "version": 2, "version": 1}',
        ),
        (read_lines, '{"document": "a"}\n', '{"document": "b", "document": "a"}\n'),
        (read_task, '{"document": "a"}\n', '{"document": "b", "document": "a"}\n'),
        (read_message, '{"a": 1}', '{"a": 1, "a": 1}'),
        (read_request, '{"model": "m", "prompt": "a"}', '{"model": "m", "prompt": "b", "prompt": "a"}'),
        (read_body, '{"a": 1}', '{"a": 2, "a": 1}'),
    ],
)
def test_every_reader_refuses_a_name_twice(
    tmp_path: Path, read: Callable[[Path, str], None], once: str, twice: str
) -> None:
    read(tmp_path, once)
    with pytest.raises((TransomError, MessageError)):
        read(tmp_path, twice)
