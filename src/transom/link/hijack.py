"""Does the partner train our model for the task, or for itself? Gradients that all push one way tell.

Of a loss that a top with a bias has learnt, the rows of a batch pull embeddings apart: residuals add up to
about nothing. Who hijacks a bottom (feature-space hijacking) sends gradients of a discriminator that wants
all rows to look like rows of its own, and they all push one way. `coherence` is the squared length of the
gradients' mean by their mean squared length, from 1 / B for independent rows to 1. The watch looks at its
mean over the last `WINDOW` batches, once the first ones are over, in which a bias may still be learnt.
Threat model: a partner that makes up gradients, and does not know that someone watches or how.
Does not protect: against gradients from which the partner takes their mean away (the benchmark has a row for
that attacker), or against trainings of fewer batches than the first ones and a window; what was sent until
then is seen.
Source: own; the attack: Pasquini et al., CCS 2021, arXiv 2012.02670; others compare gradients of rows of one
label with those of others, which a party without labels cannot: Fu et al., NDSS 2023; Erdogan et al. 2022,
arXiv 2108.09052.

Legend: B rows of a batch, W width.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from transom.errors import LinkRefusedError, extra

with extra("link", "torch"):
    from torch import Tensor

FIRST, WINDOW = 100, 100  # batches
MOST = 0.5  # mean coherence; of honest runs see benchmarks/tunnel_defence.py
_FEWEST_ROWS = 8  # a batch of fewer says little


@dataclass
class Watch:
    """Looks at one batch of gradients after the other."""

    seen: int = 0
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def see(self, gradient_BW: Tensor) -> None:
        """Raises LinkRefusedError once gradients look like those of a hijacker."""
        if len(gradient_BW) < _FEWEST_ROWS:
            return
        self.seen += 1
        if self.seen <= FIRST:
            return
        self._last.append(coherence(gradient_BW))
        mean = sum(self._last) / WINDOW
        if len(self._last) == WINDOW and mean > MOST:
            raise LinkRefusedError(
                f"gradients of the last {WINDOW} batches push all rows one way ({mean:.2f}, of a learnt task "
                f"below {MOST}): the partner may train your model to read your rows. Nothing more is sent; "
                "ask what it trains, and audit what it got: transom audit tunnel"
            )


def coherence(gradient_BW: Tensor) -> float:
    """From 1 / B for rows that have nothing in common to 1 for rows that are one; 0 for zeros."""
    rows_BW = gradient_BW.detach().double().flatten(1)
    power = rows_BW.square().sum(1).mean()
    return float(rows_BW.mean(0).square().sum() / power) if power else 0.0
