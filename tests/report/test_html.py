"""The page: nothing runs, nothing loads, nothing escapes, all is said in words and in a readable contrast."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from transom.report.finding import Example, Finding, not_run, share
from transom.report.html import page
from transom.report.metrics import EPSILON_METRIC
from transom.report.report import Frontier, FrontierPoint, Report

EVIL = '"><script>alert(1)</script><img src=//x onerror=y>&amp;\x00\u202e'
HIGH = share("exact Bayes", "token recovery", hits=70, n=100, baseline=0.1, cost_s=2, note="a note")
LOW = share("mask", "token recovery", hits=10, n=100, baseline=0.1, cost_s=2)
MISSING = not_run("beam", "token recovery", "no language to search with")
EXAMPLE = Example("a fine film", "a good tale", "a fine tale")
POINTS = tuple(
    FrontierPoint(label, setting, r, r - 0.02, r + 0.02, u, u - 0.05, u + 0.05, task)
    for task in ("sst2", "xsum")
    for label in ("words", "words + obfuscated")
    for setting, r, u in (("epsilon 1", 0.1, 0.6), ("epsilon 8", 0.7, 0.85))
)
VOID = {"meta", "circle", "line", "img", "link", "br"}


def report(*findings: Finding, **settings: object) -> Report:
    base = Report(
        kind="words",
        target={"target": "notes.txt", "epsilon": 3},
        findings=findings,
        created="2030-01-02T03:04:05Z",
        cost_s=120,
    )
    return replace(base, **settings)  # type: ignore[arg-type]


FULL = report(replace(HIGH, examples=(EXAMPLE,)), LOW, MISSING, frontier=Frontier(POINTS), gate=0.5)


class Reader(HTMLParser):
    """Tags with their attributes, text, and a check that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.texts.append(data.replace("\xa0", " "))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_order_and_the_words() -> None:
    read = Reader(page(FULL))
    text = " ".join(read.texts)
    parts = (
        "Not passed",
        "70.0 % of the replaced words can be read back",
        "What each attack recovers",
        "What it costs in use",
        "Findings",
        "Not run:",
        "no language to search with",
        "Examples",
        "fine",
        "What this does not prove",
        "Settings and cost",
        "2 run, 1 not run",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert len(read.named("h1")) == 1


def test_plots_are_said_in_words() -> None:
    read = Reader(page(FULL))
    spoken = [str(svg["aria-label"]) for svg in read.named("svg") if svg.get("role") == "img"]
    assert any(
        "exact Bayes: 70.0 %, 95 % interval 60.0 % to 78.8 %, guessing 10.0 %" in say for say in spoken
    )
    assert sum("epsilon 8: recovery 70.0 %" in say or "epsilon 8" in say for say in spoken) == 2  # two tasks
    outer = [svg for svg in read.named("svg") if "height" in svg]
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") or "width" not in svg for svg in outer)


def test_plots_show_the_figures() -> None:
    text = page(FULL)
    row = text[text.index('class="row over"') :]
    assert 'class="dot" cx="70.00%"' in row
    assert '<line class="guess" x1="10.00%"' in row
    assert '<line class="gate" x1="50.00%"' in row
    assert '<line class="span" x1="60.02%" x2="78.76%"' in row


def test_attacks_on_one_setting_stand_together() -> None:
    sweep = [replace(found, setting=f"epsilon {e}") for e in (1, 8) for found in (LOW, HIGH)]
    read = Reader(page(report(*sweep)))
    text = " ".join(read.texts).split("What each attack recovers")[1].split("Findings")[0]
    parts = ["epsilon 1", "exact Bayes", "mask", "epsilon 8", "exact Bayes", "mask"]
    places = [text.index(part, start) for part, start in zip(parts, (0, 0, 0, 1, 1, 1), strict=True)]
    assert places[:3] == sorted(places[:3])
    assert text.count("epsilon") == 2
    assert text.rindex("exact Bayes") > text.index("epsilon 8")
    assert "setting" not in [attributes.get("class") for attributes in Reader(page(FULL)).named("h3")]


def test_right_words_are_marked_where_they_were_hidden() -> None:
    text = page(FULL)
    assert 'a <span class="gone">good</span> <span class="gone">tale</span>' in text
    assert 'a <mark>fine</mark> <span class="gone">tale</span>' in text
    wrong = replace(HIGH, examples=(Example("a film", "a tale", "the play"),))
    assert "<s>the</s> <s>play</s>" in page(report(wrong))
    unaligned = replace(HIGH, examples=(Example("a b c", "d e", "a b"),))
    assert '<dd dir="auto">a b</dd>' in page(report(unaligned))


@pytest.mark.parametrize("kind", ["words", "epsilon", EVIL])
def test_nothing_escapes(kind: str) -> None:
    evil = Finding(
        name=EVIL,
        metric=EVIL,
        value=0.5,
        low=0.4,
        high=0.6,
        baseline=0.1,
        note=EVIL,
        examples=(Example(EVIL, EVIL, EVIL),),
    )
    points = tuple(replace(point, label=EVIL, setting=EVIL, task=EVIL) for point in POINTS)
    made = report(evil, not_run(EVIL, EVIL, EVIL), kind=kind, frontier=Frontier(points), target={EVIL: EVIL})
    read = Reader(page(made))
    assert not {tag for tag, _ in read.tags} & {"script", "img", "link", "iframe", "object", "a", "form"}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


HOSTILE = EVIL.replace("\x00", "") + "{{ 7 * 7 }}{% raw %}{# gone #} 5 % 'quoted'"
POINT = FrontierPoint("line", "setting", 0.1, 0.0, 0.2, 0.5, 0.4, 0.6, "task")


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(report(HIGH, kind=HOSTILE), id="kind"),
        pytest.param(report(HIGH, target={HOSTILE: 1}), id="setting's name"),
        pytest.param(report(HIGH, target={"target": HOSTILE}), id="setting"),
        pytest.param(report(HIGH, stopped=HOSTILE, gate=0.9), id="stopped"),
        pytest.param(report(HIGH, created=HOSTILE), id="created"),
        pytest.param(report(HIGH, frontier=Frontier((POINT,), HOSTILE)), id="frontier's note"),
        *(
            pytest.param(report(HIGH, frontier=Frontier((replace(POINT, **{name: HOSTILE}),))), id=name)
            for name in ("label", "setting", "task")
        ),
        *(
            pytest.param(report(replace(HIGH, **{name: HOSTILE}), LOW), id=f"finding's {name}")
            for name in ("name", "metric", "note", "setting")
        ),
        *(
            pytest.param(report(replace(MISSING, **{name: HOSTILE}), LOW), id=f"missing finding's {name}")
            for name in ("name", "metric", "setting", "reason")
        ),
        *(
            pytest.param(
                report(replace(HIGH, examples=(replace(EXAMPLE, **{name: HOSTILE}),))), id=f"example's {name}"
            )
            for name in ("original", "seen", "recovered")
        ),
        pytest.param(report(replace(HIGH, examples=(Example(*[HOSTILE] * 3),))), id="words of an example"),
    ],
)
def test_hostile_text_is_shown_as_it_stands(made: Report) -> None:
    """In whatever field: it is text or an attribute's value, word for word, and adds no tag to a page."""
    read, plain = Reader(page(made)), Reader(page(report(HIGH, LOW, MISSING)))
    values = [value or "" for _, attributes in read.tags for value in attributes.values()]
    said = " ".join(read.texts + values)
    assert " ".join(HOSTILE.split()) in " ".join(said.replace("\xa0", " ").split())
    shown = {"strong", "details", "summary", "ol", "mark", "s", "figure", "figcaption", "h3", "rect", "g"}
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in plain.tags} | shown
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


