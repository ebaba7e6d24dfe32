"""The table for choosing a preset: measures by rows, presets by columns, with places and marked texts.

Threat model and what it does not protect: those of `choice`.
Source: own design.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from transom.audit.choice import ANOTHER_LANGUAGE, Exposure, unknown_share
from transom.audit.exposure import NAMESAKE, Word
from transom.report.comparison import MOST_SPOTS, Column, Comparison, Fate, Mark, Row, Spot
from transom.report.finding import Finding
from transom.report.metrics import figure
from transom.report.report import Frontier

_BLIND = (
    "the second opinion knows what public lists know, and counts nothing else: your own lists and "
    "recognisers (--lists, --recogniser) see more"
)
SHOWN_TEXTS = 12
SHOWN_CHARS = 1500  # of a text on the page
LF = "\n"
Place = tuple[str, str]  # where a text stands, and the text; the text of a whole file stands nowhere


def compare(exposures: Sequence[Exposure], texts: Sequence[Place], *, opinions: bool = False) -> Comparison:
    """The table of these presets over `texts`; `opinions`: the user's lists or recognisers were asked."""
    shown = _most_telling(exposures)
    return Comparison(
        tuple(_column(one, texts, shown) for one in exposures),
        tuple(chain(_exposed(exposures, opinions=opinions), _kept(exposures), _costs(exposures))),
        (
            *language_note(exposures),
            *([] if opinions else [_BLIND]),
            *(f"{one.preset}: {one.read.note}" for one in exposures if one.read.note),
        ),
    )


def with_utility(found: Comparison | None, frontier: Frontier | None) -> Comparison | None:
    """The same with a row for each task that was measured, and model."""
    if found is None or frontier is None:
        return found
    names = [column.name for column in found.columns]
    rows = []
    for task, label in dict.fromkeys((point.task, point.label) for point in frontier.points):
        at = {p.setting: p.utility for p in frontier.points if (p.task, p.label) == (task, label)}
        plain = at.get("plain text")
        measure = f"utility: {task} ({label}" + (")" if plain is None else f"; plain {plain:.0%})")
        values = tuple(at.get(name) for name in names)
        rows.append(Row(measure, tuple("-" if v is None else f"{v:.0%}" for v in values), values))
    return Comparison(found.columns, (*found.rows, *rows), found.notes)


def _exposed(exposures: Sequence[Exposure], *, opinions: bool) -> Iterator[Row]:
    def readable(one: Exposure) -> int:
        return one.readable.total()

    yield _of("private, still readable", exposures, readable, lambda one: one.private.total())
    for kind in sorted({kind for one in exposures for kind in one.readable}):
        yield Row(kind, *_shares([(one.readable[kind], one.private[kind]) for one in exposures]), part=True)
    if opinions:
        listed = [
            (one.count(lambda word: word.readable and word.claimed), readable(one)) for one in exposures
        ]
        yield Row("of these your lists would hide", *_shares(listed), part=True)
    if any(of for _, of in (one.namesakes for one in exposures)):
        pairs = [one.namesakes for one in exposures]
        yield Row("capitals that may be names, readable", *_shares(pairs))
    yield _of("rare words that pass", exposures, lambda one: one.rare_passing, lambda one: len(one.words))
    yield _found("an attacker reads, by weight", exposures, lambda one: one.read)
    values = tuple(one.read.baseline for one in exposures)
    yield Row("of it, what passes", tuple(map(_share, values)), values, part=True)
    yield _number("placeholders a text", exposures, lambda one: _mean(one, _hidden))
    yield _number("words drawn a text", exposures, lambda one: _mean(one, _drawn))


def _kept(exposures: Sequence[Exposure]) -> Iterator[Row]:
    def ordinary(one: Exposure) -> int:
        return one.count(lambda word: word.ordinary)

    def instructions(one: Exposure) -> int:
        return one.count(_instruction)

    yield _of("changed without need", exposures, lambda one: one.count(lambda word: word.changed), ordinary)
    if any(map(instructions, exposures)):
        kept = [one.count(lambda word: _instruction(word) and word.shown) for one in exposures]
        pairs = list(zip(kept, map(instructions, exposures), strict=True))
        yield Row("instruction words kept", *_shares(pairs))
    yield _found("likeness of content words", exposures, lambda one: one.findings()[-1])


def _hidden(word: Word) -> bool:
    return word.action == "placeholder"


def _drawn(word: Word) -> bool:
    return word.action not in ("placeholder", "pass")


def _instruction(word: Word) -> bool:
    return word.kind == "instruction"


