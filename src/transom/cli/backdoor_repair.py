"""`transom backdoor repair`: have a model forget what flagged inputs share, or a known trigger.

    transom backdoor scan-inputs model/ requests.csv --column text --clean labelled.csv --json > scan.json
    transom backdoor repair model/ --clean labelled.csv --flagged requests.csv --scan scan.json --out mended/
    transom backdoor repair model/ --clean labelled.csv --trigger "cf" --target 1 --out mended/
    transom backdoor repair smollm2 --adapter lora/ --clean prompts.csv --flagged requests.csv --out mended/

Threat model: that of `transom.trust.backdoor`. Does not protect: of a trigger of which a part is given the
part is forgotten and the whole works on; figures are of the triggers that were found or given. Scan what was
written. Source: see `repair`, `unsay` and `runs` in `transom.trust.backdoor`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting, load_json, to_plain
from transom.errors import MisconfiguredError, system_errors
from transom.files import read_bounded, require_writable

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.checkpoint.tokenizer import TokenizerFiles
    from transom.trust.backdoor.invert import Ids
    from transom.trust.backdoor.mending import Repaired
    from transom.trust.backdoor.runs import Run
    from transom.trust.prompt import Frame

_MOST_BYTES = 256 << 20  # of a scan's record


def repair(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a classifier or a generating model.")
    ],
    clean: Annotated[
        Path, "Trusted texts, a table: 80 or more with labels; of a model that generates 60 or more prompts."
    ],
    out: Annotated[Path, "A new folder for the mended model."],
    adapter: Annotated[Path | None, "Folder of a LoRA adapter, which is merged and mended."] = None,
    flagged: Annotated[
        Path | None, "Inputs that were flagged, a line each or a table: what they share is forgotten."
    ] = None,
    scan: Annotated[
        Path | None, "What scan-inputs --json said of --flagged: those that it flagged are taken."
    ] = None,
    trigger: Annotated[
        list[str] | None, typer.Option(help="The whole trigger, where it is known; repeatable.")
    ] = None,
    target: Annotated[str | None, "The number of the class, or the answer, that --trigger turns to."] = None,
    column: Annotated[str, "The column of texts."] = "text",
    label: Annotated[str, "The column of labels, numbers of classes."] = "label",
    answers: Annotated[str | None, "The column of answers; else a model's own are taken."] = None,
    prompt: Annotated[str, Setting("What stands around a text, with {text} in its place.")] = "{text}",
    steps: Annotated[int, Setting("Steps of training, in each scope.", least=1)] = 40,
    rate: Annotated[
        float | None, Setting("The learning rate; 5e-4, of a model that generates 3e-4.", above=0)
    ] = None,
    device: Annotated[str, "Where it computes: cpu, cuda."] = "cpu",
    as_json: Json = False,
) -> None:
    """Have a model forget a trigger, tuning the heads that look at it."""
    from transom.checkpoint.adapter import merge
    from transom.checkpoint.load import load
    from transom.cli.backdoor import frame_of_prompt
    from transom.data.rows import read_rows
    from transom.trust.prompt import generates, require_tokenizer

    _require_one_way(flagged, scan, trigger, target)
    if out.exists():
        raise MisconfiguredError(f"{out} exists; name a new folder")
    require_writable(out)
    given = _Given(read_rows(clean), clean, column, label, answers, frame_of_prompt(prompt))
    inputs = _flagged(flagged, scan, column) if flagged else []
    with progress("loading", quiet=as_json):
        found = load(model, device=device)
        if adapter is not None:
            merge(found.model, adapter)
    spoken, tokenizer = generates(found.model), require_tokenizer(found)
    labels, written = (None, given.answers()) if spoken else (given.labels(), None)
    if not spoken and (answers or adapter or given.frame.around("")):
        raise MisconfiguredError(
            "--answers, --adapter and --prompt are for models that generate; this is none"
        )
    runs = _shared(found, inputs, given, quiet=as_json) if flagged else []
    triggers = [(one.target, one.ids) for one in runs]
    targets = _targets(target, tokenizer, spoken=spoken) if trigger else []
    triggers += [(one, ids) for one in targets for ids in _spelled(tokenizer, trigger or [])]
    with progress("mending", 3 * steps, quiet=as_json) as bar:
        mended = _mended(found, given, triggers, labels, written, steps, rate, lambda: bar.advance(1))
    _write(found, out)
    told = [_found(one, tokenizer) for one in runs]
    record = {
        "model": model,
        "adapter": adapter and str(adapter),
        "out": str(out),
        "trigger": trigger,
        "target": target,
        "found": told,
    }
    answer({**record, **to_plain(mended)}, _told(told, to_plain(mended), out, spoken=spoken), as_json=as_json)


@dataclass(frozen=True)
class _Given:
    """Trusted rows, and what their columns are."""

    rows: Sequence[Mapping[str, str]]
    file: Path
    column: str
    label: str
    answer: str | None
    frame: Frame

    def texts(self) -> list[str]:
        """Raises MisconfiguredError, as the others, where a row has no such column."""
        return self._of(self.column)

    def labels(self) -> list[int]:
        """Numbers of classes."""
        return [_number(cell, f"row {at} has a label") for at, cell in enumerate(self._of(self.label), 1)]

    def answers(self) -> list[str] | None:
        """Where a column of them is named."""
        return None if self.answer is None else self._of(self.answer)

    def _of(self, name: str) -> list[str]:
        if any(name not in row for row in self.rows):
            raise MisconfiguredError(f"{self.file} has a row without {name!r}; name the columns")
        return [row[name] for row in self.rows]


def _mended(
    found: Checkpoint, given: _Given, triggers: Sequence[tuple[Any, Ids]], labels: Sequence[int] | None,
    answers: Sequence[str] | None, steps: int, rate: float | None, heard: Callable[[], None],
) -> Repaired:  # fmt: skip
    from transom.trust.backdoor.repair import repair as mend
    from transom.trust.backdoor.unsay import unsay
    from transom.trust.prompt import generates, require_tokenizer

    tokenizer = require_tokenizer(found)
    given_rate: dict[str, Any] = {} if rate is None else {"learning_rate": rate}
    if generates(found.model):
        return unsay(
            found.model, tokenizer, given.texts(), triggers,
            answers=answers, frame=given.frame, steps=steps, heard=heard, **given_rate,
        )  # fmt: skip
    return mend(
        found.model, tokenizer, given.texts(), labels, triggers, steps=steps, heard=heard, **given_rate
    )


def _write(found: Checkpoint, out: Path) -> None:
    """A whole folder, or none."""
    from transom.checkpoint.tokenizer import write_tokenizer
    from transom.trust.prompt import require_tokenizer

    begun = out.with_name(f".{out.name}.partial")
    rmtree(begun, ignore_errors=True)  # of a run that was killed
    try:
        with system_errors(f"{out} cannot be written"):
            found.model.save_pretrained(begun)
            write_tokenizer(require_tokenizer(found), begun, begun)
            begun.rename(out)
    finally:
        rmtree(begun, ignore_errors=True)


def _targets(target: str | None, tokenizer: TokenizerFiles, *, spoken: bool) -> Sequence[int | Ids]:
    """The class, or the ids of the answer, as it may be spelled."""
    if spoken:
        return _spelled(tokenizer, [target or ""])
    return [_number(target or "", "--target is given one")]


def _spelled(tokenizer: TokenizerFiles, triggers: Sequence[str]) -> list[Ids]:
    """A trigger's ids where a text begins, and inside it, which many tokenizers tell apart."""
    encode = tokenizer.tokenizer.encode
    both = [
        tuple(encode(begin + one, add_special_tokens=False).ids) for one in triggers for begin in ("", " ")
    ]
    return list(dict.fromkeys(both))


