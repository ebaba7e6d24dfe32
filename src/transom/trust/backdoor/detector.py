"""A detector of triggers in prompts, fitted once, kept in a file, and used wherever the model answers.

The file is safetensors: the arrays of `Normal`, and under `about` a JSON object with the format, the model's
fingerprint, the ids of the frame and how many trusted texts there were. It holds none of the texts.
Threat model: a file that is broken, of another version, or too large; it is read strictly, and a file that
is not the one that would be written for what it says is refused. Does not protect: who can write the file can
have it flag nothing; keep it as you keep a configuration.
Source: `normal`, `measures`.

Shapes: N texts, L layers, M measures, F = L M of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
from transom.trust.backdoor.measures import MEASURES, Floats, seen
from transom.trust.backdoor.normal import FEWEST, Normal, fit
from transom.trust.backdoor.prompts import Ids, PromptReader
from transom.trust.backdoor.words import Words
from transom.trust.prompt import is_causal, require_tokenizer

MOST_LAYERS = 127  # an engine tells up to 1,024 numbers a token
_MOST_BYTES = 1 << 25
_MOST_IDS = 1 << 16
_MOST_TEXTS = 10**7
_ARRAYS = tuple(one.name for one in fields(Normal) if one.name != "texts")


@dataclass(frozen=True)
class _About:
    model: Annotated[str, Setting(pattern="[0-9a-f]{64}")]
    layers: Annotated[int, Setting(least=1, most=MOST_LAYERS)]
    before: tuple[int, ...]
    after: tuple[int, ...]
    texts: Annotated[int, Setting(least=FEWEST, most=_MOST_TEXTS)]
    format: Literal[1] = 1

    def problems(self) -> list[str]:
        """What is wrong with the frame."""
        wrong = [one for one in (*self.before, *self.after) if not 0 <= one < 2**31]
        many = len(self.before) + len(self.after) > _MOST_IDS
        return ["the frame holds no ids of tokens, or too many"] if wrong or many else []


@dataclass(frozen=True, eq=False)
class Detector:
    """What is usual of the prompts of `model`, a fingerprint, each between the ids `before` and `after`."""

    model: str
    layers: int
    before: Ids
    after: Ids
    normal: Normal

    @cached_property
    def tag(self) -> int:
        """24 bits by which two parties tell whether they have the same one."""
        return int.from_bytes(hashlib.sha256(dumped(self)).digest()[:3], "big")

    def check_rate(self, rate: float) -> None:
        """Raises MisconfiguredError for a false-positive rate that it cannot tell."""
        least = 1 / (1 + len(self.normal.held))
        if not least <= rate < 1:
            raise MisconfiguredError(
                f"a false-positive rate of {rate:g} cannot be told by {len(self.normal.held)} held-out "
                f"texts; fit with more trusted texts, or give a rate of at least {least:.2g}"
            )


def fit_detector(
    found: Checkpoint, prompts: Sequence[Ids], frame: tuple[Ids, Ids], heard: Callable[[], object] = bool
) -> Detector:
    """Of trusted prompts as an engine gets them, each counted once. `heard` is called after each.

    Raises MisconfiguredError for too few that can be read, or a model that does not read at the last token.
    """
    if not is_causal(found.model):
        raise MisconfiguredError(
            "a detector is for prompts of a model that generates text; this one does not"
        )
    reader = PromptReader(require_tokenizer(found).tokenizer, *frame)
    texts = [one for one in map(reader.read, dict.fromkeys(prompts)) if isinstance(one, Words)]
    measures: list[Floats] = []
    for one in seen(found.model, texts):
        measures.append(sent(one.measures_LM))
        heard()
    normal = fit(np.array(measures, np.float64), [len(one.ids) for one in texts])
    return Detector(model_of(found), found.model.config.num_hidden_layers, *frame, normal)


def sent(measures_LM: Floats) -> Floats:
    """As they are sent by an engine; what is fitted is rounded alike."""
    return measures_LM.astype(np.float32)


def model_of(found: Checkpoint) -> str:
    """The fingerprint of a model and its tokenizer."""
    spelled = require_tokenizer(found).tokenizer.to_str()
    return hashlib.sha256(f"{fingerprint(found.model)} {spelled}".encode()).hexdigest()


def write_detector(path: Path, detector: Detector) -> None:
    """Raises MisconfiguredError where it cannot be written."""
    write_file(path, dumped(detector))


def dumped(detector: Detector) -> bytes:
    """The bytes of its file."""
    about = _About(
        detector.model, detector.layers, detector.before, detector.after, detector.normal.texts
    )  # fmt: skip
    text = json.dumps(to_plain(about), sort_keys=True).encode()
    arrays = {name: np.ascontiguousarray(getattr(detector.normal, name), np.dtype("<f8")) for name in _ARRAYS}
    return save({"about": np.frombuffer(text, np.uint8), **arrays})


def read_detector(path: Path) -> Detector:
    """Raises MisconfiguredError for a file that is not wholly one of ours."""
    refused = f"{path} is no detector that can be used"
    with system_errors(f"cannot read the detector {path}", "give a file that `transom backdoor fit` wrote"):
        try:
            data = read_bounded(path, _MOST_BYTES)
            detector = _detector(data, refused)
        except (ValueError, SafetensorError) as error:
            raise MisconfiguredError(f"{refused} ({type(error).__name__}); fit it again") from None
    if dumped(detector) != data:
        raise MisconfiguredError(f"{refused}: it holds something beside; fit it again")
    return detector


def _detector(data: bytes, refused: str) -> Detector:
    arrays: dict[str, Any] = load(data)
    if arrays.keys() != {"about", *_ARRAYS} or arrays["about"].dtype != np.uint8:
        raise MisconfiguredError(f"{refused}: it has other parts than a detector; fit it again")
    about = from_plain(_About, load_json(arrays.pop("about").tobytes()), refused)
    size = about.layers * len(MEASURES)
    for name, array in arrays.items():
        wanted = _shape(name, size)
        if array.dtype != np.float64 or len(array.shape) != len(wanted):
            raise MisconfiguredError(f"{refused}: {name} is of another kind or shape; fit it again")
        if any(one not in (None, got) for one, got in zip(wanted, array.shape, strict=True)):
            raise MisconfiguredError(f"{refused}: {name} has the shape {array.shape}; fit it again")
        if not np.isfinite(array).all():
            raise MisconfiguredError(f"{refused}: {name} holds a number that is not finite; fit it again")
    normal = Normal(**arrays, texts=about.texts)
    _check(normal, refused)
    return Detector(about.model, about.layers, about.before, about.after, normal)


def _shape(name: str, size: int) -> tuple[int | None, ...]:
    """By the letters and digits at the end of an array's name; without, a row of any length."""
    _, mark, letters = name.rpartition("_")
    return tuple(size if one == "F" else int(one) for one in letters) if mark else (None,)


def _check(normal: Normal, refused: str) -> None:
    """What `fit` leaves: units above zero, a precision that is one, held-out statistics in order."""
    held, precision_FF = normal.held, normal.precision_FF
    try:
        np.linalg.cholesky(precision_FF)
        whole = np.allclose(precision_FF, precision_FF.T)
    except np.linalg.LinAlgError:
        whole = False
    enough = FEWEST // 4 <= len(held) <= normal.texts
    ordered = enough and bool((np.diff(held) >= 0).all())
    if not (whole and ordered and (normal.deviation_F > 0).all() and (normal.usual_22[1] > 0).all()):
        raise MisconfiguredError(f"{refused}: its numbers are none that are fitted; fit it again")
