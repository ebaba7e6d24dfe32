"""The id stage of mode enclave: sanitised ids become embedding rows here, and only rows go to the engine.

The table was opened inside this process by a key that a broker released against evidence (`transom.enclave`).
The engine looks up the tokens that it generates in its own copy: answers were never hidden from it.
Threat model: this process is the enclave. Its machine's owner, who sends prompts and may want the table,
sees neither rows nor ids of them on the wire (TLS to one pinned key). The engine's owner maps rows back
to ids at once, so what protects the prompt is the word sanitiser alone.
Does not protect: a user and a host who collude; a prompt per word and a look at the answers teach a user
something of the model, as any use of it does. The extraction meter bounds distinct rows within a day for
one process: a restart forgets, several gateways have several meters, and the clock is the machine's.
Source: Yu et al., arXiv 2509.09091; extraction bound: own.

Shapes: T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from transom.enclave.evidence import Trust
from transom.enclave.table import EmbeddingTable
from transom.errors import BundleError, RefusedError
from transom.serving.engines.base import EngineCard

_DAY_S = 86_400.0


class ExtractionMeter:
    """Counts the distinct rows embedded within the last day, and refuses beyond `share` of the table."""

    def __init__(self, rows: int, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_rows = max(1, int(rows * share))
        self._used_s_V = np.full(rows, -np.inf)
        self._clock = clock

    @property
    def distinct_rows(self) -> int:
        """Rows embedded within the last day."""
        return int((self._used_s_V > self._clock() - _DAY_S).sum())

    def count(self, ids: Sequence[int]) -> None:
        """Count these rows. Raises RefusedError (429) beyond the limit; then none is counted."""
        now_s = self._clock()
        rows = np.unique(np.asarray(ids, dtype=np.int64))
        fresh = int((self._used_s_V[rows] <= now_s - _DAY_S).sum())
        if self.distinct_rows + fresh > self.limit_rows:
            raise RefusedError(
                f"this request would embed more than {self.limit_rows} distinct tokens within a day, which "
                "the bundle's owner does not allow; wait, or ask for a bundle with a larger extraction share",
                status=429,
                code="extraction_limit",
            )
        self._used_s_V[rows] = now_s


@dataclass(frozen=True)
class Enclave:
    """An opened bundle: its table, what the evidence behind it can prove, and which model it is for."""

    table: EmbeddingTable = field(repr=False)
    meter: ExtractionMeter = field(repr=False)
    model: str
    trust: Trust
    measurement: str

    def check(self, card: EngineCard) -> None:
        """Raises BundleError unless the engine serves the bundle's model, as far as its card tells."""
        if card.model != self.model:
            raise BundleError(
                f"the bundle is for the model {self.model!r}, the engine serves {card.model!r}; serve it "
                "under the bundle's name (transom engine --name, vLLM --served-model-name), or get its bundle"
            )
        if card.width not in (None, self.table.width):
            raise BundleError(
                f"the bundle's rows have width {self.table.width}, the engine's model {card.width}; "
                "one of them is for another model"
            )

    def embed(self, prompts: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], ...]:
        """Rows [T, D] of each prompt's ids. Raises RefusedError beyond the extraction limit."""
        self.meter.count([i for ids in prompts for i in ids])
        return tuple(self.table.rows(ids) for ids in prompts)
