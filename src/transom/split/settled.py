"""The noise of a run, as it was settled: what makes it, and how it is kept.

Threat model: the vendor knows everything here but the spared tokens and eta, and can estimate those.
Does not protect: a kept file that was changed on the customer's own disk.
Source: as `settle`.

Shapes: N tokens, V vocabulary, D width, R directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.config import from_plain, load_json, to_plain
from transom.errors import CheckpointError
from transom.link.tunnels import TunnelSettings
from transom.privacy.nearest import Ints
from transom.privacy.noise import Floats, Narrow, Shape, clipped, d_chi, gaussian, noised
from transom.privacy.stream import Stream
from transom.split.job import Noise, SplitJob

if TYPE_CHECKING:
    from transom.link.mechanisms import Mechanism


@dataclass(frozen=True)
class Settled:
    """The noise of a run.

    `nearest` is the distance that eta is multiplied by: from a token's embedding to the nearest other one,
    after a block from a state to the nearest other one of some texts, with `pool` from a text's mean to the
    nearest other one, with `narrow` to the median other one. `releases` is how often a row goes with noise of
    its own at most, `longest` how many tokens a text has at most. `basis` [D][R] is empty without directions,
    `center` [D], the mean of the texts that they were found on, but with `narrow`. `measured` is empty where
    the nearest neighbour measures nothing. To denoise: `common` are tokens of public texts and how often each
    comes, `before` and `after` how many of each text's first and last tokens are the tokenizer's own. `last`:
    see `pooled`. `strength` and `gradient_strength` are those of the tunnels, which are found once: another
    one under the same labels would let the noise cancel out.
    """

    noise: Noise
    after_block: int
    changing: bool  # the front is trained, so its states change with the step
    releases: int
    longest: int
    nearest: float
    eta: float | None = None
    eta_from: str = "the job"
    spared: tuple[int, ...] = ()
    spared_told: str = ""
    basis: tuple[tuple[float, ...], ...] = ()
    center: tuple[float, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)
    common: tuple[tuple[int, int], ...] = ()
    before: int = 0
    after: int = 0
    last: bool = False
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    strength: float = 0.0
    gradient_strength: float = 0.0

    @property
    def shape(self) -> Shape | None:
        """The noise's shape, if it has one."""
        return Shape(np.array(self.basis), self.noise.inside) if self.noise.inside != 1 else None

    @property
    def narrow(self) -> Narrow | None:
        """What alone passes of a text's row, if not all does."""
        return Narrow(np.array(self.center), np.array(self.basis)) if self.noise.narrow else None

    def etas(self, ids_N: Ints) -> Floats:
        """The eta of each token's noise [N]."""
        spared_N = np.isin(ids_N, np.array(self.spared, np.int64))
        return np.where(spared_N, self.noise.spare, 1.0) * (self.eta or math.nan)

    def framed(self, length: int) -> NDArray[np.bool_]:
        """Which tokens [N] of a text of this length are the tokenizer's own, by their places alone."""
        places_N = np.arange(length)
        return np.asarray((places_N < self.before) | (places_N >= length - self.after))

    def pooled(self, states_ND: Floats) -> Floats:
        """The row [1, D] of a text that goes with `pool`: the mean of its tokens' states or the `last`
        one; the tokenizer's own are left out where there are others."""
        own_N = self.framed(len(states_ND))
        inner_ND = states_ND[~own_N if not own_N.all() else own_N]
        return np.asarray(inner_ND[-1:] if self.last else inner_ND.mean(0, keepdims=True))

    def ready(self, rows_ND: Floats) -> Floats:
        """The rows that noise is added to: of narrow ones the coordinates; the Gaussian's are clipped."""
        rows_ND = rows_ND if self.narrow is None else self.narrow.coordinates(rows_ND)
        return rows_ND if self.noise.clip is None else clipped(rows_ND, self.noise.clip)

    def draw(self, stream: Stream, ids_N: Ints, width: int) -> NDArray[np.float64]:
        """The noise [N, D] of these tokens."""
        if self.noise.kind == "none":
            return np.zeros((len(ids_N), width))
        if self.noise.kind == "gaussian":
            return gaussian(stream, len(ids_N), width, self.noise.sigma or math.nan)
        noise_ND = d_chi(stream, len(ids_N), width, self.etas(ids_N))
        shape = self.shape
        return noise_ND if shape is None else np.asarray(shape.bend(noise_ND), np.float64)

    @property
    def together(self) -> int:
        """How many releases of rows one promise is of: after a block a token moves every row of its text."""
        rows = self.longest if self.after_block and not self.noise.pool else 1
        return self.releases * rows

    @property
    def mechanism(self) -> Mechanism:
        """What rows pass."""
        return self.tunnel.made(self.strength, signed=True)

    def noisy(self, rows_ND: Floats, ids_N: Ints, stream: Stream) -> Floats:
        """What may leave of the rows [N, D] of these tokens; of narrow ones the coordinates."""
        import torch

        ready_ND = self.ready(rows_ND)
        if self.tunnel.kind == "none":
            return noised(ready_ND, self.draw(stream, ids_N, ready_ND.shape[1]))
        passed_ND = self.mechanism.privatise(torch.from_numpy(ready_ND).double(), stream)
        return np.asarray(passed_ND.numpy(), ready_ND.dtype)

    def to_bytes(self) -> bytes:
        """As JSON, to be kept beside the customer's state."""
        return json.dumps(to_plain(self), indent=1).encode()


def settled_from(data: bytes, job: SplitJob) -> Settled:
    """What `to_bytes` wrote. Raises CheckpointError unless it is whole and of a job with this noise."""
    try:
        value = load_json(data)
    except ValueError:
        raise CheckpointError(
            f"the noise kept of the run ({len(data)} bytes) is no JSON; restore it, or begin the run anew"
        ) from None
    found = from_plain(Settled, value, "the noise kept of the run", error=CheckpointError)
    before = (replace(found.noise, public=None), found.tunnel, found.after_block, found.changing)
    if before != (replace(job.noise, public=None), job.tunnel, job.after_block, job.return_gradient):
        raise CheckpointError("the noise kept of the run is not this job's; restore the job, or begin anew")
    directions = found.noise.directions if found.noise.narrow or found.noise.inside != 1 else 0
    center = len(found.basis) if found.noise.narrow else 0
    if (len(found.center), {len(row) for row in found.basis}) != (center, {directions} - {0}):
        raise CheckpointError(
            f"the noise kept of the run has {len(found.basis)} rows of directions and a mean of "
            f"{len(found.center)} numbers, which are not this job's; restore it, or begin the run anew"
        )
    return found
