"""A detector of made-up answers: a linear probe of each family of states, and what is made of all.

A probe gives each step of an answer a number, the log-odds of being made up; of that series five are
selected: the first, the last, the mean, the largest, and the largest mean of `WINDOW` steps in a row. What is
made of all families' five (`combine`), of which logistic regression takes one a family, is calibrated
(Platt) and is the risk. So a risk can be told of any part of an answer while it is given, and an engine that
has the detector tells one number a family and step.
What a family adds is by how much the log-odds fall where it is as on average. The file is safetensors:
arrays, and under `about` a JSON object. It holds none of the answers.
Threat model: a file that is broken, of another version or model; it is read strictly. Does not protect: who
can write the file can have it find nothing.
Source: Platt 1999; Azaria and Mitchell 2023, arXiv 2304.13734 (linear probes of states). The rest is own.

Shapes: S steps, K families, F numbers of a family, Q = 5 K, N answers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from transom.checkpoint.fingerprint import fingerprint
from transom.checkpoint.load import Checkpoint
from transom.config import Setting, from_plain, load_json, to_plain
from transom.errors import MisconfiguredError, system_errors
from transom.files import read_bounded, write_file
from transom.trust.hallucination.combine import KINDS, Combiner, Kind, Linear, names_of, of_arrays
from transom.trust.hallucination.states import Encoded, Floats, Reader, States
from transom.trust.prompt import require_tokenizer

SELECTIONS = ("first", "last", "mean", "max", "window")
WINDOW = 8
_MOST_BYTES = 64 << 20
_MOST_LONG, _MOST = 10**6, 1e15  # numbers along an array, and of each


def selected(series_S: Floats) -> Floats:
    """The five numbers of a series, which has a step or more."""
    width = min(WINDOW, len(series_S))
    sums_S = np.concatenate([[0.0], np.cumsum(series_S, dtype=np.float64)])
    windows = (sums_S[width:] - sums_S[:-width]) / width
    return np.array([series_S[0], series_S[-1], series_S.mean(), series_S.max(), windows.max()])


@dataclass(frozen=True, eq=False)
class Probe:
    """Weights [F] and one more number."""

    weight_F: Floats
    bias: float

    def series(self, x_SF: Floats) -> Floats:
        """The log-odds at each step [S]."""
        return np.asarray(x_SF @ self.weight_F + self.bias)


@dataclass(frozen=True)
class Risk:
    """The probability that an answer is made up, whether it is above the line, and what each family adds to
    the log-odds, the largest first."""

    risk: float
    flagged: bool
    families: tuple[tuple[str, float], ...]
    log_odds: float = 0.0  # which go on where the risk is 0 or 1


@dataclass(frozen=True)
class About:
    """What a detector says of itself. `model` is the fingerprint of model and tokenizer; `line` the risk
    above which an answer is flagged, `rate` the share of true answers that were; `answers` how many it was
    fitted on, `made_up` of these; `before` and `after` are what stood around what was asked."""

    format: Literal["transom-hallucination-2"]
    model: Annotated[str, Setting(pattern="[0-9a-f]{64}")]
    kind: Kind
    families: tuple[str, ...]
    line: Annotated[float, Setting(least=0, most=1)]
    rate: Annotated[float, Setting(above=0, most=0.5)]
    answers: Annotated[int, Setting(least=1)]
    made_up: Annotated[int, Setting(least=1)]
    before: str
    after: str


@dataclass(frozen=True, eq=False)
class Detector:
    """Fitted by `fit`, read by `read_detector`. `slope` and `shift` calibrate; `usual_Q` is the mean of what
    was selected of the answers that it was fitted on."""

    about: About
    probes: Mapping[str, Probe]
    combiner: Combiner
    usual_Q: Floats
    slope: float
    shift: float

    @cached_property
    def tag(self) -> int:
        """24 bits by which two parties tell whether they have the same one."""
        return int.from_bytes(hashlib.sha256(dumped(self)).digest()[:3], "big")

    def reader(self, model: Any) -> Reader:
        """Of what it needs, and no more."""
        return Reader(model, only=frozenset(self.probes))

    def series(self, states: States) -> dict[str, Floats]:
        """Of each family's probe; a family that has no step is left out."""
        return series_of(self.probes, states)

    def risk(self, series: Mapping[str, Floats]) -> Risk:
        """Of the steps that are given; a family without one is taken as it is on average."""
        chosen_Q = chosen_of(self.probes, series, self.usual_Q)
        families = list(self.probes)
        rows = np.repeat(chosen_Q[None], len(families) + 1, axis=0)
        for place in range(len(families)):
            own = slice(place * len(SELECTIONS), (place + 1) * len(SELECTIONS))
            rows[place + 1, own] = self.usual_Q[own]
        whole, *without = (self.slope * self.combiner.log_odds(rows) + self.shift).tolist()
        adds = sorted(
            ((name, whole - one) for name, one in zip(families, without, strict=True)),
            key=lambda one: -one[1],
        )
        risk = 1 / (1 + math.exp(-min(max(whole, -500.0), 500.0)))
        return Risk(risk, risk > self.about.line, tuple(adds), whole)


