"""What the customer sends in place of noisy rows where the job says `denoise`: of each, the row that it lets
expect among the embeddings.

A model that was trained on plain embeddings learns little of rows whose noise is several times their length,
and much more of expected ones. They are a function of the noisy rows and of what an attacker is taken to know
(table, law, how often tokens come in public texts), so they cost no privacy: who expects them itself knows as
much. Eta and the spared tokens are part of the law: where they come of the customer's texts, what is sent
tells of them, and the guarantee says so. The tokenizer's own tokens, such as [CLS], stand at public places
and go as they are. A text's rows are the same in each epoch, as its noise is; they are kept, within a bound,
since they cost a product with the whole table.
Threat model: as `privatise`. Does not protect anything: the noise does, and attacks are measured on the noisy
rows. Source: Bayes' rule; that post-processing is free: Dwork and Roth 2014, proposition 2.1.

Shapes: B batch, T tokens, N tokens of one text, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from transom.checkpoint.cut import Front
from transom.privacy.denoise import expected_rows
from transom.privacy.nearest import Ints
from transom.privacy.noise import Floats
from transom.split.settled import Settled

if TYPE_CHECKING:
    from torch import Tensor

_UNSEEN = 0.1  # times that a token comes which comes in no public text
_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Denoiser:
    """Of a run with the embedding `table_VD`."""

    settled: Settled
    table_VD: Floats = field(repr=False)
    _kept: OrderedDict[bytes, Floats] = field(default_factory=OrderedDict, repr=False)

    @staticmethod
    def of(settled: Settled, front: Front) -> Denoiser:
        """Of a run whose customer has this front."""
        return Denoiser(settled, front.parts.embedding.weight.detach().float().cpu().numpy())

    def __call__(self, noisy_BTD: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The rows [B, T, D] to send, zero at padding; of the ids only the tokenizer's own are looked at."""
        import torch

        sent_BTD = torch.zeros_like(noisy_BTD)
        for row, length in enumerate(mask_BT.sum(1).tolist()):
            noisy_ND = noisy_BTD[row, :length].float().cpu().numpy()
            found_ND = self._expected(noisy_ND, ids_BT[row, :length].cpu().numpy())
            sent_BTD[row, :length] = torch.from_numpy(found_ND).to(sent_BTD)
        return sent_BTD

    def _expected(self, noisy_ND: Floats, ids_N: Ints) -> Floats:
        key = hashlib.sha256(noisy_ND.tobytes()).digest()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found_ND = self.expected(noisy_ND)
        framed_N = self.settled.framed(len(ids_N))
        found_ND[framed_N] = self.table_VD[ids_N[framed_N]]
        self._kept[key] = found_ND
        while sum(one_ND.nbytes for one_ND in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return found_ND

    def expected(self, noisy_ND: Floats) -> Floats:
        """The rows [N, D] to expect of noisy ones, wherever they stand in their texts."""
        eta_V = self.settled.etas(np.arange(len(self.table_VD)))
        return expected_rows(noisy_ND, self.table_VD, eta_V, prior_V=self._prior_V, shape=self.settled.shape)

    @cached_property
    def _prior_V(self) -> Floats:
        """How often each token comes in the public texts; all alike without any."""
        prior_V = np.full(len(self.table_VD), _UNSEEN if self.settled.common else 1.0)
        for token, count in self.settled.common:
            prior_V[token] = count
        return prior_V
