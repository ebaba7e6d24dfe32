"""`transom hallucination`: is an answer made up, by the states of the model that gives it.

    transom hallucination fit smollm2 answers.csv --label made_up --chat --out detector.safetensors
    transom hallucination fit smollm2 questions.csv --correct "Correct Answers" --incorrect "Incorrect
    Answers" \\
        --question Question --chat --out detector.safetensors
    transom hallucination score smollm2 new.csv --detector detector.safetensors --chat
    transom hallucination report smollm2 facts.csv animals.csv --label made_up --html report.html

Threat model: that of `transom.trust.hallucination`. Does not protect: a low risk is no proof. Source: see
there. """

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from transom.checkpoint.load import Dtype, load
from transom.cli.app import App
from transom.cli.backdoor import frame_of_prompt
from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting, to_plain
from transom.errors import CheckpointError, MisconfiguredError
from transom.files import require_writable, write_file
from transom.trust.hallucination.combine import Kind

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.trust.hallucination.examples import Columns, Row
    from transom.trust.hallucination.score import Scored
    from transom.trust.hallucination.states import Example, Reader, States
    from transom.trust.hallucination.study import Set
    from transom.trust.prompt import Frame

app = App(no_args_is_help=True, help="Tell made-up answers by a model's own states.")
_SHOWN = 8


@app.callback()
def _group() -> None:
    """Tell made-up answers by a model's own states."""


@dataclass(frozen=True)
class AnswerOptions:
    """Where answers stand, and what stood around them."""

    PANEL: ClassVar[str] = "Answers"
    answer: Annotated[str, "The column of answers; where it is empty or absent the model answers."] = "answer"
    question: Annotated[str, "The column of questions."] = "question"
    context: Annotated[str, "The column of what was to be read before the question."] = "context"
    chat: Annotated[bool, "Question and context are one message of a user, as the gateway renders it."] = (
        False
    )
    prompt: Annotated[str, Setting("What stands around them, with {text} in their place.")] = "{text}"
    most_tokens: Annotated[
        int, Setting("Tokens of prompt and answer; longer ones are left out.", least=8)
    ] = 1024
    answer_tokens: Annotated[int, Setting("Tokens of answers that the model gives.", least=1)] = 64

    def frame(self, model: str) -> Frame:
        """Raises MisconfiguredError."""
        from transom.serving.tokenizer import load_tokenizer
        from transom.trust.prompt import Frame

        if not self.chat:
            return frame_of_prompt(self.prompt)
        if self.prompt != "{text}":
            raise MisconfiguredError("--chat and --prompt both say what stands around a text; give one")
        before, _, after = load_tokenizer(model).encode_chat([("user", "TEXT")]).text.partition("TEXT")
        return Frame(before, after)

    def columns(self, **more: Any) -> Columns:
        """With what says what is true."""
        from transom.trust.hallucination.examples import Columns

        return Columns(self.answer, self.question, self.context, **more)


@dataclass(frozen=True)
class TruthOptions:
    """What says whether an answer is made up: one of these."""

    PANEL: ClassVar[str] = "What is made up"
    label: Annotated[str | None, "The column that says whether an answer is made up: 1 or 0."] = None
    correct: Annotated[str | None, "The column of correct answers, divided by ';'."] = None
    incorrect: Annotated[str | None, "The column of incorrect answers, divided by ';'."] = None
    grounded: Annotated[bool, "Made up is what names what the context does not."] = False

    def columns(self, answers: AnswerOptions) -> Columns:
        """Raises MisconfiguredError for none or several."""
        if sum(map(bool, (self.label, self.correct, self.grounded))) != 1 or (
            self.incorrect and not self.correct
        ):
            raise MisconfiguredError(
                "say what is made up in one way: --label, --correct (with --incorrect where there are some), "
                "or --grounded"
            )
        return answers.columns(**vars(self))


@dataclass(frozen=True)
class DeviceOptions:
    """Where the model computes."""

    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu"
    dtype: Annotated[Dtype | None, "As the engine runs: by default float32 on cpu, else bfloat16."] = None

    def load(self, model: str) -> Checkpoint:
        """The model."""
        dtype = self.dtype or ("float32" if self.device == "cpu" else "bfloat16")
        return load(model, dtype=dtype, device=self.device)


