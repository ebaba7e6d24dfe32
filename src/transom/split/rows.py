"""The customer's rows: texts and labels from a file, as ids; their order, their batches and their padding.

A file is read as elsewhere (`data.rows`: CSV, TSV, JSON lines, JSON, Parquet; for a causal model a plain
text, too, a text a line). All that is wrong with its rows is told at once, by number, a header's being 1.
Threat model: mistakes in a file; errors tell numbers and lengths of rows, never their content. The order
comes from the job's seed, which both parties know: it hides nothing.
Does not protect: a text that spells a tokenizer's control token is read as that token. The digest of rows is
for the customer's own files; a vendor that guesses a text could check its guess with it.
Source: own. Shapes: B batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transom.checkpoint.tokenizer import TokenizerFiles, guarded
from transom.data import rows as files
from transom.errors import MisconfiguredError
from transom.split.job import Data, SplitJob, Task, Train
from transom.split.metrics import text_labels

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 8
_LEAST_PUBLIC = 2


@dataclass(frozen=True)
class Rows:
    """Ids of each text, with the tokenizer's own; labels, by their place in the job's list, of a classifier.

    `specials` are the ids that the tokenizer put in, such as [CLS]: no text's, and no secret. `shortened`
    counts the texts that were cut to `max_tokens`. `digest` is of ids and labels.
    """

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    specials: frozenset[int] = frozenset()
    shortened: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of ids and labels, in hexadecimal."""
        return hashlib.sha256(json.dumps([self.ids, self.labels]).encode()).hexdigest()


def read_rows(
    data: Data,
    which: Literal["train", "evaluate"],
    labels: Sequence[str],
    task: Task,
    tokenizer: TokenizerFiles,
) -> Rows:
    """The rows of one of the job's files. Raises MisconfiguredError with everything that is wrong: a column
    that is not there, empty texts, unknown labels, texts without a token to learn from, and, to train a
    classifier on, one class alone; MissingExtraError for Parquet."""
    source = data.train if which == "train" else data.evaluate
    if source is None:
        raise MisconfiguredError(f"the job names no rows to {which} on; set data.{which}")
    texts, named = _cells(source, data, task)
    encoded = encode(texts, tokenizer, data.max_tokens)
    first = 2 if files.form_of(source) in (files.Format.csv, files.Format.tsv) else 1  # after a header
    wrong = {
        "no text": [not text.strip() for text in texts],
        f"a label that is none of {', '.join(map(repr, labels))}": [one not in labels for one in named],
        "no token to learn from": [
            bool(text.strip()) and not _teaches(ids, encoded.specials, task)
            for text, ids in zip(texts, encoded.ids, strict=True)
        ],
    }
    problems = [_told(why, bad, first) for why, bad in wrong.items() if any(bad)]
    classes = Counter(named)
    if task == "classification" and which == "train" and len(classes) == 1:
        problems.append(f"all {len(named)} rows have one label; a classifier wants two or more")
    if problems:
        raise MisconfiguredError(f"{source}: {'; '.join(problems)}. Correct the rows or leave them out")
    numbers = {label: number for number, label in enumerate(labels)}
    return Rows(encoded.ids, tuple(numbers[one] for one in named), encoded.specials, encoded.shortened)


def read_public(job: SplitJob, tokenizer: TokenizerFiles) -> Rows | None:
    """The job's public texts: lines, or the cells of the text column, without labels unless the noise is to
    spare the directions of its task; None where it names none. Raises MisconfiguredError, also where they
    hold fewer than two, and as `read_rows`."""
    source = job.noise.public
    if source is None:
        return None
    data = replace(job.data, train=source) if job.data else Data(source)
    if job.noise.directions_of == "task":
        return read_rows(data, "train", job.labels, job.task, tokenizer)
    column = None if files.form_of(source) is files.Format.text else data.text_column
    texts = files.read_texts(source, column)
    if len(texts) < _LEAST_PUBLIC:
        raise MisconfiguredError(f"{source} holds {len(texts)} public texts; give {_LEAST_PUBLIC} or more")
    return encode(texts, tokenizer, data.max_tokens)


