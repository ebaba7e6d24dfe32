"""How likely a token's row is to have left through r3elu-dp as what was seen, exactly.

Of a value v whose place may leave nothing is told with probability 1 - p(v); else v with Laplace noise, drawn
back into the range, at whose ends probability gathers. What is expected of it is told in its place, which
grows with it, and so is undone.
Threat model: see `split_view`; which places may leave is known. Does not protect anything.
Source: the law of `transom.link.r3elu`.

Shapes: R views, N tokens, V vocabulary, C candidates, D width, K values of a row that may leave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from transom.link.r3elu import R3eluDp

_AT_ONCE = 64  # tokens
_END = 1 - 1e-6  # of the range: from there on a value was drawn back


@dataclass(frozen=True, eq=False)
class Responses:
    """Of one mechanism and the rows of all ids; signed values."""

    mechanism: R3eluDp
    table_VD: torch.Tensor

    def log_likelihood(self, views_RND: torch.Tensor, ids_C: torch.Tensor) -> torch.Tensor:
        """[N, C] of each token's views under each id, up to a constant."""
        import torch

        law = self.mechanism.law(views_RND.shape[2])
        rows_CK = (
            self.table_VD[ids_C][:, law.places].double().clamp(-self.mechanism.clip, self.mechanism.clip)
        )
        found = []
        for part_RND in torch.split(views_RND.double(), _AT_ONCE, 1):
            log_NC = part_RND.new_zeros(part_RND.shape[1], len(ids_C))
            for seen_NK in part_RND[..., law.places]:
                for place in range(len(law.places)):
                    log_NC += self._one(seen_NK[:, place], rows_CK[:, place], place)
            found.append(log_NC.float())
        return torch.cat(found)

    def _one(self, seen_N: torch.Tensor, rows_C: torch.Tensor, place: int) -> torch.Tensor:
        import torch

        clip, law = self.mechanism.clip, self.mechanism.law(self.table_VD.shape[1])
        kept_C = law.least_K[place] + law.slope_K[place] * rows_C.abs()
        scale, told_N = float(law.scale_K[place]), self._told(seen_N, place)
        away_NC = (told_N[:, None] - rows_C).abs() / scale
        inner_N = told_N.abs() < _END * clip
        told_NC = torch.where(inner_N[:, None], -away_NC - math.log(2 * scale), -away_NC - math.log(2))
        dropped_N = seen_N == 0
        return torch.where(dropped_N[:, None], (1 - kept_C).log(), told_NC + kept_C.log())

    def _told(self, seen_N: torch.Tensor, place: int) -> torch.Tensor:
        """What stood there before the expectation took its place."""
        import torch

        if not self.mechanism.denoise:
            return seen_N
        told_G, expected_G = self.mechanism.expectation(self.table_VD.shape[1], place)
        clip = self.mechanism.clip
        return clip * torch.from_numpy(np.interp(seen_N.numpy() / clip, expected_G, told_G))