@app.command()
def fit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table of answers, or of questions.")],
    out: Annotated[Path, "The detector's file."],
    kind: Annotated[Kind, "What is made of all families: logistic, boosting, mlp."] = "logistic",
    rate: Annotated[float, Setting("Share of true answers that may be flagged.", above=0, most=0.5)] = 0.1,
    attention: Annotated[bool, "Look at attention and neurons too, which costs more."] = True,
    as_json: Json = False,
    *,
    truth: TruthOptions,
    answers: AnswerOptions,
    running: DeviceOptions,
) -> None:
    """Fit a detector on answers of which it is known whether they are made up, or can be told by
    references."""
    from transom.data.rows import read_rows
    from transom.report.statistics import auc, auc_interval
    from transom.trust.hallucination.detector import model_of, write_detector
    from transom.trust.hallucination.examples import duplicates, rows_of
    from transom.trust.hallucination.fit import fit as fitted_on
    from transom.trust.hallucination.fit import groups_of
    from transom.trust.hallucination.states import Reader

    told = truth.columns(answers)
    require_writable(out)
    rows, frame = rows_of(read_rows(file), told, str(file)), answers.frame(model)
    with progress("loading", quiet=as_json):
        found = running.load(model)
    answered = rows if told.label else _answered(found, rows, frame, answers, quiet=as_json)
    given = [row.judged(told.grounded) if told.label is None else row.example for row in answered]
    judged, reader = [one for one in given if one.made_up is not None], Reader(found.model, attention)
    known, states, left_out = _read(reader, found, judged, frame, answers, quiet=as_json)
    made_up = [bool(one.made_up) for one in known]
    with progress("fitting", len(states[0].families) if states else None, quiet=as_json) as bar:
        made = fitted_on(
            states, made_up, groups_of(known), model=model_of(found), kind=kind, rate=rate,
            frame=(frame.before, frame.after),
            heard=lambda: bar.advance(1),
        )  # fmt: skip
    write_detector(out, made.detector)
    labels = [int(one) for one in made_up]
    import numpy as np

    record = {
        "model": model,
        "out": str(out),
        "rows": len(rows),
        "answers": len(known),
        "made_up": sum(made_up),
        "not_told": len(given) - len(judged),
        "left_out": left_out,
        "duplicates": duplicates(known),
        "auroc": auc(made.risk_N, np.array(labels)),
        "auroc_interval": auc_interval(made.risk_N, np.array(labels)),
        "families": {name: max(one) for name, one in made.auroc.items()},
        "about": to_plain(made.detector.about),
    }
    answer(record, _told_fit(record, out), as_json=as_json)


@app.command("score")
def score_(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A table of answers, or of questions.")],
    detector: Annotated[Path, "A file of transom hallucination fit."],
    tokens: Annotated[bool, "The risk of each token too."] = False,
    as_json: Json = False,
    *,
    answers: AnswerOptions,
    running: DeviceOptions,
) -> None:
    """Say of each answer, and of its sentences, how likely it is made up, and why."""
    from transom.data.rows import read_rows
    from transom.trust.hallucination.detector import check_model, read_detector
    from transom.trust.hallucination.examples import rows_of
    from transom.trust.hallucination.score import score
    from transom.trust.prompt import require_tokenizer

    told = read_detector(detector)
    rows, frame = rows_of(read_rows(file), answers.columns(), str(file)), answers.frame(model)
    if (frame.before, frame.after) != (told.about.before, told.about.after):
        raise MisconfiguredError(
            "the detector was fitted with something else around what was asked; give --chat or --prompt as "
            "there"
        )
    with progress("loading", quiet=as_json):
        found = running.load(model)
    check_model(told, found)
    examples = [row.example for row in _answered(found, rows, frame, answers, quiet=as_json)]
    reader, tokenizer = told.reader(found.model), require_tokenizer(found)
    more: dict[str, Any] = {"frame": frame, "most_tokens": answers.most_tokens, "with_tokens": tokens}
    scored = []
    with progress("reading answers", len(examples), quiet=as_json) as bar:
        for number, one in enumerate(examples, 1):
            scored.append(score(told, reader, tokenizer, one, number, **more))
            bar.advance(1)
    record: dict[str, Any] = {
        "model": model,
        "answers": len(scored),
        "flagged": sum(bool(one.flagged) for one in scored),
        "not_scored": sum(one.risk is None for one in scored),
        "line": told.about.line,
        "rate": told.about.rate,
        "rows": [
            {**to_plain(one), "answer": example.answer} for one, example in zip(scored, examples, strict=True)
        ],
    }
    answer(record, _told_scores(scored, examples, told.about.line), as_json=as_json)


@app.command()
def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, GGUF file, or a packaged model.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Tables of answers, each a set.")],
    kind: Annotated[Kind, "What is made of all families: logistic, boosting, mlp."] = "logistic",
    attention: Annotated[bool, "Look at attention and neurons too, which costs more."] = True,
    html: Annotated[Path | None, "Write what was found as one HTML page."] = None,
    as_json: Json = False,
    *,
    truth: TruthOptions,
    answers: AnswerOptions,
    running: DeviceOptions,
) -> None:
    """Say what in the states tells made-up answers from true ones, by stage, family and selection, and where
    to."""
    from transom.trust.hallucination import page
    from transom.trust.hallucination.detector import model_of
    from transom.trust.hallucination.states import Reader
    from transom.trust.hallucination.study import check_sets, negations, study

    told = truth.columns(answers)
    if html is not None:
        require_writable(html)
    frame = answers.frame(model)
    with progress("loading", quiet=as_json):
        found = running.load(model)
    reader, sets = Reader(found.model, attention), []
    for file in files:
        sets.append(_set(file, told, found, reader, frame, answers, quiet=as_json))
    check_sets(sets)
    with progress("fitting", 4 * len(sets), quiet=as_json) as bar:
        studied = study(
            sets, model=model_of(found), kind=kind, heard=lambda: bar.advance(1),
            heads=found.model.config.num_attention_heads,
            negated=lambda part: _read(reader, found, negations(part), frame, answers, quiet=True)[:2],
        )  # fmt: skip
    if html is not None:
        write_file(html, page.page(studied, model).encode("utf-8", "replace"), mode=0o600)
    answer(page.record(studied, model), page.headline(studied).replace("; ", "\n"), as_json=as_json)


