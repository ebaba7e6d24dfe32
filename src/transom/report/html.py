"""A report as one HTML page: no script, no external resource, light and dark, narrow, wide and on paper.

Order: the verdict, recovery of each attack, the frontier where there is one, the findings, examples, what the
audit does not prove, settings and cost.
Threat model: names, notes and audited text may hold anything; all of it is escaped, and the page's own policy
forbids it to run or to load anything. The page shows audited text: it is for the auditor's eyes.
Does not protect against: who the auditor gives it to.
Source: own design; contrast as in WCAG 2.2, criterion 1.4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.metadata import version
from importlib.resources import files

from transom.report.charts import frontier_chart, mark, recovery_chart
from transom.report.finding import MAX_EXAMPLES, Example, Finding
from transom.report.report import EPSILON_METRIC, Report, figure, span

_KINDS = {
    "words": "sanitised words",
    "embeddings": "embeddings",
    "adapter": "a fine-tuned adapter",
    "checkpoint": "an obfuscated checkpoint",
    "traffic": "traffic of obfuscated ids",
    "epsilon": "a claim of epsilon",
}
_METRICS = {
    "token recovery": "the share of replaced words whose original is named",
    "ttrsr": "the share of tokens named rightly (text token recovery success rate)",
    "token F1": "how far the named tokens are those of the text: of precision and recall, the harmonic mean",
    "BLEU-4": "likeness to the original text, by runs of up to four tokens",
    "cosine": "likeness to the original embedding",
    "members found at 1 % false alarms": "the share of training texts recognised when one other text in a "
    "hundred is taken for one",
    "AUC": "how often a training text looks more like one than another text does; guessing gives one half",
    EPSILON_METRIC: "what the samples certify, with the confidence that the note states",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LIMITS = (
    "A low figure says that these attacks failed within their budgets. A better one may exist, or be found.",
    "Intervals cover the chance in this sample. Texts of another kind may be easier to read than these.",
    "An attacker who knows more than was assumed reads more: the author, the topic, a copy of the text.",
    "What an attack that was not run would have found is unknown.",
)
_EPSILON_LIMITS = (
    "Only two inputs were tried. Another pair may break the claim.",
    "Samples certify no more than a lower bound: the true epsilon is at least that, and may be far above.",
    "Events that no learned score shows, and draws that share state between calls, go unseen.",
)


def page(report: Report) -> str:
    """The whole page. Every text in it is escaped."""
    sections = (
        _chart(report),
        _frontier(report),
        _findings(report),
        _examples(report),
        _limits(report),
        _settings(report),
    )
    css = files("transom.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<title>Audit of {_what(report)}: {escape(report.headline)}</title>\n<style>\n{css}</style></head>\n"
        f"<body>{_header(report)}\n<main>{''.join(filter(None, sections))}</main></body></html>\n"
    )


def _what(report: Report) -> str:
    return escape(_KINDS.get(report.kind, report.kind))


def _header(report: Report) -> str:
    label, mark = {True: ("Passed", "good"), False: ("Not passed", "bad"), None: ("", "")}[report.passed]
    badge = f'<strong class="badge {mark}">{label}</strong>' if label else ""
    lead = "".join(f"<p>{_unbroken(text)}</p>" for text in (*report.details, report.gate_sentence) if text)
    day, _, time = report.created.partition("T")
    return (
        f'<header><p class="eyebrow">Audit of {_what(report)} <span>'
        f'<time datetime="{escape(report.created)}">{escape(day)} {escape(time[:5])} UTC</time></span></p>'
        f"<h1>{badge}{_unbroken(report.headline)}</h1>"
        f'<div class="lead">{lead}</div></header>'
    )


def _unbroken(text: str) -> str:
    """Escaped, with figures and their units on one line."""
    return escape(text).replace(" %", "&nbsp;%")


def _section(title: str, body: str, lead: str = "") -> str:
    lead = f'<p class="note">{lead}</p>' if lead else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>\n"


def _chart(report: Report) -> str:
    chart = recovery_chart(report.findings, report.gate)
    if not chart:
        return ""
    if report.kind == "epsilon":
        return _section("Certified epsilon", chart, "The true epsilon is at least the value.")
    return _section("What each attack recovers", chart, "Left is better: less is read.")


def _frontier(report: Report) -> str:
    if report.frontier is None or not report.frontier.points:
        return ""
    lead = "Up is more useful, left is more private. Crosses are 95 % intervals; utility in percent. "
    lead += escape(report.frontier.note)
    return _section("What it costs in use", frontier_chart(report.frontier), lead)


def _findings(report: Report) -> str:
    heads = (
        "Attack",
        "Value",
        "95 % interval",
        "Claimed" if report.kind == "epsilon" else "Guessing",
        "Trials",
        "Seconds",
    )
    head = "".join(
        f'<th scope="col" role="columnheader"{"" if at == 0 else " class=num"}>{text}</th>'
        for at, text in enumerate(heads)
    )
    several = len({found.metric for found in report.findings}) > 1
    rows = "".join(_finding(found, report.gate, heads, with_metric=several) for found in report.findings)
    table = (
        f'<table role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table>'
    )
    used = {found.metric.lower() for found in report.findings}
    meanings = [
        f"<b>{metric}</b>: {meaning}." for metric, meaning in _METRICS.items() if metric.lower() in used
    ]
    return _section("Findings", table, " ".join([escape(report.standing), *meanings]).strip())


def _finding(found: Finding, gate: float | None, heads: tuple[str, ...], *, with_metric: bool) -> str:
    note = "; ".join(filter(None, (found.metric if with_metric else "", found.note)))
    name = f'<th scope="row" role="rowheader">{escape(found.label)}<small>{escape(note)}</small></th>'
    if found.value is None:
        reason = f'<td role="cell" class="reason" colspan="5"><b>Not run:</b> {escape(found.reason)}</td>'
        return f'<tr role="row" class="missing">{name}{reason}</tr>'
    guess = "" if found.baseline is None else figure(found.metric, found.baseline)
    cells = (figure(found.metric, found.value), span(found), guess, f"{found.n:,}", f"{found.cost_s:,.1f}")
    data = "".join(
        f'<td role="cell" class="num" data-label="{head}">{escape(cell)}</td>'
        for head, cell in zip(heads[1:], cells, strict=True)
    )
    return f'<tr role="row" class="{mark(found, gate)}">{name}{data}</tr>'


def _examples(report: Report) -> str:
    """The examples of each attack that has some, strongest first and open."""
    shown = sorted(
        (found for found in report.findings if found.examples), key=lambda found: -(found.value or 0)
    )
    if not shown:
        return ""
    blocks = "".join(
        f"<details{' open' * (found is shown[0])}><summary>{escape(found.label)}"
        f' <span class="metric">{figure(found.metric, found.value or 0.0)}</span></summary>'
        f'<ol class="examples">{"".join(map(_example, found.examples[:MAX_EXAMPLES]))}</ol></details>'
        for found in shown
    )
    lead = (
        'Of the words that were <span class="gone">replaced</span>, some are <mark>read back</mark> and some '
        "<s>named wrongly</s>. These are texts of the auditor's own: pass this page on with care."
    )
    return _section("Examples", blocks, lead)


def _example(example: Example) -> str:
    texts = (example.original, example.seen, example.recovered)
    lines = zip(("Original", "Seen", "Recovered"), _aligned(*texts) or map(escape, texts), strict=True)
    parts = "".join(f'<div><dt>{label}</dt><dd dir="auto">{text}</dd></div>' for label, text in lines)
    return f"<li><dl>{parts}</dl></li>"


def _aligned(original: str, seen: str, recovered: str) -> tuple[str, str, str] | None:
    """The three texts with their words marked; None where they do not align word by word."""
    words = [text.split() for text in (original, seen, recovered)]
    if len({len(some) for some in words}) > 1:
        return None
    marked = [
        (escape(truth), *_pair(truth, sight, guess)) for truth, sight, guess in zip(*words, strict=True)
    ]
    first, second, third = (" ".join(column) for column in zip(*marked, strict=True)) if marked else ("",) * 3
    return first, second, third


def _pair(truth: str, sight: str, guess: str) -> tuple[str, str]:
    """A word as it was seen and as it was read, marked by what became of it."""
    gone = f'<span class="gone">{escape(sight)}</span>'
    if sight == truth:
        return escape(sight), escape(guess) if guess == truth else f"<s>{escape(guess)}</s>"
    if guess == truth:
        return gone, f"<mark>{escape(guess)}</mark>"
    return gone, gone if guess == sight else f"<s>{escape(guess)}</s>"


def _limits(report: Report) -> str:
    limits = _EPSILON_LIMITS if report.kind == "epsilon" else _LIMITS
    items = "".join(f"<li>{limit}</li>" for limit in limits)
    return _section("What this does not prove", f'<ul class="limits">{items}</ul>')


def _settings(report: Report) -> str:
    ran = sum(found.status == "run" for found in report.findings)
    cost: Mapping[str, object] = {
        "attacks": f"{ran} run, {len(report.findings) - ran} not run",
        "cost": f"{report.cost_s / 60:.1f} minutes" if report.cost_s > 90 else f"{report.cost_s:.1f} seconds",
        "transom": version("transom"),
    }
    gate = {} if report.gate is None else {"gate": report.gate}
    rows = "".join(
        f"<div><dt>{escape(str(key).replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd></div>"
        for key, value in (*report.target.items(), *gate.items(), *cost.items())
    )
    return _section("Settings and cost", f'<dl class="settings">{rows}</dl>')


def _plain(value: object) -> str:
    """A setting as people write it."""
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
