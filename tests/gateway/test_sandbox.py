"""What a hostile chat template may spend: work, text, depth; and what it may reach."""

# ruff: noqa: E501
from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import CheckpointError, RefusedError
from transom.serving import content as content_module
from transom.serving.sandbox import _WIDTH, Sandbox
from transom.serving.template import ChatTemplate

# Each would take minutes or gigabytes if it were let; what is in front of "@" is run once, the rest 99,999 times.
ENDLESS = [
    "@{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}",
    "@{{ 'x' * 60000 }}",
    "{{ 'a' * 10 ** 9 }}",
    "{% set a = 'a' * 1000000 %}{% set b = a * 1000000 %}",
    "{% set a = [1] * 10 ** 9 %}",
    "{{ 2 ** 100000000 }}",
    "{% set ns = namespace(x=3) %}@{% set ns.x = ns.x * ns.x %}",
    "{% set ns = namespace(x='a') %}@{% set ns.x = ns.x + ns.x %}",
    "{% set ns = namespace(x='a') %}@{% set ns.x = ns.x ~ ns.x %}",
    "{% set ns = namespace(x=[1]) %}@{% set ns.x = ns.x + ns.x %}",
    "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "{{ 'a'.center(10 ** 9) }}",
    "{{ 'a'.zfill(10 ** 9) }}",
    "{{ ('\t' * 100000).expandtabs(60000) }}",
    "{{ (1).to_bytes(10 ** 9, 'big') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}",
    "{% set a = 'a' * 100000 %}{{ a | replace('a', a) }}",
    "{% set a = 'a' * 100000 %}{{ a.translate({97: a}) }}",
    "{% set a = 'a' * 1000000 %}{{ ([a] * 100000) | join }}",
    "{% set a = 'a' * 1000000 %}{{ a.join(['b'] * 100000) }}",
    "{% set a = 'a' * 1000000 %}{{ range(99999) | map('replace', 0, a) | join }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x] * 10 %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x] * 10 %}{% endfor %}{{ ns.x | tojson }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x] * 10 %}{% endfor %}{{ ns.x ~ '' }}",
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(30) %}{% set ns.x = [ns.x] * 10 %}"
    "{% set ns.y = [ns.y] * 10 %}{% endfor %}{{ ns.x == ns.y }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% for x in range(9) recursive %}{% if loop.depth < 60 %}{{ loop(range(9)) }}{% endif %}{% endfor %}",
    "{% set a = range(99999) | list %}@{% set b = a[:] %}",
    "{% set a = range(99999) | list %}@{{ a.index(99998) }}",
    "@{{ 'x' in range(99999) }}",
    "{% set a = 'a' * 16000000 %}{% set b = 'a' * 16000000 %}@{{ a == b }}",
    "{% set a = 'a' * 16000000 %}@{{ 'b' in a }}",
    "{% set a = 'a' * 1000000 %}@{% set b = a.upper() %}",
    "{% set a = 'a' * 1000000 %}@{% set b = a[::-1] %}",
    "@{% set x = range(99999) | sort %}",
    "@{% set x = dict.fromkeys(range(99999)) %}",
    "{% set ns = namespace(l=[]) %}@{% set ns.l = ns.l + ['x' * 100000 ~ loop.index] %}",
    "{{ [[1]] | tojson(indent=10 ** 9) }}",
    "{{ 'a\n' * 1000 | indent(10 ** 9) }}",
    "@{{ (loop.index ~ '') in messages[0].content }}",
    "{{ [1] | batch(10 ** 9, 0) | list }}",
    "{{ lipsum(10 ** 6) }}",
    "{% set a = ':' * 100000 %}@{{ a % () }}",
    "{% set a = ':' * 100000 %}@{{ a.format() }}",
    "@{% set a = 'a ' * 10000 | title %}",
    "{% set a = 'a' * 100000 %}{{ a | sort }}",
    "{% set a = ['A' * 3000000] * 2 %}{{ a | sort }}",
    "{% set a = ['A' * 3000000] * 2 %}{{ a | unique | list }}",
    "{% set a = 'a' * 60000 %}{{ a | list }}",
    "{% set a = 'a\n' * 200000 %}{{ a | indent }}",
]


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="a%:{}1*", max_size=14))
def test_wide_fields_are_found_whatever_stands_around_them(text: str) -> None:
    """Against the rule spelled out: four digits or a star after `%` or `:`, with no letter in between."""
    after = [re.split("[a-zA-Z]", text[i + 1 :])[0] for i, char in enumerate(text) if char in "%:"]
    nested = any("{" in text[i + 1 :].partition("}")[0] for i, char in enumerate(text) if char == "{")
    assert bool(_WIDTH.search(text)) == (nested or any(re.search("[0-9]{4}|[*]", part) for part in after))


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "_STEPS", 30_000)


@pytest.mark.parametrize("source", ENDLESS)
@pytest.mark.usefixtures("small_budget")
def test_work_text_and_memory_of_a_template_are_bounded(source: str) -> None:
    before, at, after = source.partition("@")
    looped = "{% for i in range(99999) %}" + after + "{% endfor %}" if at else ""
    template = ChatTemplate(before + looped + "{{ messages[0].content }}", {})
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as caught:
            template.render([("user", "hello")])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.error_code == "refused"
    assert most < 100 << 20


@pytest.mark.parametrize(
    "source",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{{ ''.__class__.__mro__[1] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% set n = namespace(_x=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ messages[0].content.run.spend(-9) }}",
        "{{ messages[0].content._run.spend(-9) }}",
        "{{ messages[0].content.format.__globals__['x'] }}",
    ],
)
def test_depth_and_reaching_out_are_refused(source: str) -> None:
    with pytest.raises(RefusedError):
        ChatTemplate(source + "{{ messages[0].content }}", {}).render([("user", "hello")])


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "1+" * 20_000 + "1 }}",
        "{{ " + "not " * 10_000 + "a }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{% if a %}" * 2000 + "{% endif %}" * 2000,
        "{% autoescape true %}{{ messages[0].content }}{% endautoescape %}",
        "x" * 100_000,
    ],
)
def test_sources_that_cannot_be_compiled_are_broken_checkpoints(source: str) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTemplate(source, {})


def test_constant_expressions_are_not_computed_at_the_start() -> None:
    for source in ("{{ 'a' * 10 ** 9 }}", "{{ 10 ** 99999999 }}", "{{ 'a' | replace('a', 'b' * 10 ** 9) }}"):
        ChatTemplate(source, {})


def test_long_conversations_are_within_the_budget() -> None:
    source = (
        "{% set ns = namespace(all='') %}{% for m in messages %}{% if m.role != 'x' and loop.index0 % 2 >= 0 %}"
        "{% set ns.all = ns.all + '<s>' + m.content | trim %}{% endif %}{% endfor %}{{ ns.all }}"
    )
    messages = [("user", f" {i} ") for i in range(1500)]
    assert ChatTemplate(source, {}).render(messages).text == "".join(f"<s>{i}" for i in range(1500))


def test_every_method_of_strings_is_decided_on() -> None:
    """A method that Python adds is refused, not inherited."""
    own = vars(content_module.Content)
    inherited = {name for name in dir(str) if name not in own and name not in dir(object)}
    assert inherited == {"__add__", "__mul__", "__rmul__", "__mod__", "__rmod__", "__getnewargs__"}
    assert Sandbox.intercepted_binops >= {"+", "*", "%"}
