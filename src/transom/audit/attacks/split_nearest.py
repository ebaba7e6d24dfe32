"""EIA: name each noised state after the token that it most likely comes from, each token alone.

At the embedding a token's state is its row of the public table, and the law of the noise says how likely
each row is: with d_chi the logarithm falls with eta times the distance, with Gaussian noise with its square;
shaped noise is levelled first, and shorter noise speaks for ids that are spared. After k blocks a state lies
around the mean state of its id, in public text or, for ids that it lacks, put into it. How often an id is met
in public text is the prior.

Threat model: see `split_view`. Does not protect anything; it knows no context.
Source: Shen et al., arXiv 2312.15603 (embedding inversion attack); Fisher 1936 (states of one covariance);
the prior is our own.

Shapes: N tokens, B texts, T tokens of a text, R views of it, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transom.audit.attacks.rows import Noise
from transom.audit.attacks.split_responses import Responses
from transom.audit.attacks.split_view import Law, Private, Public, Seen, cut_up, misfit, read
from transom.audit.attacks.states import METRIC
from transom.report.finding import Finding

if TYPE_CHECKING:
    import torch

NAME = "eia/nearest"
_TOKENS = 512  # read side by side
_LEAST = 1e-4  # of a state's variance: what it is taken to have in every direction
__all__ = ["METRIC", "NAME", "Reader", "attack", "reader"]


@dataclass(frozen=True, eq=False)
class Alike:
    """The states of all ids and a law around them, in coordinates in which it has no directions; `log_norm`
    is the logarithm of how dense it is, up to a constant."""

    level_DD: torch.Tensor | None
    rows_VD: torch.Tensor
    noise: Noise
    log_norm: float = 0.0

    def log_likelihood(self, views_RND: torch.Tensor, ids_C: torch.Tensor) -> torch.Tensor:
        """[N, C] of each token's states under each id; views count one by one."""
        rows_CD = self.rows_VD[ids_C]
        log_NC = views_RND.new_full((views_RND.shape[1], len(ids_C)), len(views_RND) * self.log_norm)
        for states_ND in views_RND.float():
            states_ND = states_ND if self.level_DD is None else states_ND @ self.level_DD.T
            log_NC += self.noise.log_likelihood(self.noise.distance(states_ND, rows_CD))
        return log_NC


@dataclass(frozen=True, eq=False)
class Reader:
    """A law for each strength of noise, which of them each id has [V], and how often the id is met."""

    laws: tuple[Alike | Responses, ...]
    which_V: torch.Tensor
    log_prior_V: torch.Tensor

    def log_posterior(self, views_RND: torch.Tensor, ids_C: torch.Tensor | None = None) -> torch.Tensor:
        """[N, C] of each id (None: of all) for each token, up to a constant."""
        import torch

        ids_C = torch.arange(len(self.which_V)) if ids_C is None else ids_C
        log_NC = self.log_prior_V[ids_C].repeat(views_RND.shape[1], 1)
        for number, law in enumerate(self.laws):
            here_C = self.which_V[ids_C] == number
            log_NC[:, here_C] += law.log_likelihood(views_RND, ids_C[here_C])
        return log_NC


def attack(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    """Share of tokens named. `budget_s` is not used: one product."""
    import torch

    if gap := misfit(NAME, METRIC, target, knowledge, data):
        return gap
    by_table = reader(target.law, target.views, knowledge)
    parts = torch.split(_views(target, knowledge), _TOKENS, 1)
    best_N = torch.cat([by_table.log_posterior(part_RND).argmax(1) for part_RND in parts])
    where = f"states after block {knowledge.after_block}" if knowledge.after_block else "rows of the table"
    note = f"among {where}, {target.views} views"
    return read(NAME, cut_up(best_N.numpy(), data.texts), data, note=note)


def _views(target: Seen, knowledge: Public) -> torch.Tensor:
    """[R, N, D]: all views, or their mean where a state differs from its id's by more than noise."""
    import torch

    return torch.cat(target.means)[None] if knowledge.after_block else torch.cat(target.states, 1)


def reader(law: Law, views: int, knowledge: Public) -> Reader:
    """For states with noise of `law`: one view at the embedding, the mean of so many after blocks."""
    import torch

    from transom.link.r3elu import R3eluDp

    log_prior_V = torch.from_numpy(np.log(knowledge.unigram_V)).float()
    if isinstance(law.mechanism, R3eluDp) and not knowledge.after_block:
        told = Responses(law.mechanism, knowledge.table_VD)
        return Reader((told,), torch.zeros(len(log_prior_V)), log_prior_V)
    if law.spare_V is None:
        return Reader((_alike(law, views, knowledge),), torch.zeros(len(log_prior_V)), log_prior_V)
    factors, which_V = np.unique(law.spare_V.numpy(), return_inverse=True)
    laws = tuple(_alike(law.spared_by(factor), views, knowledge) for factor in factors.tolist())
    return Reader(laws, torch.from_numpy(which_V), log_prior_V)


def _alike(law: Law, views: int, knowledge: Public) -> Alike:
    """Of ids whose noise has one strength."""
    import torch

    if not knowledge.after_block:
        noise, table_VD = law.noise, law.clean(knowledge.table_VD)
        if noise.law == "none" or noise.scale is None:
            noise = Noise("gaussian", float(table_VD.std()) / 10)
        level_DD = None if law.shape_DD is None else law.level(torch.eye(table_VD.shape[1])).T
        log_norm = -table_VD.shape[1] * math.log(noise.scale or 1.0)
        return Alike(level_DD, law.level(table_VD), noise, log_norm)
    rows_VD, around_DD = knowledge.around
    shape_DD = torch.eye(len(around_DD)) if law.shape_DD is None else law.shape_DD
    spread_DD = around_DD + law.noise.variance(len(around_DD)) / views * shape_DD @ shape_DD.T
    spread_DD = spread_DD + _LEAST * spread_DD.diagonal().mean() * torch.eye(len(spread_DD))
    level_DD = torch.linalg.inv(torch.linalg.cholesky(spread_DD))
    rows_VD = law.clean(rows_VD) @ level_DD.T
    return Alike(level_DD, rows_VD, Noise("gaussian", 1.0), float(torch.linalg.slogdet(level_DD)[1]))
