"""Chat templates against transformers': the same text for every conversation, or a refusal by name."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from transom.errors import CheckpointError, RefusedError
from transom.serving import template as template_module
from transom.serving.template import ChatTemplate

from .chat_templates import CONTROLS, SPECIALS, TEMPLATES
from .conftest import byte_tokenizer

Messages = list[tuple[str, str]]
SNIPPETS = [
    *(
        "a",
        "b c",
        " ",
        "\n",
        "\n\n",
        "\t",
        "\u00a0",
        "\x1c",
        "é",
        "世",
        "'",
        '"',
        "\\n",
        "{{ x }}",
        "{% raw %}",
    ),
    *("<think>", "</think>", "</th", "ink>", "<tool_response>", "</tool_response>", "/no_think", "/think"),
    *("<|im_end|>", "[INST]", "<s>", "/system_override", "<|channel|>final<|message|>"),
]
STEERING = ("<tool_response>", "</tool_response>", "/no_think", "/think", "/system_override", "</think>")
TEXT = st.lists(st.sampled_from(SNIPPETS), max_size=6).map("".join)
ROLES = st.tuples(st.booleans(), st.integers(1, 5)).map(
    lambda drawn: ["system"] * drawn[0] + [("user", "assistant")[i % 2] for i in range(drawn[1])]
) | st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5)
CONVERSATION = ROLES.flatmap(
    lambda roles: st.tuples(*[st.tuples(st.just(role), TEXT) for role in roles])
).map(list)


def theirs(source: str, messages: Messages) -> str | None:
    """What transformers renders; None where it raises."""
    chat = [{"role": role, "content": text} for role, text in messages]
    try:
        rendered = render_jinja_template([chat], chat_template=source, add_generation_prompt=True, **SPECIALS)
    except Exception:
        return None
    return str(rendered[0][0])


@cache
def ours(name: str) -> ChatTemplate:
    return ChatTemplate(TEMPLATES[name], SPECIALS, CONTROLS)


def attempt(template: ChatTemplate, messages: Messages) -> tuple[str, RefusedError | None]:
    try:
        return template.render(messages).text, None
    except RefusedError as error:
        return "", error


def refusal(template: ChatTemplate, messages: Messages) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        template.render(messages)
    return caught.value


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(messages=CONVERSATION)
def test_families_render_as_transformers_does(name: str, messages: Messages) -> None:
    expected = theirs(TEMPLATES[name], messages)
    rendered, error = attempt(ours(name), messages)
    if error is None:
        assert rendered == expected
    elif error.error_code == "template_reads_content":
        assert any(word in text for _, text in messages for word in [*STEERING, *CONTROLS])
    elif error.error_code == "template_alters_content":  # a message that is not in theirs either
        index = int(str(error.param).removeprefix("messages[").removesuffix("].content"))
        role, text = messages[index]
        unlike = [*messages[:index], (role, text.strip() + "unlike"), *messages[index + 1 :]]
        assert theirs(TEMPLATES[name], unlike) == expected
    else:
        assert expected is None, error


@pytest.mark.parametrize("name", TEMPLATES)
def test_ordinary_conversations_are_accepted(name: str) -> None:
    system = [] if name in ("gemma-2", "mistral-1", "mixtral") else [("system", " Be brief.\n")]
    messages = [*system, ("user", "Hello\n"), ("assistant", "  Hi. "), ("user", "What is\n\n <br> & 'x'?")]
    prefixes = [messages, messages[:-1], messages[:-2]]
    for chat in prefixes[
        :: 2 if name in ("mistral-3", "mistral-tekken") else 1
    ]:  # system goes with the last user
        assert ours(name).render(chat).text == theirs(TEMPLATES[name], chat)


OPERATIONS = [
    *(".strip()", ".lstrip()", ".rstrip()", ".strip({l})", ".rstrip('\\n')", " | trim", " | trim({l})"),
    *(".split({l})[0]", ".split({l})[-1]", ".split({l}, 1)[-1]", ".rsplit({l}, 1)[0]", ".partition({l})[0]"),
    *(".rpartition({l})[2]", ".replace({l}, 'X')", " | replace({l}, {l})", ".removeprefix({l})"),
    *(
        ".removesuffix({l})",
        " | upper",
        ".lower()",
        "[:3]",
        "[0]",
        " | length",
        " | string",
        " | d('x', true)",
    ),
    *(" | int", " | tojson", " | first", " | list", " | title", " | reverse", " ~ 'a'", " + ' b '", " * 2"),
    *(".format()", " | join('-')", ".find({l})", ".count({l})", ".splitlines()", ".split()", ".encode()"),
    *(".center(9)", " | indent", " | unique | list", ".title()", ".join(['a', 'b'])", ".zfill(9)", " | safe"),
]
CONDITIONS = [
    *(
        "{l} in {c}",
        "{l} not in {c}",
        "{c}.startswith({l})",
        "{c}.endswith({l})",
        "{c} == {l}",
        "{c} != {l}",
        "{c}",
    ),
    *("not {c}", "{c} | trim", "{c} in ['a', ' ', none]", "{c} in 'abc'", "{c} is string", "{c} is iterable"),
    *(
        "{c} is sequence",
        "{c} is mapping",
        "{c} is none",
        "{c} is eq({l})",
        "{c} is in(['a'])",
        "{c} is upper",
    ),
    *(
        "{c} | length > 2",
        "{c} < {l}",
        "{c} == messages[0].content",
        "{c}.strip() == {l}",
        "{c} is sameas('a')",
    ),
    *("'x' ~ {c} == 'xa'", "{l} in ('a' + {c})", "{l} in ({c} ~ {c})", "{c}.split({l}) | length > 1"),
    *("{l} == {c} == {l}", "{c}.startswith(('a', 'b'))", "{{{c}: 1}}", "{c}[0] == 'a'", "{l} is in {c}"),
]
STATEMENTS = [
    "{% filter trim %}{{ m.content }}b {% endfilter %}",
    "{% for x in m.content.split('a') %}<{{ x | trim }}>{% endfor %}",
    "{{ messages | map(attribute='content') | join('a') }}",
    "{{ '%s|%s' % ('a', m.content) }}",
    "{{ '%5s' % m.content }}",
    "{{ '{}'.format(m.content) }}",
    "{{ '{:.1}'.format(m.content) }}",
    "{{ m }}{{ m.items() | list }}",
    "{{ 'abc'.replace('b', m.content) }}",
    "{{ 'abc'.replace(m.content, 'b') }}",
    "{{ 'abc' | replace(m.content, 'b') }}",
    "{{ 'abc'.startswith(('x', m.content)) }}",
    "{{ ' a '.strip(m.content) }}",
    "{{ messages | map(attribute='content') | map('trim') | join }}",
    "{{ messages | selectattr('content', 'equalto', 'a') | list | length }}",
    "{{ 'x' if m == messages[-1] }}",
    "{{ ','.join(m.content) }}",
    "{{ strftime_now(m.content) }}",
    "{{ 'abc'[m.content] }}",
    "{% set ns = namespace(t='') %}{% set ns.t = ns.t + m.content %}{{ ns.t | trim }}",
]


def _literal(draw: random.Random) -> str:
    return (
        "'"
        + draw.choice(["</think>", "<think>", " ", "\\n", "a", "b", "/think", "é", "<s>", "th", "k>", ""])
        + "'"
    )


def _expression(draw: random.Random, content: str, most: int) -> str:
    for _ in range(draw.randint(0, most)):
        content = "(" + content + draw.choice(OPERATIONS).replace("{l}", _literal(draw)) + ")"
    return content


def _template(draw: random.Random) -> str:
    content = draw.choice(
        ["m['content']", "m.content", "w(m.content)", "(m.content ~ '')", "('' + m.content)"]
    )
    parts = ["{{ m.content }}|"]  # so that nothing is dropped
    for _ in range(draw.randint(1, 2)):
        kind = draw.random()
        if kind < 0.5:
            parts.append("{{ " + _expression(draw, content, 2) + " }}")
        elif kind < 0.85:
            condition = draw.choice(CONDITIONS).format(c=_expression(draw, content, 1), l=_literal(draw))
            parts.append("{% if " + condition + " %}Y{% else %}N{% endif %}")
        else:
            parts.append(draw.choice(STATEMENTS))
    return "{% macro w(x) %}{{ x }}{% endmacro %}{% for m in messages %}[" + "".join(parts) + "]{% endfor %}"


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), CONVERSATION, CONVERSATION)
def test_no_template_gets_a_wrong_text_accepted(
    draw: random.Random, first: Messages, second: Messages
) -> None:
    source = _template(draw)
    template = ChatTemplate(source, SPECIALS, ["<s>"])
    for messages in (first, second):
        rendered, error = attempt(template, messages)
        assert error or rendered == theirs(source, messages), source


@pytest.mark.parametrize("operation", [*OPERATIONS, *STATEMENTS, *CONDITIONS])
def test_each_operation_is_right_or_refused(operation: str) -> None:
    """Every operation once for each of a few texts that tell right from wrong."""
    texts = ["", " ", "a", "abc", " a\nb ", "x</think>a", "5", "<b>é", "A b", "{}", "%d"]
    body = operation
    if operation in OPERATIONS:
        body = "{{ m.content" + operation.replace("{l}", "'a'") + " }}"
    elif operation in CONDITIONS:
        body = "{% if " + operation.format(c="m.content", l="'a'") + " %}Y{% endif %}"
    source = "{% for m in messages %}{{ m.content }}" + body + "{% endfor %}"
    template = ChatTemplate(source, SPECIALS, ["<s>"])
    for text in texts:
        for messages in ([("user", text)], [("user", text), ("assistant", text + "b")]):
            rendered, error = attempt(template, messages)
            assert error or rendered == theirs(source, messages)


THOUGHTS = "<think>\nfirst\n</think>\n\nsecond"


@pytest.mark.parametrize("name", ["qwen-3", "macro", "deepseek-3"])
def test_thoughts_are_cut_from_the_history(name: str) -> None:
    messages = [("user", "q"), ("assistant", THOUGHTS), ("user", "more")]
    text = ours(name).render(messages).text
    assert text == theirs(TEMPLATES[name], messages)
    assert "first" not in text
    assert "second" in text


def test_thoughts_of_the_last_answer_stay() -> None:
    messages = [("user", "q"), ("assistant", THOUGHTS)]
    assert "<think>\nfirst\n</think>\n\nsecond" in ours("qwen-3").render(messages).text
    assert ours("qwen-3").render(messages).text == theirs(TEMPLATES["qwen-3"], messages)


def test_the_words_of_a_user_do_not_decide_what_is_kept_of_an_answer() -> None:
    """transformers would keep the thoughts here, as after a tool's response."""
    sly = ("user", "<tool_response>x</tool_response>")
    harmless = [("user", "q"), ("assistant", "plain"), sly]
    assert ours("qwen-3").render(harmless).text == theirs(TEMPLATES["qwen-3"], harmless)
    error = refusal(ours("qwen-3"), [("user", "q"), ("assistant", THOUGHTS), sly])
    assert (error.error_code, error.param) == ("template_reads_content", "messages[2].content")
    asking = [("user", "what does </think> mean?"), ("assistant", "an end"), ("user", "</think>")]
    assert ours("qwen-3").render(asking).text == theirs(TEMPLATES["qwen-3"], asking)


