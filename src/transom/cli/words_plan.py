"""`transom words plan FILE`: a preset and a cap for the user's own texts, and what each preset costs.

Every preset sanitises the texts here, as `transom words sanitize` would; nothing is sent and nothing charged.
The preset that is proposed is the mildest that leaves little readable: `entities`, or `sensitive` where many
texts hold words of sensitive fields. `words` is never proposed: what it buys, deniable ordinary words, and
what it takes from answers is for the user to weigh. The cap is what so many texts cost, with a margin.
Threat model and what it does not protect: a cap bounds the sum of epsilons that an account ever spends; a sum
beyond a few units promises nothing about a whole text, only about how many words were drawn.
Source: sequential composition, Dwork and Roth 2014, theorem 3.16; the margin is two standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from transom.audit.choice import Exposure, expose
from transom.audit.choice_table import language_note
from transom.audit.exposure import Opinion
from transom.cli.options import GATEWAY_CAP, Json, ListOptions, PolicyFile, sanitizer_under
from transom.cli.output import answer, progress
from transom.cli.texts import FileOptions
from transom.config import Setting
from transom.privacy.kinds import FIELDS
from transom.privacy.presets import PRESETS

SENSITIVE_SHARE = (
    0.05  # of texts with a readable word of a sensitive field, from which `sensitive` is proposed
)
_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Cost:
    """What one preset costs and leaves: means over texts, and the costliest one."""

    preset: str
    epsilon: float
    largest: float
    spread: float
    word_epsilon: float
    drawn: float
    placeholders: float
    changed: float
    readable: int
    private: int
    sensitive_texts: float

    @classmethod
    def of(cls, one: Exposure) -> Cost:
        """The cost of a preset over its texts."""
        costs, texts = one.epsilon_S, len(one.texts)
        mean = sum(costs) / texts
        fields = sum(any(word.readable and word.private in FIELDS for word in words) for words in one.texts)
        ordinary = one.count(lambda word: word.ordinary)
        return cls(
            preset=one.preset,
            epsilon=mean,
            largest=max(costs),
            spread=math.sqrt(sum((cost - mean) ** 2 for cost in costs) / max(1, texts - 1)),
            word_epsilon=one.sanitizer.word_epsilon,
            drawn=one.count(lambda word: word.action not in ("pass", "placeholder")) / texts,
            placeholders=one.count(lambda word: word.action == "placeholder") / texts,
            changed=one.count(lambda word: word.changed) / max(1, ordinary),
            readable=one.readable.total(),
            private=one.private.total(),
            sensitive_texts=fields / texts,
        )

    def of_questions(self, questions: int) -> float:
        """What so many texts cost: their mean, with a margin; no less than the costliest one."""
        margin = _DEVIATIONS * self.spread * math.sqrt(questions)
        return max(questions * self.epsilon + margin, self.largest)

    def fit(self, cap: float) -> float:
        """How many texts fit into a cap on average."""
        return math.inf if not self.epsilon else math.floor(cap / self.epsilon)


def plan(
    file: Annotated[Path, typer.Argument(help="Your text: .txt, .csv, .tsv, .jsonl, .json, .parquet, or -.")],
    *,
    questions: Annotated[
        int, Setting("Texts that one person sends in the time that a cap is for.", least=1)
    ] = 50,
    cap: Annotated[float | None, Setting("Also say how many texts fit into this cap.", least=0)] = None,
    changes: PolicyFile,
    listing: ListOptions,
    where: FileOptions,
    epsilon: Annotated[
        float | None, Setting("Epsilon a drawn word; overrides the presets'.", least=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose a preset and a cap for your texts, and say what each costs. Nothing is sent or charged."""
    claims, sample = listing.claims(), where.sample(file)
    texts = [one.text for one in sample.texts]
    exposures = []
    with progress("reading", len(PRESETS), quiet=as_json) as meter:
        for name in PRESETS:
            sanitizer = sanitizer_under(changes, name, epsilon, claims)
            exposures.append(expose(name, sanitizer, texts, Opinion(sanitizer.policy)))
            meter.advance(1)
    costs = [Cost.of(one) for one in exposures]
    chosen, reasons = proposed(costs)
    limit = _rounded(chosen.of_questions(questions)) if chosen.epsilon else 0.0
    notes = [*reasons, *_told(chosen, questions, limit, cap), *language_note(exposures)]
    record: dict[str, Any] = {
        "texts": len(texts),
        "texts_in_all": sample.in_all,
        "preset": chosen.preset,
        "cap": limit,
        "questions": questions,
        "presets": {one.preset: _record(one, questions, cap) for one in costs},
        "reasons": notes,
    }
    if not as_json:
        Console(highlight=False).print(_table(costs, questions, f"{file}: {sample.told}"))
    answer(record, "\n".join(notes), as_json=as_json)


