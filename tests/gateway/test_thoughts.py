"""Thoughts in an answer that end in a control token: cut as in transformers, or refused."""

from __future__ import annotations

import pytest

from transom.serving.template import ChatTemplate

from .chat_templates import SPECIALS
from .test_template import attempt, theirs

CUTTING = {
    "last": "{{ c.split('</think>')[-1] }}",
    "stripped": "{{ c.split('</think>')[-1].strip() }}",
    "lines": "{{ c.split('</think>')[-1].lstrip('\\n') if '</think>' in c else c }}",
    "kept": "{{ c }}",
    "first": "{{ c.split('</think>', 1)[1] if '</think>' in c else c }}",
    "rewritten": "<think>{{ c.split('</think>')[0] }}</think>{{ c.split('</think>')[-1] }}",
    "told": "{{ 'thoughts:' if '</think>' in c }}{{ c.split('</think>')[-1] }}",
    "before": "{{ c.split('<think>')[0] }}",
}
ANSWERS = [
    "<think>\nx\n</think>\n\nan answer",
    "x</think>an answer\n ",
    "<think>x</think>",
    "an answer",
    "a <think>x</think> b </think> c",
    "<think>open",
    "</think>",
]


@pytest.mark.parametrize("how", CUTTING)
@pytest.mark.parametrize("answer", ANSWERS)
def test_thoughts_that_end_in_a_control_token_may_only_be_cut(how: str, answer: str) -> None:
    """What is accepted reads as in transformers, and no control token of an answer is the template's."""
    source = (
        "{% for m in messages %}{% set c = m.content %}[{% if m.role == 'assistant' %}"
        + CUTTING[how]
        + "{% else %}{{ c }}{% endif %}]{% endfor %}"
    )
    template = ChatTemplate(source, SPECIALS, ["<think>", "</think>"])
    own = template.render([("user", "q"), ("assistant", "plain"), ("user", "more")]).pieces
    for asked in ("q", "what is </think> for?"):
        messages = [
            ("user", asked),
            ("assistant", answer),
            ("user", "more"),
            ("assistant", answer),
            ("user", "x"),
        ]
        rendered, error = attempt(template, messages)
        if error:
            assert (error.error_code, error.param) == ("template_reads_content", "messages[1].content")
            assert how in ("rewritten", "told", "first") or "<think>open" in answer
            continue
        assert rendered == theirs(source, messages)
        pieces = [part for part in template.render(messages).pieces if isinstance(part, str)]
        for control in ("<think>", "</think>"):
            most = 2 * sum(part.count(control) for part in own if isinstance(part, str))
            assert sum(part.count(control) for part in pieces) <= most
    if how in ("last", "stripped", "lines") and answer in ANSWERS[:4]:
        assert not error
