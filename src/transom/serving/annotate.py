"""Annotators: what reads an answer beside the gateway and says something about it, such as its risk.

An annotator runs on the user's side. It is told the request as it is sent, its words sanitised where the
mode does that, since scores and features of states belong to what the model read; and the answer as it is
delivered, since people act on that. The private text of the request stays with the gateway. What it says
stands under `transom.annotations` in the answer (in a stream in the last chunk, and live in others), and in
a header of an answer that is not a stream.
An annotator withholds an answer by raising RefusedError, which the client then gets (in a stream, as an error
event without [DONE]). Any other failure is marked in place of what would have been said, by the error's type
alone, and the answer goes on; the failure of one that is `required` fails the answer instead.
Threat model: an annotator is trusted with the answer; features come from the engine's host, which may lie.
Does not protect: what was streamed before an answer was withheld has been read.
Source: none.

Shapes: T tokens, F features of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from transom.serving.engines.base import TokenScore


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it is sent, before its ids are permuted or embedded: one text a prompt (for a chat engine,
    a message), and ids where it gets ids. `mode` is the gateway's, `model` the published name.
    """

    mode: str
    model: str
    texts: tuple[str, ...] = field(repr=False)
    prompts: tuple[tuple[int, ...], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Heard:
    """The next piece of an answer: the text as delivered, and the engine's ids, scores and features.

    Text may lag behind ids. `features_TF` is float32 with one row an id, None where it was not asked for.
    """

    text: str = field(repr=False)
    ids: tuple[int, ...] = field(default=(), repr=False)
    scores: tuple[TokenScore, ...] = field(default=(), repr=False)
    features_TF: np.ndarray | None = field(default=None, repr=False, compare=False)
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """What is said of a whole answer: a JSON object, and a little printable ASCII for the header."""

    field: Mapping[str, Any]
    header: str = ""


class Watcher(Protocol):
    """Reads one answer. Both methods run on the event loop: what takes longer than a token does not fit."""

    def hear(self, heard: Heard) -> Mapping[str, Any] | None:
        """Take a piece; what is said of it at once in a stream, if anything."""

    def close(self) -> Note:
        """What is said of the whole answer."""


class Annotator(Protocol):
    """Makes a watcher for each choice of each request.

    `name`, of a-z, 0-9 and -, makes the header `X-Transom-NAME`. With `features` the engine is asked for
    features of states, and a missing answer to that is a failure.
    """

    name: str
    features: bool
    required: bool

    def watch(self, asked: Asked) -> Watcher:
        """A watcher for one answer to this request, which is not sent yet."""


@dataclass(eq=False)
class CountAnnotator:
    """A public fake: counts the tokens, characters and features that it hears, and can be told to fail.

    It raises `failure` in the piece that brings token number `fail_at`, or where it closes if there is none.
    """

    name: str = "count"
    _: KW_ONLY
    features: bool = False
    required: bool = False
    failure: Exception | None = None
    fail_at: int | None = None
    asked: list[Asked] = field(default_factory=list, init=False)

    def watch(self, asked: Asked) -> _Count:
        """See `Annotator`."""
        self.asked.append(asked)
        return _Count(self)


class _Count:
    def __init__(self, owner: CountAnnotator) -> None:
        self._owner = owner
        self._said = {"tokens": 0, "chars": 0, "features": 0.0}

    def hear(self, heard: Heard) -> Mapping[str, Any]:
        self._said["tokens"] += len(heard.ids)
        self._said["chars"] += len(heard.text)
        if heard.features_TF is not None:
            self._said["features"] += float(heard.features_TF.sum())
        if self._owner.fail_at is not None and self._said["tokens"] >= self._owner.fail_at:
            self._fail()
        return dict(self._said)

    def close(self) -> Note:
        self._fail()
        return Note(self._said, f"tokens={self._said['tokens']}")

    def _fail(self) -> None:
        if self._owner.failure is not None:
            raise self._owner.failure