def series_of(probes: Mapping[str, Probe], states: States) -> dict[str, Floats]:
    """What each family's probe says of an answer; a family that has no step is left out."""
    own = {name: states.families[name] for name in probes}
    return {name: probes[name].series(x_SF) for name, x_SF in own.items() if len(x_SF)}


def chosen_of(probes: Mapping[str, Probe], series: Mapping[str, Floats], usual_Q: Floats) -> Floats:
    """What is selected of all families [Q]; one without a step is as on average."""
    parts = []
    for place, name in enumerate(probes):
        own = usual_Q[place * len(SELECTIONS) : (place + 1) * len(SELECTIONS)]
        parts.append(selected(series[name]) if len(series.get(name, ())) else own)
    return np.concatenate(parts)


def model_of(found: Checkpoint) -> str:
    """The fingerprint of a model and its tokenizer."""
    spelled = require_tokenizer(found).tokenizer.to_str()
    return hashlib.sha256(f"{fingerprint(found.model)} {spelled}".encode()).hexdigest()


def check_model(detector: Detector, found: Checkpoint) -> None:
    """Raises MisconfiguredError for a model that the detector was not fitted for."""
    if model_of(found) != detector.about.model:
        raise MisconfiguredError(
            "the detector belongs to another model, tokenizer or dtype; fit one for this model as it "
            "runs here"
        )
    seen = detector.reader(found.model).read(Encoded((0,), (0, 0, 0), (0,))).families
    for name, probe in detector.probes.items():
        if name not in seen or seen[name].shape[1] != len(probe.weight_F):
            raise MisconfiguredError(
                f"the detector's family {name[:40]!r} is none of this model; fit it again"
            )


def pruned(detector: Detector) -> Detector:
    """Without the families that add nothing."""
    if not isinstance(detector.combiner, Linear):
        return detector
    weight_KC = detector.combiner.weight_Q.reshape(-1, len(SELECTIONS))
    kept = [place for place, row in enumerate(weight_KC) if row.any()] or [0]
    names = [list(detector.probes)[place] for place in kept]
    return replace(
        detector,
        about=replace(detector.about, families=tuple(names)),
        probes={name: detector.probes[name] for name in names},
        combiner=replace(detector.combiner, weight_Q=weight_KC[kept].ravel()),
        usual_Q=detector.usual_Q.reshape(-1, len(SELECTIONS))[kept].ravel(),
    )


def dumped(detector: Detector) -> bytes:
    """The bytes of its file."""
    arrays: dict[str, Any] = {f"combiner.{name}": one for name, one in detector.combiner.arrays().items()}
    arrays |= {f"probe.{name}": np.append(one.weight_F, one.bias) for name, one in detector.probes.items()}
    arrays |= {"usual_Q": detector.usual_Q, "platt": np.array([detector.slope, detector.shift])}
    text = json.dumps(to_plain(detector.about), sort_keys=True).encode()
    made = {name: np.ascontiguousarray(one, np.dtype("<f8")) for name, one in sorted(arrays.items())}
    return save({"about": np.frombuffer(text, np.uint8), **made})