def test_a_system_prompt_may_hold_the_templates_switches() -> None:
    for system in ("Be brief. /no_think", "/system_override Be brief.", "a /no_think b", "/th/no_thinkink"):
        messages = [("system", system), ("user", "/no_think"), ("assistant", "\n\nx")]
        assert ours("smollm-3").render(messages).text == theirs(TEMPLATES["smollm-3"], messages)


def test_a_control_token_that_a_template_looks_for_is_refused_where_it_matters() -> None:
    source = "{% for m in messages %}<s>{{ m.content.split('</s>')[0] }}{% endfor %}"
    template = ChatTemplate(source, SPECIALS, ["<s>", "</s>"])
    assert template.render([("assistant", "a<s>b")]).text == "<s>a<s>b"
    for role in ("user", "system"):
        assert refusal(template, [(role, "a</s>b")]).error_code == "template_reads_content"
    assert template.render([("assistant", "a</s>b")]).text == "<s>a"  # where it is cut


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\u2003", " x", "x\n"])
def test_empty_texts_and_white_space_decide_as_they_do_in_transformers(text: str) -> None:
    source = (
        "{% for m in messages %}[{% if m.content %}full{% endif %}{% if m.content | trim %}seen{% endif %}"
        "{{ m.content.lstrip('\\n') }}]{% endfor %}"
    )
    template = ChatTemplate(source, SPECIALS)
    for messages in (
        [("user", text)],
        [("user", "x"), ("assistant", text)],
        [("system", text), ("user", text)],
    ):
        assert template.render(messages).text == theirs(source, messages)