def _set(
    file: Path, told: Columns, found: Checkpoint, reader: Reader, frame: Frame, answers: AnswerOptions,
    *, quiet: bool,
) -> Set:  # fmt: skip
    from transom.data.rows import read_rows
    from transom.trust.hallucination.examples import rows_of
    from transom.trust.hallucination.study import Set

    rows = rows_of(read_rows(file), told, str(file))
    rows = rows if told.label else _answered(found, rows, frame, answers, quiet=quiet)
    given = [row.judged(told.grounded) if told.label is None else row.example for row in rows]
    known, states, _ = _read(
        reader, found, [one for one in given if one.made_up is not None], frame, answers, quiet=quiet
    )
    return Set(file.stem, known, states)


def _answered(
    found: Checkpoint, rows: Sequence[Row], frame: Frame, answers: AnswerOptions, *, quiet: bool
) -> list[Row]:
    """Rows with an answer each: those that have none are answered by the model."""
    from dataclasses import replace

    from transom.checkpoint.answers import answers_of
    from transom.trust.hallucination.states import prompt_of
    from transom.trust.prompt import require_tokenizer

    tokenizer = require_tokenizer(found)
    made = list(rows)
    asked = {
        place: prompt_of(tokenizer, row.example, frame)[0]
        for place, row in enumerate(rows)
        if not row.example.answer
    }
    prompts = {
        place: ids for place, ids in asked.items() if len(ids) + answers.answer_tokens <= answers.most_tokens
    }
    if not prompts:
        return made
    with progress("answering", len(prompts), quiet=quiet) as bar:
        said = answers_of(
            found.model, list(prompts.values()), tokenizer.eos_ids, most_tokens=answers.answer_tokens,
            at_once=8, heard=lambda: bar.advance(8),
        )  # fmt: skip
        for place, ids in zip(prompts, said, strict=True):
            text = tokenizer.tokenizer.decode([one for one in ids if one not in tokenizer.eos_ids])
            made[place] = replace(rows[place], example=replace(rows[place].example, answer=text, ids=ids))
    return made


def _read(
    reader: Reader, found: Checkpoint, examples: Sequence[Example], frame: Frame, answers: AnswerOptions,
    *, quiet: bool,
) -> tuple[list[Example], list[States], dict[str, int]]:  # fmt: skip
    """Answers that can be read, their states, and how many others there are for each reason."""
    from transom.trust.hallucination.states import encode
    from transom.trust.prompt import require_tokenizer

    known, states, left_out = [], [], dict[str, int]()
    with progress("reading answers", len(examples), quiet=quiet) as bar:
        for one in examples:
            try:
                ids = encode(require_tokenizer(found), one, frame, most_tokens=answers.most_tokens)
                states.append(reader.read(ids))
                known.append(one)
            except (MisconfiguredError, CheckpointError) as error:
                left_out[str(error)] = left_out.get(str(error), 0) + 1
            bar.advance(1)
    return known, states, left_out


def _told_fit(record: dict[str, Any], out: Path) -> str:
    low, high = record["auroc_interval"] or (0.0, 1.0)
    best = sorted(record["families"].items(), key=lambda one: -one[1])[:3]
    lines = [
        f"{out}: fitted to {record['answers']} answers, {record['made_up']} of them made up",
        f"AUROC on answers that were held out: {record['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})",
        "Families that tell most alone: " + ", ".join(f"{name} {value:.3f}" for name, value in best),
    ]
    if record["duplicates"]:
        lines.append(f"{record['duplicates']} answers stand there twice; they were never held out apart")
    if record["left_out"] or record["not_told"]:
        lines.append(
            f"left out: {sum(record['left_out'].values())}; not told by references: {record['not_told']}"
        )
    return "\n".join(lines)


def _told_scores(scored: Sequence[Scored], examples: Sequence[Example], line: float) -> str:
    missed = sum(one.risk is None for one in scored)
    flagged = sorted((one for one in scored if one.flagged), key=lambda one: -(one.risk or 0.0))
    lines = [
        f"{len(flagged)} of {len(scored)} answers are at risk {line:.2f} or above"
        f"{f'; {missed} were not scored' if missed else ''}"
    ]
    for one in flagged[:_SHOWN]:
        lines.append(f"  answer {one.row}: risk {one.risk:.2f}; {'; '.join(one.why)}")
    return "\n".join(lines)