def write_detector(path: Path, detector: Detector) -> None:
    """Raises MisconfiguredError where it cannot be written."""
    write_file(path, dumped(detector))


def read_detector(path: Path) -> Detector:
    """Raises MisconfiguredError for a file that is not wholly one of ours."""
    refused = f"{path} is no detector of made-up answers that can be used"
    with system_errors(f"cannot read the detector {path}", "give a file of `transom hallucination fit`"):
        try:
            data = read_bounded(path, _MOST_BYTES)
            detector = _detector(load(data), refused)
        except (ValueError, TypeError, KeyError, SafetensorError) as error:
            raise MisconfiguredError(f"{refused} ({type(error).__name__}); fit it again") from None
    if dumped(detector) != data:
        raise MisconfiguredError(f"{refused}: it holds something beside; fit it again")
    return detector


def _detector(arrays: dict[str, Any], refused: str) -> Detector:
    about = from_plain(About, load_json(arrays.pop("about").tobytes()), refused)
    if about.kind not in KINDS or not about.families or len(set(about.families)) != len(about.families):
        raise MisconfiguredError(f"{refused}: its families are none; fit it again")
    wanted = {"usual_Q": 1, "platt": 1} | {f"probe.{name}": 1 for name in about.families}
    wanted |= {f"combiner.{name}": len(name.rpartition("_")[2]) for name in names_of(about.kind)}
    for name, one in arrays.items():
        sized = one.dtype == np.float64 and one.ndim == wanted.get(name) and 0 < max(one.shape) < _MOST_LONG
        if not sized or not one.size or not (np.abs(one) < _MOST).all():
            raise MisconfiguredError(f"{refused}: {name[:40]} is not what is fitted; fit it again")
    if arrays.keys() != wanted.keys():
        raise MisconfiguredError(f"{refused}: it lacks a part; fit it again")
    combiner = of_arrays(about.kind, {name: arrays[f"combiner.{name}"] for name in names_of(about.kind)})
    probes = {
        name: Probe(one[:-1], float(one[-1])) for name in about.families for one in [arrays[f"probe.{name}"]]
    }
    slope, shift = arrays["platt"].tolist()
    return checked(Detector(about, probes, combiner, arrays["usual_Q"], slope, shift), refused)


def checked(detector: Detector, refused: str) -> Detector:
    """The detector. Raises MisconfiguredError where its arrays do not fit each other."""
    count = len(detector.probes) * len(SELECTIONS)
    try:
        fits = len(detector.usual_Q) == count and _in_bounds(detector.combiner.arrays(), count)
        fits = fits and bool(np.isfinite(detector.combiner.log_odds(detector.usual_Q[None])).all())
    except (ValueError, IndexError):
        fits = False
    if not fits or any(not len(one.weight_F) for one in detector.probes.values()):
        raise MisconfiguredError(f"{refused}: its parts are of other sizes; fit it again")
    return detector


def _in_bounds(arrays: Mapping[str, Floats], count: int) -> bool:
    """Of trees: each node asks for a number that there is and leads on, so that every walk ends."""
    if "below_TJ" not in arrays:
        return True
    nodes_J = np.arange(arrays["below_TJ"].shape[1])
    if len({one.shape for name, one in arrays.items() if name.endswith("_TJ")}) != 1:
        return False
    asked, below, above = (arrays[f"{name}_TJ"] for name in ("asked", "below", "above"))
    inner = below > 0
    leads = (below > nodes_J) & (above > nodes_J) & (below < len(nodes_J)) & (above < len(nodes_J))
    whole = all((one == np.rint(one)).all() for one in (asked, below, above))
    return bool(whole and (asked >= 0).all() and (asked < count).all() and (leads | ~inner).all())


def shown(risk: Risk, most: int = 3) -> Sequence[str]:
    """The names of the families that add most, where they add."""
    return [name for name, adds in risk.families[:most] if adds > 0]