def test_nothing_loads_and_nothing_runs() -> None:
    text = page(FULL)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|\bsrc=|\bhref=|https?:", text)


def test_a_lone_surrogate_can_still_be_written() -> None:
    odd = replace(HIGH, examples=(Example("\ud800", "x", "y"),))
    assert page(report(odd)).encode("utf-8", "replace")


def test_an_epsilon_has_its_own_words() -> None:
    claim = Finding(name="distinguisher", metric=EPSILON_METRIC, value=1.5, low=1.5, baseline=1.0, n=10)
    text = " ".join(Reader(page(report(claim, kind="epsilon"))).texts)
    assert "The claim of epsilon 1 is broken." in text
    assert "Only two inputs were tried" in text
    assert "95 % interval" not in text.split("Findings")[0]


def test_nothing_measured_still_makes_a_page() -> None:
    text = " ".join(Reader(page(report(MISSING, gate=0.1))).texts)
    assert "Nothing was measured" in text
    assert "Not passed" in text
    assert "What each attack recovers" not in text
    assert Reader(page(report())).named("h1")


def colours(css: str) -> list[dict[str, str]]:
    """The colours of the light, dark and print themes, each on top of the light one."""
    themes = [
        dict(re.findall(r"--([\w]+): (#[0-9a-f]{3,6})", block))
        for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    return [themes[0], *(themes[0] | theme for theme in themes[1:])]


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    levels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_keeps_a_readable_contrast_in_every_theme() -> None:
    """At least 4.5 to 1, as WCAG 2.2 asks of text; lines of the grid are not text."""
    css = files("transom.report").joinpath("page.css").read_text("utf-8")
    themes = colours(css)
    assert len(themes) == 3
    for theme in themes:
        pairs = [(tone, ground) for tone in ("ink", "soft") for ground in ("paper", "card")]
        pairs += [(tone, "paper") for tone in ("above", "over", "level", "good", "s0", "s1", "s2")]
        for tone, ground in [*pairs, ("ink", "mark")]:
            light, dark = sorted((luminance(theme[tone]), luminance(theme[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (tone, ground)
