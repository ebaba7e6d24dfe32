"""Tasks from a user's files: `classify:FILE`, `summarize:FILE`, `answers:FILE`.

    classify   TSV with a header: `label` and `sentence`; half of the rows trains, half is tested
    summarize  JSON lines with `document`
    answers    CSV with `statement,label` (1 is true), or `Question,Best Answer,Incorrect Answers` (answers
               apart by semicolons)

Threat model: the files are the auditor's own; errors name a file and a line, never what stands in it.
Does not protect anything.
Source: the columns are those of SST-2 (GLUE), XSum, Azaria and Mitchell 2023, and TruthfulQA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from transom.audit.utility.model import Answerer
from transom.audit.utility.tasks import Answers, Classify, Question, Summarise, Task
from transom.data.rows import read_rows
from transom.errors import MisconfiguredError

_ITEMS = {"classify": 200, "summarize": 24, "answers": 150}  # a few minutes for all three on one core
_MOST_CHARS = 1200  # of a document: about 300 tokens
TRUE_OR_FALSE = "Is this true or false? {}\nAnswer:"


def read_task(place: str, model: Answerer, *, items: int | None = None) -> Task:
    """The task at `kind:file`, with at most `items` items chosen at random. Raises MisconfiguredError."""
    kind, _, name = place.partition(":")
    if kind not in _READERS or not name:
        raise MisconfiguredError(
            f"{place!r} is no task; write {', '.join(f'{one}:FILE' for one in _READERS)}"
        )
    rows = read_rows(Path(name))
    if len(rows) < 3:
        raise MisconfiguredError(f"{name} holds {len(rows)} rows; a task needs three or more")
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    try:
        return _READERS[kind](shuffled, items or _ITEMS[kind], model, f"{kind} {Path(name).stem}")
    except (KeyError, ValueError, AttributeError):
        raise MisconfiguredError(
            f"{name} lacks a column or value that {kind} needs; see its columns"
        ) from None


def _classify(rows: list[dict[str, str]], items: int, _model: Answerer, name: str) -> Task:
    labels = sorted({row["label"] for row in rows})
    pairs = tuple((row["sentence"], labels.index(row["label"])) for row in rows[: 2 * items])
    cut = -(-len(pairs) // 2)
    return Classify(pairs[:cut], pairs[cut:], name)


def _summarize(rows: list[dict[str, str]], items: int, model: Answerer, name: str) -> Task:
    return Summarise(tuple(row["document"][:_MOST_CHARS] for row in rows[:items]), model, name)


def _answers(rows: list[dict[str, str]], items: int, _model: Answerer, name: str) -> Task:
    if "statement" in rows[0]:
        return Answers(tuple(map(statement, rows[:items])), name, TRUE_OR_FALSE, calibrated=True)
    return Answers(tuple(map(multiple_choice, rows[:items])), name)


def statement(row: dict[str, str]) -> Question:
    """A true/false statement as a question, for the prompt TRUE_OR_FALSE."""
    return Question(row["statement"], ("false", "true"), int(row["label"]))


def multiple_choice(row: dict[str, str]) -> Question:
    """A row of TruthfulQA as a question with one right choice, which stands first."""
    wrong = [text.strip() for text in row["Incorrect Answers"].split(";") if text.strip()]
    return Question(row["Question"], (row["Best Answer"].strip(), *wrong), 0)


_READERS: dict[str, Callable[[list[dict[str, str]], int, Answerer, str], Task]] = {
    "classify": _classify,
    "summarize": _summarize,
    "answers": _answers,
}
