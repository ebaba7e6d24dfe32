"""Does the partner train our model for the task, or for itself? Gradients of a task have a look of their own.

Of a loss that a top with a bias has learnt, residuals add up to about nothing, so the rows of a batch pull
embeddings apart: who wants them all in one place pushes them one way, and `coherence` shows it: the squared
length of the gradients' mean by their mean squared length, from 1 / B for independent rows to 1. And a top
with one output asks for little: its gradients lie in few directions, while those of a decoder, which wants to
know all of a row, lie in many: `directions` is their participation ratio (tr M)^2 / tr M^2, M the matrix of
their second moments. The watch looks at the means over the last `WINDOW` batches, once the first ones are
over, in which a bias may still be learnt.
Threat model: a partner that makes up gradients.
Does not protect: against one that keeps to few directions (through a narrow tunnel it has no others), against
trainings of fewer batches than the first ones and a window, against what was sent until then. Tasks of
several outputs have as many directions, so of these coherence alone is looked at. Honest gradients with noise
have as many, too, and are not to be watched.
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
MOST_COHERENCE, MOST_DIRECTIONS = 0.5, 4.0  # means; those of honest runs: docs/tunnel.md
_FEWEST_ROWS = 8  # a batch of fewer says little


@dataclass
class Watch:
    """Looks at one batch of gradients after the other; `one_output` says that the task has no more."""

    one_output: bool
    seen: int = 0
    _coherence: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _directions: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def saved(self) -> tuple[float, ...]:
        """All that it has seen and still looks at."""
        return (float(self.seen), *self._coherence, *self._directions)

    def restore(self, saved: tuple[float, ...]) -> None:
        """The reverse of `saved`."""
        half = (len(saved) - 1) // 2
        self.seen = int(saved[0]) if saved else 0
        self._coherence.extend(saved[1 : 1 + half])
        self._directions.extend(saved[1 + half :])

    def see(self, gradient_BW: Tensor) -> None:
        """Raises LinkRefusedError once gradients look like those of a hijacker."""
        if len(gradient_BW) < _FEWEST_ROWS:
            return
        self.seen += 1
        if self.seen <= FIRST:
            return
        self._coherence.append(coherence(gradient_BW))
        self._directions.append(directions(gradient_BW) if self.one_output else 0.0)
        if len(self._coherence) < WINDOW:
            return
        found, many = sum(self._coherence) / WINDOW, sum(self._directions) / WINDOW
        if found > MOST_COHERENCE or many > MOST_DIRECTIONS:
            raise LinkRefusedError(
                f"gradients of the last {WINDOW} batches have coherence {found:.2f} and {many:.1f} "
                f"directions, a task's at most {MOST_COHERENCE:g} and {MOST_DIRECTIONS:g}: the partner may "
                "train your model to read your rows. Nothing more is sent; ask what it trains, and audit "
                "what it got: transom audit tunnel"
            )


def coherence(gradient_BW: Tensor) -> float:
    """From 1 / B for rows that have nothing in common to 1 for rows that are one; 0 for zeros."""
    rows_BW = gradient_BW.detach().double().flatten(1)
    power = rows_BW.square().sum(1).mean()
    return float(rows_BW.mean(0).square().sum() / power) if power else 0.0


def directions(gradient_BW: Tensor) -> float:
    """In how many directions rows lie: from 1 to their width; 0 for zeros."""
    rows_BW = gradient_BW.detach().double().flatten(1)
    gram = rows_BW.T @ rows_BW if rows_BW.shape[1] < len(rows_BW) else rows_BW @ rows_BW.T
    whole = gram.square().sum()
    return float(gram.trace() ** 2 / whole) if whole else 0.0