def encode(texts: Sequence[str], tokenizer: TokenizerFiles, max_tokens: int) -> Rows:
    """Texts as ids, cut to `max_tokens` with the tokenizer's own at their ends; without labels."""
    from tokenizers import Tokenizer

    with guarded(
        lambda: MisconfiguredError(f"{len(texts)} texts cannot be encoded by the model's tokenizer")
    ):
        cutting = Tokenizer.from_str(tokenizer.tokenizer.to_str())  # the model's own stays as it is
        cutting.enable_truncation(max_tokens)
        found = cutting.encode_batch(list(texts))
    specials = {
        token
        for one in found
        for token, special in zip(one.ids, one.special_tokens_mask, strict=True)
        if special
    }
    shortened = sum(bool(one.overflowing) for one in found)
    return Rows(tuple(tuple(one.ids) for one in found), (), frozenset(specials), shortened)


def order(count: int, seed: int, epoch: int) -> list[int]:
    """The row numbers of an epoch, shuffled: the same for the same seed in any version of any library."""
    return sorted(range(count), key=lambda row: hashlib.sha256(f"{seed}/{epoch}/{row}".encode()).digest())


def batches(rows: Rows, train: Train, epoch: int | None = None) -> list[tuple[int, ...]]:
    """Row numbers, batch by batch, the last one being smaller; in the file's order without an epoch."""
    numbers = list(range(len(rows))) if epoch is None else order(len(rows), train.seed, epoch)
    size = train.batch_rows
    return [tuple(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def padded(rows: Rows, numbers: Sequence[int], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask [B, T] of these rows, padded on the right, and their labels: [B] of a classifier, else
    [B, T] of a language model."""
    import torch

    chosen = [torch.tensor(rows.ids[number]) for number in numbers]
    lengths_B1 = torch.tensor([len(ids) for ids in chosen])[:, None]
    ids_BT = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=pad_id)
    mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B1).long()
    if rows.labels:
        return ids_BT, mask_BT, torch.tensor([rows.labels[number] for number in numbers])
    return ids_BT, mask_BT, text_labels(ids_BT, mask_BT)


def pad_id_of(tokenizer: TokenizerFiles) -> int:
    """The id to pad with: the tokenizer's own, or else one that ends a text, or 0; a mask hides it."""
    names = (tokenizer.specials.get(role) for role in ("pad_token", "eos_token"))
    found = (tokenizer.tokenizer.token_to_id(name) for name in names if name is not None)
    return next((number for number in found if number is not None), 0)


def _teaches(ids: Sequence[int], specials: frozenset[int], task: Task) -> bool:
    """Whether a text has a token of its own; for a language model, one that stands after another."""
    return not specials.issuperset(ids) and len(ids) >= (2 if task == "causal" else 1)


def _cells(source: Path, data: Data, task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts, and a classifier's labels; a text or label that is absent is empty."""
    if task == "causal" and files.form_of(source) is files.Format.text:
        return files.read_texts(source), ()
    rows = files.read_rows(source)
    if not rows:
        raise MisconfiguredError(f"{source} holds no rows")
    wanted = [data.text_column, *([data.label_column] if task == "classification" else [])]
    if absent := [name for name in wanted if not any(name in row for row in rows)]:
        raise MisconfiguredError(
            f"{source}: of {len(rows)} rows none has a column {' or '.join(map(repr, absent))}; set "
            "data.text_column and data.label_column to names of its header"
        )
    columns = [tuple(row.get(name, "") for row in rows) for name in wanted]
    return columns[0], columns[1] if len(columns) > 1 else ()


def _told(why: str, bad: Iterable[bool], first: int) -> str:
    numbers = [number for number, is_bad in enumerate(bad, first) if is_bad]
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    rows = "row" if len(numbers) == 1 else "rows"
    return f"{rows} {', '.join(map(str, numbers[:_SHOWN]))}{more}: {why}"
