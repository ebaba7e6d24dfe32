"""Patterns are stopped in time, and named; what cannot be read is named with its place."""

from __future__ import annotations

import pytest

from transom.errors import RefusedError
from transom.privacy.patterns import MOST_CHARS, Patterns, problem_of

SECRET = "a" * 200_000 + "b"  # makes the pattern below try forever


def test_matches_are_found_in_the_raw_text() -> None:
    patterns = Patterns([(r"\bKD-\d{4}\b", "document"), (r"(?<=von )\p{Lu}\w+", "person")])
    text = "KD-12\u200b34 von Élodie, ÉKD-1234"
    assert [(text[s:e], kind) for s, e, kind in patterns.find(text)] == [
        ("KD-12\u200b34", "document"),
        ("Élodie", "person"),
    ]


def test_nothing_is_found_where_nothing_is_matched() -> None:
    assert list(Patterns([(r"(?=a)", "rare")]).find("aaa")) == []
    assert list(Patterns([]).find(SECRET)) == []


@pytest.mark.parametrize("catastrophe", [r"(a+)+$", r"(a|aa)+$", r"a.*c|a"])
def test_a_catastrophe_is_stopped_and_named(catastrophe: str) -> None:
    patterns = Patterns([("b", "rare"), (catastrophe, "rare")], least_s=0.05)
    with pytest.raises(RefusedError, match="stopped") as caught:
        list(patterns.find(SECRET * 2))
    assert repr(catastrophe) in str(caught.value)
    assert "patterns[1]" in str(caught.value)
    assert "aaa" not in str(caught.value)


def test_all_patterns_share_one_budget() -> None:
    with pytest.raises(RefusedError):
        list(Patterns([("b", "rare")] * 3, least_s=-1e9).find("text"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a", r"missing \) at character 3 of '\(a'"),
        ("[z-a]", "range"),
        ("a*", "empty text"),
        ("", "empty text"),
        ("a" * (MOST_CHARS + 1), "characters"),
        ("(" * 900, "of '"),
        (r"\p{Nonsense}", "property"),
    ],
)
def test_what_is_wrong_is_said(pattern: str, said: str) -> None:
    import re

    assert re.search(said, problem_of(pattern) or "")


@pytest.mark.parametrize("pattern", [r"(\w)\1", r"(?<!\d)\d{3}(?!\d)", r"(?i)straße", r"[[:alpha:]]+x"])
def test_what_python_reads_is_read(pattern: str) -> None:
    assert problem_of(pattern) is None
