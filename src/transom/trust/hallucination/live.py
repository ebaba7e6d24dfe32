"""The risk of an answer while it is given: an engine tells a number a family and token, who has the detector
judges.

A row is [tag of the detector, 1 for an answer's first token and 2 for a later one, what each family's probe
says of the step in which the token was chosen]; families of attention say 0 of the first. So what is judged
is what `states` reads of the whole answer, step by step.
Threat model: that of the room. The engine is believed: one that lies within bounds is not found out.
Does not protect: a sentence is judged when it has been read.
Source: own.

Shapes: B rows, L layers, H heads, D model width, V vocabulary, K families, F = 2 + K numbers of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from transom.checkpoint.cut import three
from transom.checkpoint.load import Checkpoint
from transom.checkpoint.observe import Kind, Observer, Span, observing
from transom.checkpoint.rows import ready
from transom.errors import EngineGarbageError, MisconfiguredError
from transom.trust.hallucination.detector import Detector, check_model
from transom.trust.hallucination.looks import LOOKS, Memory, attention_of, laplacian_of, mlp_of, rauq_of
from transom.trust.hallucination.score import cut, sentences_of
from transom.trust.hallucination.states import ATTENTION, Floats, Reader
from transom.trust.prompt import require_tokenizer

HEAD = ("tag", "state")
FIRST, LATER = 1, 2
_PROBE = "A transom is the window over a door: air passes, sight does not."
_APART = 0.1  # of states' length, which other kernels and bfloat16 stay far below
_Answer = TypeVar("_Answer")


class RiskWatch:
    """Reads the states behind each token; fits the engine's `StateWatch`. Raises MisconfiguredError for a
    detector of another model."""

    def __init__(self, found: Checkpoint, detector: Detector) -> None:
        check_model(detector, found)
        self.size = row_size(detector)
        self._reader = reader = detector.reader(found.model)
        self._rows = _Rows(detector)
        reader.prepare()
        if "rows" in reader.kinds:
            ready(found.model)  # once, as setting it takes longer than listening does

    @cached_property
    def _observers(self) -> tuple[Observer, Observer]:
        """Of the cheap families, and of all; made late, as an engine replaces layers before it runs."""
        reader = self._reader
        hidden: dict[Kind, list[int]] = {"hidden": reader.needed}
        whole = hidden | dict.fromkeys(reader.kinds, reader.looked)
        return Observer(reader.model, hidden, _last), Observer(reader.model, whole, _last)

    def run(
        self, forward: Callable[[], _Answer], spans: Sequence[Span]
    ) -> tuple[_Answer, Callable[[Sequence[int]], np.ndarray]]:
        """What `forward` returns, and what tells the rows [B, F], given the tokens that were chosen."""
        reader = self._reader
        first = all(one.length <= one.prompt for one in spans)  # a prompt is read alone
        looks = bool(reader.kinds) and not first
        with self._observers[looks].passing() as seen:
            answer: Any = forward()
        logits_BV = answer.logits[:, -1].float()
        hidden = {layer: seen["hidden", layer][0] for layer in reader.needed}

        def tell(chosen: Sequence[int]) -> np.ndarray:
            families = reader.chosen(logits_BV, hidden, chosen)
            if looks:
                families |= _looks(reader, seen, spans, families.get("logits.own"))
            elif reader.wants("rauq"):
                for one, chance in zip(spans, families["logits.own"][:, 0].exp(), strict=True):
                    one.kept["risk"] = Memory(sure_L=chance.expand(len(reader.recurrent)))
            return self._rows.told(families, len(spans), FIRST if first else LATER)

        return answer, tell


class RiskTeller:
    """Tells the rows where another program computes and hands out hidden states, of which the cheap families
    are made; fits the serving side's `Teller`. The model lies here too: its head and last norm are used, and
    the states of `probe` compared. Raises MisconfiguredError for a detector of another model or one that
    looks at attention, and NotYetError for a model of which `walk` knows no parts."""

    def __init__(self, found: Checkpoint, detector: Detector) -> None:
        check_model(detector, found)
        if looks := sorted(ATTENTION & detector.probes.keys()):
            raise MisconfiguredError(
                f"the detector reads {looks[0]}, and states alone are handed out; fit one with --no-attention"
            )
        self.size = row_size(detector)
        self._rows, self._reader = _Rows(detector), detector.reader(found.model)
        self._reader.prepare()
        self._tail = three(found.model)[2]
        count: int = found.model.config.num_hidden_layers
        self._needed = self._reader.needed
        self.layers = tuple(dict.fromkeys([*(one + 1 for one in self._needed), count]))
        self.width: int = found.model.config.hidden_size
        self.probe = tuple(require_tokenizer(found).tokenizer.encode(_PROBE).ids)

    def check(self, states_TLD: Any) -> None:
        """Raises MisconfiguredError unless states of `probe` are as here."""
        import torch

        ids_1T = torch.tensor([self.probe], device=self._reader.model.device)
        before = [one - 1 for one in self.layers]
        with torch.no_grad(), observing(self._reader.model, before, ["hidden"], _whole) as seen:
            self._reader.model(input_ids=ids_1T)
        for place, layer in enumerate(self.layers):
            here_TD = seen["hidden", layer - 1][0]
            apart_T = (here_TD - states_TLD[:, place]).norm(dim=-1) / here_TD.norm(dim=-1)
            apart = float(apart_T.max())  # of each token, as the first one's is a hundred times the others'
            if not apart <= _APART:
                raise MisconfiguredError(
                    f"the engine's states after {layer} layers are others than this model's ({apart:.2f} of "
                    f"their length apart); serve the same model, with states of layers {self.layers}"
                )

    def rows(self, states_SLD: Any, ids: Sequence[int], *, first: bool) -> np.ndarray:
        """Of the steps in which `ids` were chosen [S, F]; `first`: they begin an answer."""
        import torch

        model = self._reader.model
        states_LSD = states_SLD.transpose(0, 1).to(model.device)
        with torch.no_grad():
            logits_SV = self._tail(states_LSD[-1].to(model.dtype)[None])[0].float()
            hidden = dict(zip(self._needed, states_LSD, strict=False))
            families = self._reader.chosen(logits_SV, hidden, ids)
        told_SF = self._rows.told(families, len(ids), LATER)
        told_SF[0, 1] = FIRST if first else LATER
        return told_SF


@dataclass(frozen=True)
class Sentence:
    """A sentence of the answer as delivered, in characters, its risk, and whether it is above the line."""

    start: int
    end: int
    risk: float
    flagged: bool


@dataclass
class Listener:
    """Takes an answer piece by piece. Of a sentence the steps count until all of it was said: where a piece
    brings several tokens its text is theirs by how long each is."""

    detector: Detector
    steps: dict[str, list[float]] = field(default_factory=dict)
    text: str = ""
    count: int = 0
    _judged: int = 0  # characters of sentences that are judged
    _before: int = 0  # steps that came with these
    _waiting: list[int] = field(default_factory=list)  # lengths of tokens whose text has not come
    _at: list[tuple[int, int]] = field(default_factory=list)  # characters and steps so far

    def hear(self, rows_TF: Floats, text: str, lengths: Sequence[int], *, last: bool) -> list[Sentence]:
        """The sentences that ended; `lengths` are of the tokens' texts, in characters. Raises
        EngineGarbageError for rows that no engine with the detector tells."""
        for row_F in rows_TF:
            self._take(row_F)
        self._waiting += lengths
        if text:
            total, so_far = sum(self._waiting), 0
            for place, length in enumerate(self._waiting, self.count - len(self._waiting) + 1):
                so_far += length
                if length:
                    self._at.append((len(self.text) + round(len(text) * so_far / total), place))
            self.text, self._waiting = self.text + text, []
            if not total:
                self._at.append((len(self.text), self.count))
        found = []
        rest = [
            (start + self._judged, end + self._judged)
            for start, end in sentences_of(self.text[self._judged :])
        ]
        for start, end in rest if last else rest[:-1]:  # the last one may go on
            said = max((steps for chars, steps in self._at if chars <= end), default=self._before)
            steps = min(said + 1, self.count)  # in which the last token was read
            if self.text[start:end].strip() and steps > self._before:
                risk = self.detector.risk(self.series(self._before, steps))
                found.append(Sentence(start, end, risk.risk, risk.flagged))
            self._judged, self._before = end, max(said, self._before)
        return found

    def series(self, first: int = 0, end: int | None = None) -> dict[str, Floats]:
        """Of the steps from one to before another."""
        whole = {name: np.array(one) for name, one in self.steps.items()}
        return cut(whole, first, self.count if end is None else end)

    def _take(self, row_F: Floats) -> None:
        told = np.asarray(row_F, np.float64)
        if told.shape != (row_size(self.detector),) or not np.isfinite(told).all():
            raise EngineGarbageError(
                f"the engine tells {told.size} state features, and this detector has "
                f"{row_size(self.detector)}, all finite; give both sides one detector"
            )
        state = LATER if self.count else FIRST
        if (told[0], told[1]) != (self.detector.tag, state):
            raise EngineGarbageError(
                "the engine has another detector, or tells of another answer; give both sides one detector"
            )
        self.count += 1
        for name, value in zip(self.detector.probes, told[len(HEAD) :].tolist(), strict=True):
            if state == LATER or name not in ATTENTION:
                self.steps.setdefault(name, []).append(value)


class _Rows:
    """Makes rows of families, of all probes at once."""

    def __init__(self, detector: Detector) -> None:
        self._tag, self._probes, self._size = detector.tag, detector.probes, row_size(detector)
        self._beside: dict[tuple[str, ...], tuple[Floats, list[int], list[int], list[float]]] = {}

    def told(self, families: dict[str, Any], rows: int, state: int) -> np.ndarray:
        """Of families [B, F] each, in an order of their own; one that is not there says 0."""
        import torch

        told_BF = np.zeros((rows, self._size), np.float32)
        told_BF[:, :2] = self._tag, state
        if names := tuple(name for name in self._probes if name in families):
            weight_F, starts, places, bias = self._beside.get(names) or self._put(names)
            x_BF = torch.cat([families[name] for name in names], 1).cpu().numpy()
            told_BF[:, places] = np.add.reduceat(x_BF * weight_F, starts, axis=1) + bias
        return told_BF

    def _put(self, names: tuple[str, ...]) -> tuple[Floats, list[int], list[int], list[float]]:
        """Weights side by side, where each probe's begin, its place in a row, and its bias."""
        probes, every = [self._probes[name] for name in names], list(self._probes)
        starts = np.cumsum([0, *(len(one.weight_F) for one in probes[:-1])]).tolist()
        self._beside[names] = found = (
            np.concatenate([one.weight_F for one in probes]),
            starts,
            [len(HEAD) + every.index(name) for name in names],
            [one.bias for one in probes],
        )
        return found