def proposed(costs: Sequence[Cost]) -> tuple[Cost, list[str]]:
    """The preset that suits, and why."""
    by_name = {one.preset: one for one in costs}
    mild = by_name["entities"]
    share = mild.sensitive_texts
    if share < SENSITIVE_SHARE:
        return mild, [
            f"Proposed preset: entities. {share:.0%} of the texts hold a word of a sensitive field that it "
            f"would leave readable (from {SENSITIVE_SHARE:.0%} on, sensitive is proposed), it changes "
            f"{mild.changed:.1%} of the ordinary words, and it costs {mild.epsilon:g} epsilon a text."
        ]
    strict = by_name["sensitive"]
    return strict, [
        f"Proposed preset: sensitive. {share:.0%} of the texts hold words of health, money, religion, "
        "politics, origin, sexuality, crime or family that entities would leave readable; sensitive leaves "
        f"some in {strict.sensitive_texts:.0%}, and changes {strict.changed:.1%} of the ordinary words "
        f"(entities {mild.changed:.1%})."
    ]


def _told(chosen: Cost, questions: int, limit: float, cap: float | None) -> list[str]:
    """What the proposed cap is and means."""
    if not chosen.epsilon:
        said = ["No cap is needed: nothing is drawn, so nothing is spent, however many texts are sent."]
        return said + ([f"A cap of {cap:g} never stops it."] if cap is not None else [])
    words, odds = math.floor(limit / chosen.word_epsilon), math.exp(chosen.word_epsilon)
    said = [
        f"Proposed cap: {limit:g} a person. {questions:,} texts cost {questions * chosen.epsilon:,.0f} on "
        f"average, {chosen.epsilon:.1f} each; the rest is a margin for long ones (the costliest here is "
        f"{chosen.largest:g}).",
        f"What it means: one draw at epsilon {chosen.word_epsilon:g} moves the odds between two words of a "
        f"group by at most {odds:,.0f} to 1, and a cap of {limit:g} allows {words:,} such draws in all that "
        "a person ever sends. It bounds how much is said; it promises nothing about a whole text.",
        f"The gateway's own cap is {GATEWAY_CAP:g}: {chosen.fit(GATEWAY_CAP):,} texts on average.",
    ]
    if cap is not None:
        least = math.floor(cap / chosen.largest)
        said.append(
            f"A cap of {cap:g} fits {chosen.fit(cap):,} texts on average, and {least:,} that are as costly "
            "as the costliest."
        )
    return said


def _record(one: Cost, questions: int, cap: float | None) -> dict[str, Any]:
    return {
        "epsilon_a_text": one.epsilon,
        "epsilon_largest_text": one.largest,
        "epsilon_of_questions": questions * one.epsilon,
        "draws_a_text": one.drawn,
        "placeholders_a_text": one.placeholders,
        "ordinary_words_changed": one.changed,
        "readable": one.readable,
        "private": one.private,
        "cap_for_questions": _rounded(one.of_questions(questions)) if one.epsilon else 0.0,
        "texts_in_gateway_cap": one.fit(GATEWAY_CAP),
        "texts_in_cap": None if cap is None else one.fit(cap),
    }


def _rounded(amount: float) -> float:
    """Up to two digits."""
    step = 10.0 ** max(0, math.floor(math.log10(amount)) - 1) if amount > 0 else 1.0
    return math.ceil(amount / step) * step


def _table(costs: Sequence[Cost], questions: int, title: str) -> Table:
    table = Table("", *(one.preset for one in costs), title=title)
    rows = {
        "epsilon a text, mean": [f"{one.epsilon:,.1f}" for one in costs],
        "epsilon of the costliest text": [f"{one.largest:,.1f}" for one in costs],
        f"epsilon a person, {questions:,} texts": [f"{questions * one.epsilon:,.0f}" for one in costs],
        "cap for these": [f"{_rounded(one.of_questions(questions)):g}" if one.epsilon else "none needed"
                          for one in costs],
        f"texts in the gateway's cap of {GATEWAY_CAP:g}": [_count(one.fit(GATEWAY_CAP)) for one in costs],
        "words drawn a text": [f"{one.drawn:.1f}" for one in costs],
        "placeholders a text": [f"{one.placeholders:.1f}" for one in costs],
        "ordinary words changed": [f"{one.changed:.1%}" for one in costs],
        "private, still readable": [f"{one.readable:,} of {one.private:,}" for one in costs],
    }  # fmt: skip
    for measure, cells in rows.items():
        table.add_row(measure, *cells)
    return table


def _count(texts: float) -> str:
    return "any number" if math.isinf(texts) else f"{texts:,.0f}"