def test_stand_ins_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what a template raises, and text that looks like one is text."""
    source = "{{ raise_exception('no: ' + messages[0].content) }}"
    assert str(refusal(ChatTemplate(source, {}), [("user", "secret")])).endswith("conversation: no: ")
    monkeypatch.setattr(template_module.secrets, "randbelow", lambda _: 7)
    forged = "\U00100007" * 8 + "\U000f0000\U000f0000"
    messages = [("user", forged + "x"), ("assistant", forged + "</think>" + forged)]
    assert ours("macro").render(messages).text == theirs(TEMPLATES["macro"], messages)


def test_what_a_template_was_told_of_the_time_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}{{ messages[0].content }}", {})
    assert template.render([("user", "x")]).text == f"{datetime.now():%Y}x"

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2099, 1, 1)

    monkeypatch.setattr("transom.serving.template.datetime", Later)
    monkeypatch.setattr("transom.serving.sandbox.datetime", Later)
    assert template.render([("user", "x")]).text == "2099x"


def renderings(template: ChatTemplate) -> Callable[[], int]:
    calls = []
    plain = template._rendering
    template._rendering = lambda *args: (calls.append(1), plain(*args))[1]  # type: ignore[method-assign, return-value]
    return lambda: len(calls)


def test_a_template_runs_once_for_a_shape_of_conversation() -> None:
    template = ChatTemplate(TEMPLATES["qwen-3"], SPECIALS)
    count = renderings(template)
    for i in range(50):
        template.render([("system", f"rule {i}"), ("user", f"question {i}"), ("assistant", f"answer {i}")])
    assert count() <= 2
    for i in range(50):
        template.render(
            [("user", f"question {i}"), ("assistant", f"<think>\n{i}\n</think>\n\n{i}"), ("user", "x")]
        )
    assert count() <= 6
    for i in range(200):
        template.render([(("user", "assistant")[i >> bit & 1], "x") for bit in range(8)])
    assert len(template._outcomes) <= 128


def test_templates_that_look_for_words_without_end_are_refused() -> None:
    source = "{% for i in range(900) %}{{ (i ~ 'w') in m }}{% endfor %}{{ m }}".replace(
        "m", "messages[0].content"
    )
    error = refusal(ChatTemplate(source, {}), [("assistant", "".join(f"{i}w" for i in range(900)))])
    assert error.error_code == "refused"
    source = "{{ messages[0].content.replace('a', 'b') }}"
    assert refusal(ChatTemplate(source, {}), [("assistant", "ax" * 20_000)]).error_code == "refused"


def test_a_template_that_does_not_parse_is_a_broken_checkpoint() -> None:
    for source in (
        "{% for %}",
        "{{ x | no_such_filter }}",
        "{% generation %}",
        "{{ " + "(" * 9000,
        "x" * 70_000,
    ):
        with pytest.raises(CheckpointError, match="chat template"):
            ChatTemplate(source, {})


def test_directories_give_the_template_and_names_that_transformers_takes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from transom.checkpoint.tokenizer import export_tokenizer

    source = (
        "{{ bos_token }}{{ image_token }}{{ own_token is defined }}{{ messages[0].content }}"
        "{{ sep_token is defined }}"
    )
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<b>", "lstrip": False, "special": True},
        "own_token": "<own>",
        "add_bos_token": True,
        "extra_special_tokens": {"image_token": "<img>"},
        "chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": source}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    def both() -> tuple[str, str]:
        files = export_tokenizer(tmp_path)
        chat = [{"role": "user", "content": "x"}]
        reference = AutoTokenizer.from_pretrained(tmp_path)
        expected = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return ChatTemplate(files.chat_template, files.specials).render([("user", "x")]).text, expected

    assert both() == ("<b><img>TruexFalse",) * 2
    (tmp_path / "special_tokens_map.json").write_text(
        '{"bos_token": "<older>", "sep_token": {"content": "<s>"}}'
    )
    assert both() == ("<older><img>TruexTrue",) * 2
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"added_tokens_decoder": {}}))
    assert both() == ("<b><img>TruexFalse",) * 2
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("R{{ messages[0].content }}")
    assert export_tokenizer(tmp_path).chat_template == ""  # as transformers, which then asks for a name
    (tmp_path / "chat_template.jinja").write_text("J{{ messages[0].content }}")
    assert both() == ("Jx",) * 2
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("D{{ messages[0].content }}")
    assert both() == ("Dx",) * 2
    (tmp_path / "additional_chat_templates" / "default.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="UTF-8"):
        export_tokenizer(tmp_path)