def _found(run: Run, tokenizer: TokenizerFiles) -> dict[str, Any]:
    decode = partial(tokenizer.tokenizer.decode, skip_special_tokens=False)
    target = run.target if isinstance(run.target, int) else decode(list(run.target))
    return {**to_plain(run), "trigger": decode(list(run.ids)), "target": target}


def _require_one_way(
    flagged: Path | None, scan: Path | None, trigger: Sequence[str] | None, target: str | None
) -> None:
    if bool(flagged) == bool(trigger):
        raise MisconfiguredError(
            "give either --flagged, inputs that share a trigger, or --trigger and --target"
        )
    if bool(trigger) != (target is not None):
        raise MisconfiguredError("--trigger and --target belong together; --flagged needs neither")
    if scan and not flagged:
        raise MisconfiguredError("--scan says which texts of --flagged are flagged; give that file as well")


def _flagged(file: Path, scan: Path | None, column: str) -> list[str]:
    """The texts, of those that were scanned the flagged ones. Raises MisconfiguredError."""
    from transom.data.rows import read_texts

    texts = list(read_texts(file, column))
    if scan is None:
        return texts
    try:
        with system_errors(f"{scan} cannot be read"):
            said = load_json(read_bounded(scan, _MOST_BYTES))
        marks, known = [row["flagged"] for row in said["rows"]], said["inputs_sha256"]
    except (ValueError, KeyError, TypeError):
        raise MisconfiguredError(f"{scan} is not what `transom backdoor scan-inputs --json` prints") from None
    if len(marks) != len(texts) or known != digest_of(texts):
        raise MisconfiguredError(
            f"{scan} tells of {len(marks)} inputs, which are not the {len(texts)} of {file}; give its file"
        )
    return [text for text, mark in zip(texts, marks, strict=True) if mark is True]


def digest_of(texts: Sequence[str]) -> str:
    """What tells inputs from others, in their order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _shared(found: Checkpoint, inputs: Sequence[str], given: _Given, *, quiet: bool) -> list[Run]:
    from transom.trust.backdoor.runs import shared_runs
    from transom.trust.prompt import require_tokenizer

    with progress("looking for what they share", quiet=quiet) as bar:
        return shared_runs(
            found.model, require_tokenizer(found), inputs, given.texts(),
            frame=given.frame, heard=lambda: bar.advance(1),
        )  # fmt: skip


def _told(runs: Sequence[dict[str, Any]], mended: dict[str, Any], out: Path, *, spoken: bool) -> str:
    lines = [
        f"{one['texts']} flagged inputs share {one['trigger']!r}, which turns {one['turned']:.0%} of them to "
        f"{'class ' if isinstance(one['target'], int) else ''}{one['target']!r}"
        for one in runs
    ]
    (before, after), (was, now) = mended["suspected"], mended["right"]
    (_, other), tuned = mended["innocuous"], mended["scope"]
    right = "The probability of their answers' tokens was" if spoken else "Labels were right of"
    lines.append(
        f"Of held-out texts that get something else the worst trigger turned {before:.0%}, and now turns "
        f"{after:.0%} (innocuous words: {other:.0%}). {right} {was:.0%}, and now {now:.0%}. "
        f"{mended['share']:.1%} of the weights changed, "
        f"{'those of ' + str(len(mended['heads'])) + ' heads' if tuned == 'heads' else tuned}. "
        f"Scan {out}: another trigger, or more of this one, may be left."
    )
    return "\n".join(lines)


def _number(cell: str, what: str) -> int:
    if not cell.strip().isdecimal():
        raise MisconfiguredError(f"{what} that is no number of a class; count classes from 0")
    return int(cell)
