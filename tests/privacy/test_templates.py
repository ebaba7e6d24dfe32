"""Public text: what matches exactly passes, what fills the holes does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.forms import PLACEHOLDER_LABELS
from transom.privacy.templates import Templates, parts_of, problem_of, warning_of

LETTER = "Summarise this letter in three sentences: {letter}\n\nAnswer as {{JSON}}."
PASSAGE = "You are a careful assistant who writes plain answers."


def passing(template: str, text: str) -> list[str]:
    return [text[span.start : span.end] for span in Templates([template]).find(text) if span.start < span.end]


def test_what_stands_between_the_holes_passes() -> None:
    text = "Summarise this letter in three sentences: Dear Jane,\nhello {JSON}\n\nAnswer as {JSON}."
    expected = ["Summarise this letter in three sentences: ", "\n\nAnswer as {JSON}."]
    assert passing(LETTER, text) == expected
    assert passing(LETTER, f"\n {text}\n") == expected
    assert passing(LETTER + "\n", text) == expected  # as YAML's block texts end


@pytest.mark.parametrize(
    "text",
    [
        "summarise this letter in three sentences: x\n\nAnswer as {JSON}.",
        "Summarise this letter in three  sentences: x\n\nAnswer as {JSON}.",
        "Please. Summarise this letter in three sentences: x\n\nAnswer as {JSON}.",
        "Summarise this letter in three sentences: x\n\nAnswer as {JSON}. Thanks",
        "Summarise this letter in three sentences:",
        "",
    ],
)
def test_another_text_has_nothing_that_passes(text: str) -> None:
    assert passing(LETTER, text) == []


@given(st.lists(st.text("ab {}.\n"), min_size=3, max_size=3))
def test_only_fixed_text_passes_whatever_fills_the_holes(values: list[str]) -> None:
    template = "Compare the first: {a}; with the second: {b}; and say why: {c}!"
    parts = parts_of(template)
    text = "".join(part + value for part, value in zip(parts, [*values, ""], strict=True))
    assert passing(template, text) == list(parts)


def test_a_long_text_passes_within_a_message_as_whole_words() -> None:
    assert passing(PASSAGE, f"{PASSAGE} Now: {PASSAGE}") == [PASSAGE, PASSAGE]
    assert passing(PASSAGE[:-1], f"re{PASSAGE}") == []
    assert passing(PASSAGE[:-1], f"{PASSAGE[:-1]}2") == []
    assert passing("Write a haiku", "Write a haiku") == ["Write a haiku"]
    assert passing("Write a haiku", "Write a haiku, Jane") == []
    longer = PASSAGE + " Be brief."
    assert [end - start for start, end, _ in Templates([PASSAGE, longer]).find(f"x {longer}")] == [
        len(longer)
    ]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{text}", "0 letters"),
        ("Keep marks such as [NAME_1] as they are.", "placeholder"),
        ("{a} - {b}", "0 letters"),
        ("Hi {name}", "2 letters"),
        ("Anna", "private text would match"),
        ("", "0 letters"),
        ("Say what this is: {a}{b}", "holes touch"),
        ("Tell me about user_{id}", "touches"),
        ("Translate into {language}ish", "touches"),
        ("Answer with a JSON object {", "write {{"),
        ('Answer with {"name": 1}', "write {{"),
        ("Give the total {total:.2f}", "write {{"),
        ("Answer with a JSON object }", "'}'"),
    ],
)
def test_a_template_that_private_text_would_match_is_refused(template: str, said: str) -> None:
    assert said in (problem_of(template) or "")


def test_a_short_one_is_warned_about() -> None:
    assert problem_of("Summarise: {text}") is None
    assert "by chance" in (warning_of("Summarise: {text}") or "")
    assert "whole message" in (warning_of("Write a haiku") or "")
    assert warning_of(PASSAGE) is None
    assert warning_of(LETTER) is None


@pytest.mark.parametrize("label", PLACEHOLDER_LABELS)
@pytest.mark.parametrize(
    "written",
    [
        "[{}_1]",
        "[{} 1]",
        "[{}-1]",
        "[{}1]",
        "<{}_1>",
        "{{{{{}_1}}}}",
        r"\[{}\_1\]",
        "&lt;{}_1&gt;",
        "{}_1",
        "[{}_1_LAST]",
    ],
)
def test_no_template_holds_what_an_answer_is_restored_by(label: str, written: str) -> None:
    """Whatever spelling: an answer that repeats it would show a private value in its place."""
    for form in {written.format(label), written.format(label.title()) if written != "{}_1" else ""} - {""}:
        assert "placeholder" in (problem_of(f"Cite your sources as {form}, please: {{text}}") or "")
