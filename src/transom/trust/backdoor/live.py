"""Prompts are judged while they are answered: an engine measures heads, and who has the detector judges.

The engine tells of an answer's first token what the heads did with the prompt, from the pass that read it,
and of later ones nothing. A row is [tag of the detector, state, tokens of the prompt, place and length in
tokens of the word that most heads of the last layer look at, measures of each layer]; what was not measured
says why (`prompts.UNREAD`).
Threat model: who writes prompts may carry a trigger into them, or avoid being read, which is told. The engine
is believed: one that lies within bounds is not found out.
Does not protect: a prompt of another kind than the trusted ones is flagged too.
Source: `measures`, `normal`.

Shapes: B rows, T tokens, L layers, M measures, F numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.observe import Span
from transom.errors import EngineGarbageError, MisconfiguredError
from transom.trust.backdoor.detector import Detector, model_of, sent
from transom.trust.backdoor.measures import MEASURES, Floats, Seen, seen_in
from transom.trust.backdoor.prompts import IN_PARTS, LONG, MOST_TOKENS, NO_IDS, UNREAD, PromptReader
from transom.trust.backdoor.words import Words
from transom.trust.prompt import require_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

HEAD = ("tag", "state", "tokens", "place", "length")
MEASURED, LATER = 1, 0  # states beside those of UNREAD
_Answer = TypeVar("_Answer")


class HeadWatch:
    """Reads the measures of each prompt in its own pass; fits the engine's `StateWatch`.

    Raises MisconfiguredError for a detector of another model.
    """

    def __init__(self, found: Checkpoint, detector: Detector) -> None:
        if model_of(found) != detector.model:
            raise MisconfiguredError(
                "the detector belongs to another model, tokenizer or dtype; fit one for this model as it "
                "runs here (of an obfuscated model none can be fitted)"
            )
        self.size = row_size(detector)
        self._model: Any = found.model
        self._tag = detector.tag
        self._reader = PromptReader(require_tokenizer(found).tokenizer, detector.before, detector.after)

    def run(
        self, forward: Callable[[], _Answer], spans: Sequence[Span]
    ) -> tuple[_Answer, Callable[[Sequence[int]], np.ndarray]]:
        """What `forward` returns, and what tells a row [B, F] for each of the `spans`: positions so far, and
        how many are the prompt's. The tokens that are chosen do not matter."""
        answer, told_BF = self._run(forward, spans)
        return answer, lambda _chosen: told_BF

    def _run(self, forward: Callable[[], _Answer], spans: Sequence[Span]) -> tuple[_Answer, np.ndarray]:
        told_BF = np.zeros((len(spans), self.size), np.float32)
        told_BF[:, 0] = self._tag
        first_B = [one.length <= one.prompt for one in spans]
        told_BF[first_B, 1] = IN_PARTS
        told_BF[:, 2] = [one.prompt for one in spans]
        if len(spans) > 1 or not first_B[0]:
            return forward(), told_BF
        length, prompt = spans[0].length, spans[0].prompt
        if length != prompt or length > MOST_TOKENS:
            told_BF[0, 1] = LONG if length == prompt else IN_PARTS
            return forward(), told_BF
        read: list[Words | int] = []
        with _ids_of(self._model) as ids:

            def text() -> Words | None:
                read.append(self._read(ids, length))
                return read[0] if isinstance(read[0], Words) else None

            answer, found = seen_in(self._model, forward, text)
        words = read[0]
        if isinstance(words, int) or found is None:
            told_BF[0, 1] = words if isinstance(words, int) else IN_PARTS
        else:
            told_BF[0, 1:] = _told(words, found)
        return answer, told_BF

    def _read(self, ids: list[Tensor], length: int) -> Words | int:
        if not ids:
            return NO_IDS
        if len(ids) > 1 or tuple(ids[0].shape) != (1, length):
            return IN_PARTS
        return self._reader.read(ids[0][0].tolist())


@dataclass(frozen=True)
class Judged:
    """A prompt: whether it is flagged, the share of trusted ones that are as far, its statistic, and where in
    it the word begins that heads look at, in tokens, and how many it has. Not scored: all None, `reason`."""

    flagged: bool | None = None
    p_value: float | None = None
    statistic: float | None = None
    place: int | None = None
    length: int | None = None
    reason: str = ""


def judge(detector: Detector, row_F: Floats, rate: float, prompts: Collection[int]) -> Judged:
    """What an engine told of the first token of an answer to one of `prompts`, by their lengths in tokens.

    Raises EngineGarbageError for numbers that no engine with a detector tells.
    """
    if row_F.shape != (row_size(detector),) or not np.isfinite(row_F).all():
        raise EngineGarbageError(
            f"the engine tells {row_F.size} state features, and a detector of this model has "
            f"{row_size(detector)}, all finite; give both sides one detector"
        )
    head_F = row_F[: len(HEAD)]
    if (head_F != np.rint(head_F)).any():
        raise EngineGarbageError("the engine's state features are not those of a detector; start it with one")
    tag, state, tokens, place, length = map(int, head_F)
    if tag != detector.tag:
        return Judged(reason="the engine has another detector")
    if state in UNREAD:
        return Judged(reason=UNREAD[state])
    if state == LATER:
        return Judged(reason=UNREAD[IN_PARTS])
    if state != MEASURED or tokens not in prompts or not 0 <= place < place + length <= tokens:
        raise EngineGarbageError("the engine tells of another prompt than it was sent")
    measures_NLM = row_F[len(HEAD) :].astype(np.float64).reshape(1, detector.layers, len(MEASURES))
    statistics_N = detector.normal.statistics(measures_NLM, [tokens])
    p_value = float(detector.normal.p_values(statistics_N)[0])
    return Judged(p_value <= rate, p_value, float(statistics_N[0]), place, length)


def row_size(detector: Detector) -> int:
    """How many numbers an engine tells of a token."""
    return len(HEAD) + detector.layers * len(MEASURES)


def _told(words: Words, found: Seen) -> Floats:
    """A row of a prompt that was measured, without its tag."""
    agreed = found.agreed_L[-1]
    head = [MEASURED, len(words.ids), words.word_T.index(agreed), words.word_T.count(agreed)]
    return np.concatenate([np.array(head, np.float32), sent(found.measures_LM).ravel()])


@contextmanager
def _ids_of(model: Any) -> Iterator[list[Tensor]]:
    """What is looked up in the model's embedding meanwhile."""
    ids: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: ids.append(given[0]))
    try:
        yield ids
    finally:
        handle.remove()
