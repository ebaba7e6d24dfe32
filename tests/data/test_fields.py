"""JSON paths against Python's own reading, and every byte outside the texts that they name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.data.fields import find_texts, parse_path, replaced
from transom.errors import MisconfiguredError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.text("ab.[]\\", min_size=1, max_size=3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


def every_text(value: Any, path: tuple[str | None, ...] = ()) -> list[tuple[tuple[str | None, ...], str]]:
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, list):
        return [found for entry in value for found in every_text(entry, (*path, None))]
    if isinstance(value, dict):
        return [found for name, entry in value.items() for found in every_text(entry, (*path, name))]
    return []


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_what_is_found_is_what_python_reads(value: Any, ascii_only: bool, indent: int | None) -> None:
    document = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    texts = every_text(value)
    for path in dict(texts):
        wanted = [text for where, text in texts if where == path]
        try:
            found = find_texts(document, [path], "here")
        except MisconfiguredError:  # beside the texts stand other values, or a member is not everywhere
            continue
        assert [literal.text for literal in found] == wanted
        assert json.loads(replaced(document, found, wanted)) == value
        exchanged = json.loads(replaced(document, found, ["x"] * len(found)))
        assert [text for where, text in every_text(exchanged) if where == path] == ["x"] * len(found)
        assert [one for one in every_text(exchanged) if one[0] != path] == [
            one for one in texts if one[0] != path
        ]


def test_other_members_keep_their_bytes() -> None:
    document = '{ "n" : 1.10,\t"big": 123456789012345678901234567890, "text": "a\\u0062", "e":1E5 }\n'
    found = find_texts(document, [("text",)], "here")
    assert [literal.text for literal in found] == ["ab"]
    assert replaced(document, found, ["\u00e9"]) == document.replace('"a\\u0062"', '"\\u00e9"')


def test_half_a_surrogate_pair_stays_an_escape() -> None:
    document = '{"text": "\\ud800 \u00e9"}'
    found = find_texts(document, [("text",)], "here")
    replaced(document, found, [literal.text for literal in found]).encode()


@pytest.mark.parametrize(
    ("written", "steps"),
    [
        ("text", ("text",)),
        ("user.name", ("user", "name")),
        ("messages[].content", ("messages", None, "content")),
        ("[].text", (None, "text")),
        ("[][]", (None, None)),
        (r"a\.b.c", ("a.b", "c")),
    ],
)
def test_paths(written: str, steps: tuple[str | None, ...]) -> None:
    assert parse_path(written) == steps


@pytest.mark.parametrize("written", ["", ".", "a..b", "a.", "[", "a[0]", "a[]b", "]", ".a"])
def test_what_is_no_path_is_refused(written: str) -> None:
    with pytest.raises(MisconfiguredError, match="is no path"):
        parse_path(written)


@pytest.mark.parametrize(
    ("document", "path", "message"),
    [
        ('{"a": 1}', "a", "holds no text but a int"),
        ('{"a": {"b": "x"}}', "a", "holds no text but a dict"),
        ('{"b": "x"}', "a", "there is no 'a'"),
        ('[{"a": "x"}, {}]', "[].a", r"there is no '\[\].a'"),
        ('{"a": "secret"}', "a[]", "asks for a list"),
        ('{"a": "secret"', "a", r"\(14 characters\) is not valid JSON"),
        ('{"a": "secret", "a": "x"}', "a", "not valid JSON"),
    ],
)
def test_what_misses_is_refused_without_content(document: str, path: str, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message) as refused:
        find_texts(document, [parse_path(path)], "line 3")
    assert "line 3" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_null_has_nothing_to_hide() -> None:
    assert find_texts('{"a": null}', [("a",)], "here") == []
