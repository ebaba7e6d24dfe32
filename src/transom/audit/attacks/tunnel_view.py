"""A party whose rows leave through a tunnel, as its partner sees it: recorded, or trained by the partner.

Threat model: the partner keeps all that it receives, knows the mechanism and some rows of the same kind with
their property, and, to hijack, sends what gradients it likes. Does not protect anything.
Source: own; likeness of images: Wang et al. 2004, IEEE Transactions on Image Processing 13(4), by
scikit-image; the interval of a mean is that of Student.

Shapes: N rows, K known ones, O others, F values of a row, W width of what leaves.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transom.audit.attacks.vertical_inversion import VARIANCE, explained
from transom.audit.attacks.vertical_view import Seen, misfit
from transom.errors import extra
from transom.link.hijack import Watch
from transom.link.mechanisms import Mechanism, Nothing
from transom.link.message import Step
from transom.link.tunnel import Tunnel
from transom.privacy.stream import SECRET_BYTES
from transom.report.finding import Finding, measured
from transom.report.picture import Picture, picture
from transom.report.statistics import Bools, Floats, Ints
from transom.vertical.half import EMBEDDING, GRADIENT, ROWS, Half, Task

SSIM = "SSIM"
_SHOWN = 8  # pictures
_SCORED = 1000  # rows that likeness is measured on
_Z = 1.96


@dataclass(frozen=True, eq=False)
class Tunnelled:
    """The target: what was seen of each row of training; and, where it can be run here, the party with its
    rows [N, F], to be trained by whoever sends gradients, for so many steps, and
    what watches these."""

    seen: Seen
    make: Callable[[], Half] | None
    rows_NF: Floats | None
    mechanism: Mechanism
    width: int
    batch_rows: int
    steps: int
    watch: Watch | None = None


@dataclass(frozen=True, eq=False)
class Aux:
    """What the attacker brings: numbers of rows [K] that it knows, or rows as good as those."""

    rows_K: Ints
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Hidden:
    """For scoring, and as far as rows are known: values [N, F], whether a row has the property [N] (its name
    in words), and height and width where rows are images of grey values from 0 to 1."""

    values_NF: Floats | None
    property_N: Bools | None = None
    property_is: str = ""
    shape: tuple[int, int] | None = None

    @property
    def metric(self) -> str:
        """What likeness is measured by."""
        return SSIM if self.shape else VARIANCE


class Victim:
    """The party in the attacker's hands: it embeds batches, releases them, and learns what it is sent."""

    def __init__(self, target: Tunnelled) -> None:
        if target.make is None or target.rows_NF is None:
            raise ValueError("there is no party to train")
        self._half = target.make()
        self._values = torch.from_numpy(target.rows_NF.astype(np.float32))
        self._tunnel = Tunnel(target.mechanism, Nothing(), secrets.token_bytes(SECRET_BYTES), "audit")
        self._watch = copy.deepcopy(target.watch)
        self._step = 0

    def release(self, numbers_B: Ints) -> Tensor:
        """What leaves of these rows [B, W]."""
        task = Task("forward", self._step, {ROWS: self._values[numbers_B]}, len(numbers_B))
        found_BW = self._half.do(task).tensors[EMBEDDING]
        return self._tunnel.release(found_BW, Step(0, self._step, "forward"))

    def learn(self, numbers_B: Ints, gradient_BW: Tensor) -> None:
        """From an answer to the last release. Raises LinkRefusedError where a watch sees through it."""
        if self._watch is not None:
            self._watch.see(gradient_BW)
        self._tunnel.learn(Step(0, self._step, "forward"), gradient_BW)
        tensors = {ROWS: self._values[numbers_B], GRADIENT: gradient_BW}
        self._half.do(Task("backward", self._step, tensors, len(numbers_B)))
        self.skip()

    def skip(self) -> None:
        """The last release is not answered."""
        self._step += 1


def gap(seen: Seen, knowledge: Aux, data: Hidden) -> str:
    """Why an attack on what was seen cannot be run and scored; nothing where it can."""
    return misfit(seen, knowledge.rows_K, data.values_NF, "embeddings", "feature")


def batches(count: int, size: int, draw: np.random.Generator) -> Iterator[Ints]:
    """Numbers of rows, without end, each once a round; a round's rest is left out."""
    size = min(size, count)
    while True:
        order_N = draw.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order_N[start : start + size]


def likeness(name: str, data: Hidden, rows_O: Ints, guess_OF: Floats, mean_F: Floats, note: str) -> Finding:
    """How like the guesses are to the rows [O] they are of; guessing is the mean of the known rows. Of at
    most 1,000 rows, with pictures of images."""
    rows_O, guess_OF = rows_O[:_SCORED], guess_OF[:_SCORED]
    truth_OF = np.asarray(data.values_NF)[rows_O]
    if data.shape is None:
        return explained(name, guess_OF, truth_OF, mean_F, note)
    scores_O = ssim(truth_OF, guess_OF, data.shape)
    chance = float(ssim(truth_OF, np.broadcast_to(mean_F, truth_OF.shape), data.shape).mean())
    value, error = float(scores_O.mean()), float(scores_O.std(ddof=1) / len(scores_O) ** 0.5)
    shown: tuple[Picture, ...] = tuple(
        picture(truth_F.reshape(data.shape), guess_F.reshape(data.shape))
        for truth_F, guess_F in zip(truth_OF[:_SHOWN], guess_OF[:_SHOWN], strict=True)
    )
    within = (value - _Z * error, value + _Z * error)
    return measured(name, SSIM, value, within, baseline=chance, n=len(scores_O), note=note, pictures=shown)


def require_images() -> None:
    """Raises MissingExtraError where likeness of images cannot be told."""
    with extra("images", "scikit-image"):
        import skimage.metrics  # noqa: F401


def ssim(truth_OF: Floats, guess_OF: Floats, shape: tuple[int, int]) -> Floats:
    """Of each pair of images of grey values from 0 to 1 [O]. Raises MissingExtraError."""
    require_images()
    from skimage.metrics import structural_similarity

    window = min(7, *(side - 1 + side % 2 for side in shape))  # an odd one that fits
    pairs = zip(truth_OF.reshape(-1, *shape), guess_OF.reshape(-1, *shape), strict=True)
    return np.array(
        [
            structural_similarity(  # type: ignore[no-untyped-call]
                np.asarray(truth, np.float64), np.asarray(guess, np.float64), data_range=1.0, win_size=window
            )
            for truth, guess in pairs
        ]
    )
