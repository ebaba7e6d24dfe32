"""The risk of answers, of their sentences and tokens, and why, in words.

A sentence has the risk of the steps in which its tokens were chosen and the last of them was read, as if it
were an answer of its own; a token that of the answer up to it.
Threat model: see the room. Does not protect: what is told of a part is rougher than what is told of the
whole.
Source: own.

Shapes: S steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.hallucination.detector import Detector, Risk, shown
from transom.trust.hallucination.states import ATTENTION, Example, Floats, Reader, encode
from transom.trust.prompt import PLAIN, Frame

Series = Mapping[str, Floats]
_WHY = {
    "hidden": "the states are those of answers that were made up: check what it states",
    "lookback": "it looked at its own words more than at what it was given: compare it with the source",
    "sink": "its heads found little to look at: give it the source, or ask for one fact at a time",
    "entropy": "its looking was spread as in answers that were made up: ask more narrowly",
    "newest": "it looked at its last word more or less than in true answers: let it answer anew and compare",
    "laplacian": "its words leant on each other as in answers that were made up: ask for one fact at a time",
    "rauq": "it grew unsure on the way: let it answer several times and compare",
    "mlp": "its neurons were active as in answers that were made up: check what it states",
    "lens": "late layers turned what the middle ones were about to say: ask again in other words",
    "logits": "it was not sure of its words: let it answer several times and compare",
}


@dataclass(frozen=True)
class Part:
    """Text from `start` to `end` of an answer, in characters, and its risk."""

    start: int
    end: int
    risk: float


@dataclass(frozen=True)
class Scored:
    """An answer by its number, from 1. Of one that was not scored all is None and `reason` says why."""

    row: int
    risk: float | None = None
    flagged: bool | None = None
    why: tuple[str, ...] = ()
    families: tuple[tuple[str, float], ...] = ()
    sentences: tuple[Part, ...] = ()
    tokens: tuple[Part, ...] = ()
    reason: str = ""


def score(
    detector: Detector, reader: Reader, tokenizer: TokenizerFiles, example: Example, row: int = 1,
    *, frame: Frame = PLAIN, most_tokens: int = 1024, with_tokens: bool = False,
) -> Scored:  # fmt: skip
    """The model is the detector's (`check_model`)."""
    try:
        series = detector.series(reader.read(encode(tokenizer, example, frame, most_tokens=most_tokens)))
    except (MisconfiguredError, CheckpointError) as error:  # of this answer
        return Scored(row, reason=str(error))
    whole = detector.risk(series)
    spans = _spans(tokenizer, example)
    ends = [end for _, end in spans]
    sentences = []
    for start, end in sentences_of(example.answer):
        own = [place for place, one in enumerate(ends) if start < one <= end]
        if own:
            sentences.append(Part(start, end, detector.risk(cut(series, own[0], own[-1] + 2)).risk))
    tokens = [
        Part(start, end, detector.risk(cut(series, 0, place + 2)).risk)
        for place, (start, end) in enumerate(spans if with_tokens else [])
    ]
    return Scored(row, whole.risk, whole.flagged, why(whole), whole.families, tuple(sentences), tuple(tokens))


def _spans(tokenizer: TokenizerFiles, example: Example) -> list[tuple[int, int]]:
    """Where each token of an answer stands in it."""
    if not example.ids:
        return list(tokenizer.tokenizer.encode(example.answer, add_special_tokens=False).offsets)
    own = [one for one in example.ids if one not in tokenizer.eos_ids]
    ends = [len(tokenizer.tokenizer.decode(own[: place + 1])) for place in range(len(own))]
    return list(zip([0, *ends], [min(one, len(example.answer)) for one in ends], strict=False))


def cut(series: Series, first: int, end: int) -> dict[str, Floats]:
    """The steps from one to before another; a family without one is left out."""
    late = {name: int(name in ATTENTION) for name in series}  # those of attention begin at step 1
    parts = {name: one[max(first - late[name], 0) : max(end - late[name], 0)] for name, one in series.items()}
    return {name: one for name, one in parts.items() if len(one)}


def sentences_of(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence begins and ends, with the space after it.

    >>> list(sentences_of("It is 3.5 m. Is it? Yes"))
    [(0, 13), (13, 20), (20, 23)]
    """
    for one in re.finditer(r".+?(?:[.!?]+[\"')\]]*(?=\s|$)\s*|\n+\s*|$)", text, re.DOTALL):
        yield one.span()


def why(risk: Risk) -> tuple[str, ...]:
    """What raised the risk, each thing once; nothing of an answer that is not flagged."""
    if not risk.flagged:
        return ()
    return tuple(dict.fromkeys(_WHY[name.partition(".")[0]] for name in shown(risk)))
