"""What the annotators say of one request's answers, whatever they do.

Threat model: a faulty annotator. What it says is checked before it is written, so that it cannot break the
answer's form; of an error only the type is told, as its text may hold content.
Does not protect: an annotator that never returns stops the gateway.
Source: none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from transom.errors import MisconfiguredError, RefusedError, ReplaceableError, TransomError
from transom.serving.annotate import Annotator, Asked, Heard, Note, Watcher
from transom.serving.engines.base import Delta
from transom.serving.engines.wire import dump
from transom.serving.gateway.answer import Piece

_log = logging.getLogger("transom.gateway")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_TAKEN = ("trust", "engine-trust", "session", "show-host")
_FIELD_BYTES, _HEADER_CHARS = 1 << 18, 200
_Result = TypeVar("_Result")


def check_annotators(annotators: Sequence[Annotator]) -> None:
    """Raises MisconfiguredError for names that cannot stand side by side in headers."""
    names = [one.name for one in annotators]
    for name in names:
        if not _NAME.fullmatch(name) or name in _TAKEN or names.count(name) > 1:
            raise MisconfiguredError(
                f"an annotator cannot be named {name[:40]!r}: a name has up to 40 of a-z, 0-9 and -, is "
                f"another's no more than once and none of {', '.join(_TAKEN)}"
            )


def features_for(annotators: Sequence[Annotator], told: int) -> int:
    """How many features a token to ask the engine for. Raises ReplaceableError before anything is sent."""
    wanted = [one for one in annotators if one.features]
    if not told and any(one.required for one in wanted):
        raise ReplaceableError(
            "an annotator that must judge each answer needs an engine that tells of its states; use "
            "`transom engine`, or leave the annotator out"
        )
    return told if wanted else 0


class Annotations:
    """The annotators of one request, with a watcher for each of its choices."""

    def __init__(self, annotators: Sequence[Annotator], asked: Asked, choices: int, features: int) -> None:
        self._each = [_Guarded(one, asked, choices, features) for one in annotators]

    def hear(self, delta: Delta, piece: Piece) -> dict[str, Any]:
        """What is said at once of a piece, by annotator."""
        heard = Heard(piece.text, delta.ids, delta.scores, delta.features_TF, piece.finish_reason)
        said = {one.name: one.hear(delta.index, heard) for one in self._each}
        return {name: one for name, one in said.items() if one is not None}

    def close(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What is said of each whole answer, by annotator, and the headers. Raises what withholds it."""
        said = {one.name: [one.close(index) for index in range(one.choices)] for one in self._each}
        texts = {
            name: ", ".join(note.header for note in notes if note.header) for name, notes in said.items()
        }
        headers = {f"x-transom-{name}": text for name, text in texts.items() if text}
        return {name: [dict(note.field) for note in notes] for name, notes in said.items()}, headers


class _Guarded:
    """One annotator, of which nothing but RefusedError is believed untested."""

    def __init__(self, annotator: Annotator, asked: Asked, choices: int, features: int) -> None:
        self.name = annotator.name
        self.choices = choices
        self._required = annotator.required
        self._failed: dict[int, str] = {}
        self._watchers: list[Watcher | None] = []
        for index in range(choices):
            if annotator.features and not features:
                self._failed[index] = "the engine tells nothing of its states"
            self._watchers.append(self._try(index, lambda: annotator.watch(asked)))

    def hear(self, index: int, heard: Heard) -> Mapping[str, Any] | None:
        watcher = self._watchers[index]
        return None if watcher is None else self._try(index, lambda: _checked(watcher.hear(heard)))

    def close(self, index: int) -> Note:
        watcher = self._watchers[index]
        note = None if watcher is None else self._try(index, lambda: _checked_note(watcher.close()))
        return note or Note({"error": self._failed[index]}, "failed")

    def _try(self, index: int, work: Callable[[], _Result]) -> _Result | None:
        """What `work` gives; None once it has failed."""
        if index in self._failed:
            return None
        try:
            return work()
        except RefusedError:
            raise
        except Exception as error:
            kind = type(error).__name__
            _log.error("the annotator %s failed (%s)", self.name, kind)
            if self._required:
                raise TransomError(f"the annotator {self.name} must judge this answer, and failed") from None
            self._failed[index] = f"the annotator failed ({kind})"
        return None


def _checked(said: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Raises ValueError or TypeError for what is no JSON object of bounded size."""
    if said is not None and len(dump(dict(said))) > _FIELD_BYTES:
        raise ValueError
    return said


def _checked_note(note: Note) -> Note:
    head = note.header
    if len(head) > _HEADER_CHARS or not (head.isascii() and head.isprintable()):
        raise ValueError
    _checked(note.field)
    return note