def _last(kind: Kind, _layer: int, value: Any) -> Any:
    return value[:, :, -1] if kind == "rows" else value[:, -1].float()


def _whole(_kind: str, _layer: int, value: Any) -> Any:
    return value[0].float()


def row_size(detector: Detector) -> int:
    """How many numbers an engine tells of a token."""
    return len(HEAD) + len(detector.probes)


def _looks(reader: Reader, seen: Any, spans: Sequence[Span], own_B1: Any) -> dict[str, Any]:
    """The families of `ATTENTION` of each row's last token, without what pads it on the left [B, F]: of all
    layers at once, as one token has little to compute."""
    import torch

    found: dict[str, Any] = {}
    if "mlp" in reader.kinds:
        inner_BLN = torch.stack([seen["mlp", layer][0] for layer in reader.looked], dim=1)
        found["mlp"] = mlp_of(inner_BLN.flatten(0, 1)).view(len(spans), -1)
    if "rows" not in reader.kinds:
        return found
    map_BLHT = torch.stack([seen["rows", layer][0] for layer in reader.looked], dim=1).float()
    width, parts = map_BLHT.shape[-1], list[dict[str, Any]]()
    for place, (map_LHT, one) in enumerate(zip(map_BLHT, spans, strict=True)):
        map_M1T = map_LHT[..., width - one.length :].flatten(0, 1)[:, None]
        kept: Memory = one.kept.setdefault("risk", Memory())
        looks_1M4 = attention_of(map_M1T, one.prompt)
        own = dict(zip(LOOKS, looks_1M4.unbind(-1), strict=True))
        if reader.wants("laplacian"):
            own["laplacian"] = laplacian_of(map_M1T, one.prompt, kept)
        if reader.wants("rauq"):
            newest_1LH = own["newest"].view(1, *map_LHT.shape[:2])[:, reader.recurrent]
            own["rauq"] = rauq_of(newest_1LH, own_B1[place].exp(), kept)
        parts.append(own)
    return found | {name: torch.cat([own[name] for own in parts]) for name in parts[0]}
