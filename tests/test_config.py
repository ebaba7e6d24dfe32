"""JSON and YAML of others: what can be read in two ways is not read, wherever it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transom.config import (
    MAX_YAML_CHARS,
    Setting,
    from_plain,
    listed,
    load_json,
    load_yaml,
    read_config,
    settings,
    suggest,
    to_plain,
)
from transom.enclave.release import MessageError
from transom.errors import MisconfiguredError, PolicyError, TransomError

SOURCE = Path(__file__).parents[1] / "src" / "transom"


def text(max_size: int | None = None) -> st.SearchStrategy[str]:
    """Without what PyYAML leaves bare and JSON would read as a number, 1e5."""
    return st.text(max_size=max_size).filter(lambda made: "e" not in made.lower())


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_unambiguous_is_read_as_ever(value: Any) -> None:
    assert load_json(json.dumps(value)) == value
    text = yaml.safe_dump(value)
    assert load_yaml(text) == yaml.safe_load(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_as_json_writes_it(value: float) -> None:
    """1e-06 among them, which YAML 1.1 takes for text."""
    assert load_yaml(json.dumps(value)) == value
    assert load_yaml(json.dumps(value).upper()) == value
    assert load_yaml(json.dumps(str(value))) == str(value)


@pytest.mark.parametrize("text", ["1e", "e5", "1e5x", "1_0e5", "1e5.0", "--1e5", "1 e5"])
def test_what_is_no_number_stays_text(text: str) -> None:
    assert load_yaml(text) == text


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
    ("privacy/mapfile.py", "json.loads"): "what a map sealed, authenticated before it is read",
    ("privacy/recordmap.py", "json.loads"): "what a map sealed, authenticated before it is read",
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


@dataclass(frozen=True)
class Part:
    """One entry of a list of records."""

    name: Annotated[str, Setting(filled=True)]
    share: Annotated[float, Setting("Of the whole.", above=0, most=1)] = 0.5


@dataclass(frozen=True)
class Whole:
    """Every type that a field may have."""

    port: Annotated[int, Setting("Where to listen.", panel="Network", least=0, most=65535)]
    mode: Literal["plain", "words"]
    on: bool = False
    wait: Annotated[float, Setting(unit="seconds", least=0)] = 1.0
    text: Annotated[str, Setting(pattern="[a-z]*")] = ""
    place: Path | None = None
    rule: str | float = "pass"
    names: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    first: Part | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    deep: Mapping[str, Part] = field(default_factory=dict)
    free: Any = None

    def problems(self) -> Iterator[str]:
        """What no field says alone."""
        if self.on and self.place is None:
            yield "on needs a place"


letters = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
parts = st.builds(Part, letters.filter(bool), st.floats(0, 1, exclude_min=True))
wholes = st.builds(
    Whole,
    port=st.integers(0, 65535),
    mode=st.sampled_from(["plain", "words"]),
    on=st.just(False),
    wait=st.floats(0, 1e9),
    text=st.text("abc"),
    place=st.none() | letters.filter(lambda text: text.strip(".") and "/" not in text).map(Path),
    rule=letters | st.floats(allow_nan=False, allow_infinity=False),
    names=st.lists(letters).map(tuple),
    parts=st.lists(parts, max_size=2).map(tuple),
    first=st.none() | parts,
    named=st.dictionaries(letters, letters, max_size=2),
    deep=st.dictionaries(letters, parts, max_size=2),
    free=st.none() | st.integers() | st.lists(letters),
)
WRONG: dict[str, tuple[Any, str]] = {
    "port": (65536, "port must be a whole number, at least 0 and at most 65535, got 65536"),
    "mode": ("wrods", "mode must be one of plain, words, got text of 5 characters; did you mean 'words'?"),
    "on": (1, "on must be true or false, got a number"),
    "wait": (-1, "wait must be a number of seconds, at least 0, got -1"),
    "text": ("s3cret", "text must be text of the form [a-z]*, got text of 6 characters"),
    "place": ("", "place must be a path, got text of 0 characters"),
    "rule": ([1], "rule must be text or be a number, got a list of 1"),
    "names": (["a", 5], "names must be a list of strings, got a list of 2"),
    "parts": (
        [{"name": ""}, {"name": "a", "share": 0, "nmae": 1}, 3],
        "parts[0].name must be text, not empty, got text of 0 characters; parts[1] does not know nmae; "
        "did you mean 'name'?; parts[1].share must be a number, above 0 and at most 1, got 0; "
        "parts[2] must be a mapping, got a number",
    ),
    "first": ({}, "first.name must be text, not empty, got nothing"),
    "named": ({"a": None}, "named must map names to strings, got a mapping of 1"),
    "deep": ({"{x}": []}, "deep.{x} must be a mapping, got a list of 0"),
}


@given(wholes)
def test_every_value_comes_back_from_what_is_written_of_it(value: Whole) -> None:
    plain = to_plain(value)
    assert from_plain(Whole, plain, "it cannot be used") == value
    assert from_plain(Whole, load_json(json.dumps(plain)), "it cannot be used") == value
    assert from_plain(Whole, load_yaml(yaml.safe_dump(plain)), "it cannot be used") == value


@given(wholes, st.sets(st.sampled_from([*WRONG, "unknown"]), min_size=1))
def test_every_wrong_field_is_told_at_once_and_no_other(value: Whole, wrong: set[str]) -> None:
    plain = to_plain(value) | {name: WRONG[name][0] for name in wrong if name in WRONG}
    if "unknown" in wrong:
        plain["prot"] = "s3cret"
    with pytest.raises(MisconfiguredError) as caught:
        from_plain(Whole, plain, "it cannot be used")
    said = [WRONG[name][1] for name in settings(Whole) if name in wrong]
    unknown = ["it does not know prot; did you mean 'port'?"] if "unknown" in wrong else []
    assert str(caught.value) == "it cannot be used: " + "; ".join(unknown + said)
    assert "s3cret" not in str(caught.value)


def test_a_problem_between_fields_is_told_where_it_stands() -> None:
    with pytest.raises(PolicyError, match=r"^it cannot be used: on needs a place$"):
        from_plain(Whole, {"port": 1, "mode": "plain", "on": True}, "it cannot be used", error=PolicyError)


@pytest.mark.parametrize("value", [None, [], "text", 3, {}, {1: 2}, {"port": 10**5000, "mode": ["plain"]}])
def test_what_is_no_configuration_at_all_is_refused(value: Any) -> None:
    with pytest.raises(MisconfiguredError, match=r"^it cannot be used: "):
        from_plain(Whole, value, "it cannot be used")


@given(plain)
def test_any_plain_value_is_read_or_refused(value: Any) -> None:
    for given_value in (
        value,
        {"port": value, "mode": "plain", "parts": value, "deep": value, "rule": value},
    ):
        try:
            from_plain(Whole, given_value, "it cannot be used")
        except MisconfiguredError as error:
            assert len(str(error)) < 10_000  # noqa: PT017


def test_a_flood_of_problems_is_cut() -> None:
    with pytest.raises(MisconfiguredError, match="and 4982 more") as caught:
        from_plain(Whole, {f"name{i}": i for i in range(5000)}, "it cannot be used")
    assert len(str(caught.value)) < 10_000
    assert listed("a", []) == "a: "


def test_a_file_is_yaml_or_json_and_its_paths_begin_at_its_folder(tmp_path: Path) -> None:
    wanted = Whole(1, "words", place=tmp_path / "a.txt", rule=2.0)
    (tmp_path / "a.yaml").write_text("port: 1\nmode: words\nplace: a.txt\nrule: 2\n")
    (tmp_path / "a.json").write_text('{"port": 1, "mode": "words", "place": "a.txt", "rule": 2}')
    assert read_config(Whole, tmp_path / "a.yaml") == read_config(Whole, tmp_path / "a.json") == wanted
    absolute = to_plain(wanted)
    (tmp_path / "b.json").write_text(json.dumps(absolute))
    assert read_config(Whole, tmp_path / "b.json") == wanted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", b"port: 1\nport: 2", "as YAML: 'port' stands twice"),
        ("a.json", b'{"port": 1, "port": 2}', "as JSON: an object names a member twice"),
        ("a.json", b"port: 1", "as JSON"),
        ("a.yaml", b"\xff", "as YAML: .*utf-8"),
        ("a.json", b" " * (2**22 + 1), "more than"),
        ("a.yaml", b"", "must be a mapping, got null"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MisconfiguredError, match=f"the configuration file .*{said}"):
        read_config(Whole, tmp_path / name)
    with pytest.raises(PolicyError, match=r"cannot read the overlay .*check the path"):
        read_config(Whole, tmp_path / "absent", what="the overlay", error=PolicyError)


def test_what_is_known_of_a_class_serves_a_command_line() -> None:
    known = settings(Whole)
    assert list(known) == [one.name for one in fields(Whole)]
    port = known["port"]
    assert (port.kind, port.default, port.setting.help) == (int, MISSING, "Where to listen.")
    assert (port.setting.panel, port.setting.most) == ("Network", 65535)
    assert (known["named"].default, known["wait"].default) == ({}, 1.0)


@given(st.text(), st.lists(st.text(), min_size=1))
def test_a_suggestion_names_what_is_known(got: str, known: list[str]) -> None:
    assert suggest("Wrods", ["plain", "words"]) == "did you mean 'words'?"
    assert suggest(known[0], known).startswith("did you mean")
    assert suggest(got, known)


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


def read_model_config(folder: Path, text: str) -> None:
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
    from transom.data.rows import read_texts

    read_texts(write(folder / "texts.jsonl", text), "document")


def read_task(folder: Path, text: str) -> None:
    from transom.data.rows import read_rows

    read_rows(write(folder / "task.jsonl", text * 3))


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
        (read_model_config, '{"a": 1}', '{"a": 1, "a": 1}'),
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
