"""Stand-in until branch split-rows is merged, whose file replaces this one: what serving needs of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.config import from_plain, load_json, to_plain
from transom.errors import CheckpointError
from transom.privacy.nearest import Ints
from transom.privacy.noise import Floats, clipped, d_chi, gaussian
from transom.privacy.stream import Stream
from transom.split.job import Noise, SplitJob


@dataclass(frozen=True)
class Settled:
    noise: Noise
    after_block: int
    changing: bool
    releases: int
    longest: int
    nearest: float
    eta: float | None = None

    def ready(self, rows_ND: Floats) -> Floats:
        return rows_ND if self.noise.clip is None else clipped(rows_ND, self.noise.clip)

    def draw(self, stream: Stream, ids_N: Ints, width: int) -> NDArray[np.float64]:
        if self.noise.kind == "gaussian":
            return gaussian(stream, len(ids_N), width, self.noise.sigma or math.nan)
        return d_chi(stream, len(ids_N), width, self.eta or math.nan)

    def to_bytes(self) -> bytes:
        return json.dumps(to_plain(self), indent=1).encode()


def settled_from(data: bytes, job: SplitJob) -> Settled:
    return from_plain(Settled, load_json(data), "the noise kept of the run", error=CheckpointError)