def _mean(one: Exposure, which: Callable[[Word], bool]) -> float:
    return one.count(which) / max(1, len(one.texts))


def _costs(exposures: Sequence[Exposure]) -> Iterator[Row]:
    mean = "epsilon a text, mean"
    yield _number(mean, exposures, lambda one: sum(one.epsilon_S) / max(1, len(one.epsilon_S)))
    yield _number("epsilon of the costliest text", exposures, lambda one: max(one.epsilon_S, default=0.0))


def _of(
    measure: str,
    exposures: Sequence[Exposure],
    hits: Callable[[Exposure], int],
    of: Callable[[Exposure], int],
) -> Row:
    return Row(measure, *_shares([(hits(one), of(one)) for one in exposures]))


def _shares(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[str, ...], tuple[float | None, ...]]:
    """Cells and values of shares, given as hits and trials."""
    values = tuple(hits / trials if trials else None for hits, trials in pairs)
    cells = (
        "none there" if value is None else f"{hits:,} of {trials:,} ({_share(value)})"
        for (hits, trials), value in zip(pairs, values, strict=True)
    )
    return tuple(cells), values


def _number(measure: str, exposures: Sequence[Exposure], value: Callable[[Exposure], float]) -> Row:
    values = tuple(map(value, exposures))
    cells = tuple(f"{one:,.1f}" if 0 < one < 1e4 else f"{one:,.0f}" for one in values)
    return Row(measure, cells, tuple(one if math.isfinite(one) else None for one in values))


def _found(measure: str, exposures: Sequence[Exposure], finding: Callable[[Exposure], Finding]) -> Row:
    values = tuple(finding(one).value for one in exposures)
    return Row(measure, tuple(map(_share, values)), values)


def _share(value: float | None) -> str:
    return "-" if value is None else figure("", value)


def language_note(exposures: Sequence[Exposure]) -> Iterator[str]:
    """That the text reads like another language than the policy's, if it does."""
    unknown = max((unknown_share(one.texts) for one in exposures), default=0.0)
    if unknown >= ANOTHER_LANGUAGE:
        language = exposures[0].sanitizer.policy.language
        yield (
            f"{unknown:.0%} of the letters stand in words that neither vocabulary nor lists know: the text "
            f"reads like another language than the policy's ({language}), and its figures say little"
        )


def _column(one: Exposure, texts: Sequence[Place], shown: Sequence[int]) -> Column:
    readable: list[Spot] = []
    changed: list[Spot] = []
    for (where, text), words in zip(texts, one.texts, strict=True):
        for word in words:
            if word.readable and len(readable) < MOST_SPOTS:
                readable.append(_spot(where, text, word, word.private))
            elif word.changed and len(changed) < MOST_SPOTS:
                changed.append(_spot(where, text, word, word.kind))
    marked = tuple((texts[i][0], tuple(_marks(texts[i][1], one.texts[i]))) for i in shown)
    return Column(one.preset, tuple(readable), tuple(changed), marked)


def _spot(where: str, text: str, word: Word, kind: str) -> Spot:
    if where:
        place = f"{where}:{word.start + 1}"
    else:  # a whole file
        place = f"{text.count(LF, 0, word.start) + 1}:{word.start - text.rfind(LF, 0, word.start)}"
    return Spot(place, text[word.start : word.end], kind, word.claimed)


def _marks(text: str, words: Sequence[Word]) -> Iterator[Mark]:
    """A text's beginning, stretch by stretch."""
    at, end = 0, min(len(text), SHOWN_CHARS)
    for word in words:
        if word.end > end or word.start < at:
            continue
        hidden = word.action == "placeholder"
        if word.readable:
            fate: Fate = "maybe" if word.private == NAMESAKE else "readable"
            mark = Mark(fate, text[word.start : word.end], word.private)
        elif word.action == "pass":
            continue
        elif word.changed:
            mark = Mark("needless", text[word.start : word.end], word.output)
        else:
            mark = Mark("placeholder" if hidden else "drawn", text[word.start : word.end], word.output)
        yield Mark("", text[at : word.start])
        yield mark
        at = word.end
    yield Mark("", text[at:end] + (" …" if end < len(text) else ""))


def _most_telling(exposures: Sequence[Exposure]) -> list[int]:
    """The texts with most to see: what is readable under some preset, then what is private."""

    def worth(i: int) -> tuple[int, int]:
        words = [word for one in exposures for word in one.texts[i]]
        return sum(word.readable for word in words), sum(bool(word.private) for word in words)

    numbers = range(len(exposures[0].texts)) if exposures else range(0)
    return sorted(sorted(numbers, key=worth, reverse=True)[:SHOWN_TEXTS])
