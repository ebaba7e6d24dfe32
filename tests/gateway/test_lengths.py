"""Lengths and slices of content: right for every text where they are taken, and else refused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import RefusedError
from transom.serving.template import ChatTemplate

from .chat_templates import SPECIALS
from .test_template import CONVERSATION, Messages, attempt, refusal, theirs

TEXTS = [
    "",
    " ",
    "a",
    "ab",
    "abc",
    " a\n",
    "a\n",
    "<b>",
    "</b>",
    "<b></b>",
    "<b>abc</b>",
    "x</b>",
    "x</b> ",
    "é" * 9,
]
LENGTHS = [
    "{c} | length > 0",
    "{c} | length == 0",
    "0 < {c} | length",
    "not {c} | length",
    "{c} | trim | length",
    "{c} | count >= 3",
    "{c} | length - 4 < 0",
    "{c} | length + 1 == 3",
    "{c} | length in [1, 2]",
    "{c} | length != none",
    "[{c} | length, 3] | min == 3",
    "{c}.split('</b>')[0] | length < 4",
    "({c} ~ 'abc') | length > 4",
    "{c} == '' or {c} | length == 0",
]
SLICES = [
    "{c}[:3] == '<b>'",
    "{c}[:1]",
    "{c}[:9] == '<b>'",
    "{c}[:2] == '<b>'",
    "{c}[-4:] == '</b>'",
    "{c}[({c} | length) - 4:] == '</b>'",
    "{c}[({c} | length) - 1:] == '>'",
    "{c}[0] == '<'",
    "{c}[-1] in ['>', ' ']",
    "'<b>' == {c}[:3]",
    "{c}[:1] == ' '",
    "{c}[:3] in ['<b>', 'abc']",
    "{c}.endswith('\\n')",
    "{c}.startswith(' ')",
    "{c} == ' '",
]
REFUSED = {  # by what the message names
    "{{ m.content | length }}": "`length`",
    "{{ (m.content | length) * 2 }}": "arithmetic on a length",
    "{{ (m.content | length).real }}": "arithmetic on a length",
    "{{ (m.content | length) - (m.content | length) }}": "arithmetic on a length",
    "{{ 'abc'[m.content | length] }}": "content as a key",
    "{{ 'abc'[:m.content | length] }}": "arithmetic on a length",
    "{{ 'abc'.center(m.content | length) }}": "`center` with content",
    "{{ range(m.content | length) | list }}": "arithmetic on a length",
    "{{ {0: 1}[m.content | length] }}": "content as a key",
    "{{ (m.content | length) is number }}": "the test `number`",
    "{{ (m.content | length) | string }}": "`string`",
    "{{ m.content | length > 9000 }}": "`length`, compared with",
    "{{ m.content | length < 2.5 }}": "a comparison of lengths",
    "{{ m.content[2:] }}": "a slice",
    "{{ m.content[::2] }}": "a slice with a step",
    "{{ m.content[2:] == 'a' }}": "a slice",
    "{{ m.content[:2].strip() == 'a' }}": "a slice",
    "{{ m.content[:2] in 'abc' }}": "a comparison of letters",
    "{{ m.content[2:] and 1 }}": "a slice",
    "{{ m.content[2:] | length }}": "the length of a slice",
    "{{ m.content[2:] == m.content[2:] }}": "a comparison of contents",
    "{{ m.content[5] }}": "a slice",
    "{{ m.content | upper }}": "`upper`",
    "{{ m.content.lower() }}": "`lower`",
    "{{ m.content.split() }}": "`split` at white space",
    "{{ m | tojson }}": "`tojson`",
    "{{ m.content < 'b' }}": "a comparison of letters",
}


def over(body: str) -> str:
    return "{% for m in messages %}[" + body + "{{ m.content }}]{% endfor %}"


@pytest.mark.parametrize("condition", [*LENGTHS, *SLICES])
def test_lengths_and_slices_decide_as_in_transformers(condition: str) -> None:
    """For the readable roles in every case; for users where the answer does not steer."""
    source = over("{% if " + condition.replace("{c}", "m.content") + " %}Y{% endif %}")
    template = ChatTemplate(source, SPECIALS)
    for text in TEXTS:
        for role in ("assistant", "system"):
            assert template.render([(role, text)]).text == theirs(source, [(role, text)])
        rendered, error = attempt(template, [("user", text)])
        assert error is None or error.error_code == "template_reads_content"
        assert error or rendered == theirs(source, [("user", text)])


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_refused_is_named(body: str) -> None:
    template = ChatTemplate(over(body), SPECIALS)
    for role in ("user", "assistant"):
        error = refusal(template, [(role, "abc and more of it")])
        assert (error.error_code, error.param) == ("template_alters_content", "messages[0].content")
        assert f" uses {REFUSED[body]}" in str(error)


def test_a_slice_that_is_not_used_refuses_nothing() -> None:
    source = over("{% set x = m.content[9:].strip() %}{% if x is defined %}Y{% endif %}")
    for text in TEXTS:
        assert ChatTemplate(source, {}).render([("user", text)]).text == theirs(source, [("user", text)])


def test_what_a_user_writes_is_not_measured_where_it_would_steer() -> None:
    template = ChatTemplate(
        "{% if messages[0].content | length < 5 %}short{% endif %}{{ messages[0].content }}", {}
    )
    assert template.render([("user", "long enough")]).text == "long enough"
    error = refusal(template, [("user", "abc")])
    assert (error.error_code, error.param) == ("template_reads_content", "messages[0].content")
    assert "how short this message is" in str(error)
    assert "words" not in str(error)


def test_the_template_s_own_words_are_named() -> None:
    template = ChatTemplate("{{ '/no' in messages[0].content }}{{ messages[0].content }}", {})
    assert "would read '/no' in this message" in str(refusal(template, [("user", "secret /no secret")]))
    assert "secret" not in str(refusal(template, [("user", "secret /no secret")]))
    template = ChatTemplate("{{ ' ' in messages[0].content }}{{ messages[0].content }}", {})
    assert "what stands inside this message" in str(refusal(template, [("user", "a b")]))


PARTS = [
    ":3",
    "3:",
    ":-3",
    "-3:",
    "0:",
    ":0",
    "1:4",
    "-4:-1",
    ":n",
    "n:",
    ":n - 4",
    "n - 4:",
    "n - 9:",
    "1:n - 1",
]


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), CONVERSATION)
def test_no_slice_is_wrong(draw: random.Random, messages: Messages) -> None:
    """Written, compared and cut again, in any order."""
    body = "{% set n = m.content | length %}{% set x = m.content[" + draw.choice(PARTS) + "] %}"
    for _ in range(draw.randint(0, 2)):
        change = draw.choice(["[" + draw.choice(PARTS) + "]", ".strip()", ".split('a')[-1]", " ~ 'a'"])
        body += "{% set x = x" + change + " %}" + draw.choice(["", "{% set n = x | length %}"])
    literal = repr(draw.choice(["a", "<think>", "</think>", " ", "b c"]))
    body += draw.choice(
        ["{{ x }}", "{{ x == " + literal + " }}", "{{ x[:1] == " + literal + " }}", "{{ 1 if x }}"]
    )
    source = over(body)
    rendered, error = attempt(ChatTemplate(source, {}), messages)
    assert error or rendered == theirs(source, messages), source


def test_lengths_are_asked_once() -> None:
    """A second conversation of the same lengths needs no rendering; long ones are all of one shape."""
    source = over("{% if m.content | length < 4 %}Y{% endif %}")
    template = ChatTemplate(source, {})
    for i in range(40):
        template.render([("assistant", f"an answer {i}")])
    assert len(template._outcomes) == 1
    for i in range(40):
        template.render([("assistant", f"{i:02}")])
    assert len(template._outcomes) == 2


def test_a_template_that_asks_for_many_lengths_is_refused() -> None:
    source = over("{% for i in range(250) %}{% if (m.content | length) - i == 0 %}{% endif %}{% endfor %}")
    assert ChatTemplate(source, {}).render([("assistant", "abc")]).text == "[abc]"
    source = source.replace("250", "300")
    with pytest.raises(RefusedError, match="length"):
        ChatTemplate(source, {}).render([("assistant", "a" * 400)])
