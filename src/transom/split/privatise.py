"""The customer's states leave with noise, and what that promises is said.

While the front stays as it is, a text's states are the same in every epoch, and fresh noise would average
out. So noise is drawn once a text and run: what goes again carries the noise of the first time. A front that
is trained changes the states; then noise is drawn anew at each step and priced for each. Noise is a function
of the secret, the run, the row and what is in it: two texts never share it, whatever their numbers, and in no
case does it depend on a seed. It is added in float64; what the wire rounds afterwards is of the noisy states.
Threat model: the vendor keeps all that it gets and knows model, law and settings, but no text and no secret.
Does not protect: the number of tokens of each text; gradients and labels, which are not states; that a text
of no file is asked again, which equal bytes show; after a block, states whose last bits differ with the batch
that they were computed in.
Source: Shen et al., arXiv 2312.15603; Balle and Wang 2018 (Gaussian).

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from transom.checkpoint.cut import Front
from transom.checkpoint.finite import is_finite
from transom.config import to_plain
from transom.errors import LinkRefusedError, MisconfiguredError
from transom.privacy.guarantee import Guarantee
from transom.privacy.nearest import Ints
from transom.privacy.noise import Floats, d_chi_guarantee, gaussian_guarantee, noised
from transom.privacy.stream import Stream
from transom.split.job import SplitJob
from transom.split.rows import Rows
from transom.split.settle import Settled, settle

if TYPE_CHECKING:
    from torch import Tensor

Topic = Literal["train", "evaluate", "predict"]
_SEEN = "the vendor can tell eta from the length of the noise, width / eta on average, though it is not told"
_NOT_MEASURED = (
    "after a block the nearest neighbour among embeddings reads nothing, which is no privacy: an inverter "
    "that is trained on public texts may; audit it"
)


@dataclass(frozen=True)
class Privatiser:
    """Adds a run's noise to states. `secret` is the run's 32 bytes, which the vendor does not have."""

    settled: Settled
    secret: bytes = field(repr=False)
    run: str

    def __call__(
        self,
        states_BTD: Tensor,
        ids_BT: Tensor,
        mask_BT: Tensor,
        numbers_B: Sequence[int],
        step: int,
        topic: Topic = "train",
    ) -> Tensor:
        """The states [B, T, D] to send: with noise, zero at padding, without a graph; their type and device.

        `numbers_B` are the rows' numbers in their file, 0 for texts of no file (`predict`: one that is asked
        again has the same noise); `step` counts where the front is trained. Raises LinkRefusedError for
        states that are not finite, MisconfiguredError for shapes that do not fit and texts too long.
        """
        import torch

        if (
            states_BTD.shape[:2] != ids_BT.shape
            or mask_BT.shape != ids_BT.shape
            or len(numbers_B) != len(ids_BT)
        ):
            raise MisconfiguredError(
                f"states {tuple(states_BTD.shape)}, ids {tuple(ids_BT.shape)}, mask {tuple(mask_BT.shape)} "
                f"and {len(numbers_B)} row numbers do not fit each other"
            )
        if not is_finite(states_BTD):
            raise LinkRefusedError(
                f"states of step {step} are not finite; nothing left. Lower the learning rate"
            )
        token_BT, real_BT = ids_BT.cpu().numpy().astype("<i8"), mask_BT.cpu().numpy() != 0
        plain_BTD = states_BTD.detach().float().cpu().numpy()
        sent_BTD = np.zeros_like(plain_BTD)
        for row, number in enumerate(numbers_B):
            real_T = real_BT[row]
            label = f"{topic}/{number:d}"
            sent_BTD[row, real_T] = self._noisy(plain_BTD[row, real_T], token_BT[row, real_T], label, step)
        return torch.from_numpy(sent_BTD).to(states_BTD)

    def _noisy(self, states_ND: Floats, ids_N: Ints, row: str, step: int) -> Floats:
        settled = self.settled
        if len(ids_N) > settled.longest:
            raise MisconfiguredError(
                f"a text has {len(ids_N)} tokens, and the run's at most {settled.longest}"
            )
        what, when = ids_N.tobytes(), "once"
        if settled.changing:
            what, when = what + states_ND.tobytes(), str(step)
        label = f"split/{self.run}/{row}/{when}/{hashlib.sha256(what).hexdigest()}"
        noise_ND = settled.draw(Stream(self.secret, label), ids_N, states_ND.shape[1])
        return noised(settled.ready(states_ND), noise_ND)

    @property
    def guarantee(self) -> Guarantee:
        """What the noise of the whole run promises for one row."""
        return guarantee(self.settled)

    def report(self) -> dict[str, Any]:
        """For the customer: settings, what was found and measured, and what is promised; ready for JSON."""
        settled, noise = self.settled, self.settled.noise
        eta = settled.eta
        return {
            "noise": to_plain(noise),
            "eta": eta,
            "eta_from": settled.eta_from if eta else None,
            "eta_known_to_vendor": _SEEN if eta else None,
            "nearest_distance": settled.nearest,
            "nearest_is_of": "states of texts" if settled.after_block else "embeddings",
            "eta_times_nearest": eta * settled.nearest if eta else None,
            "spared": settled.spared_told or None,
            "directions": len(settled.basis[0]) if settled.basis else 0,
            "drawn": "at each step" if settled.changing else "once a text",
            "releases_of_a_row_at_most": settled.releases,
            "privacy_nearest_neighbour": dict(settled.measured) or None,
            "not_measured": None if settled.measured else _NOT_MEASURED,
            "guarantee": self.guarantee.to_dict(),
        }


def make_privatiser(
    job: SplitJob, front: Front, rows: Rows, secret: bytes, run: str, public: Rows | None = None
) -> Privatiser:
    """The privatiser of a new run; arguments and errors as `settle.settle`.

    To go on or to predict, take what was kept: `Privatiser(settled_from(data, job), secret, run)`.
    """
    return Privatiser(settle(job, front, rows, secret, run, public), secret, run)


def guarantee(settled: Settled) -> Guarantee:
    """What the noise promises: of a token's row at the embedding, of a whole text's rows after a block."""
    noise = settled.noise
    if noise.kind == "none":
        return _empirical("nothing is protected: the vendor gets the states themselves")
    if noise.kind == "gaussian":
        return _gaussian(settled)
    eta = settled.eta or math.nan
    if settled.after_block:
        return _empirical(
            f"eta {eta:g}, released {settled.releases} times, {eta * settled.nearest:.3g} between nearest "
            "states; a token moves every row of its text there, so d_chi's bound of one row covers no token, "
            "and attacks measure what is left"
        )
    found = d_chi_guarantee(
        eta, settled.nearest, inside=noise.inside, releases=settled.releases, spared=settled.spared_told
    )
    if settled.eta_from == "the customer's texts":
        found = replace(found, discloses=(*found.discloses, f"eta, found on the texts: {_SEEN}"))
    return found


def _gaussian(settled: Settled) -> Guarantee:
    """A token moves one row at the embedding; after a block all rows of its text, each by twice the clip."""
    clip, sigma = settled.noise.clip or math.nan, settled.noise.sigma or math.nan
    if not settled.after_block:
        return gaussian_guarantee(sigma, clip, releases=settled.releases)
    found = gaussian_guarantee(
        sigma, clip * math.sqrt(settled.longest), releases=settled.releases, unit="all tokens of one text"
    )
    told = f"a text has at most {settled.longest} tokens, all of whose rows are covered together"
    return replace(found, assumptions=(told, *found.assumptions[1:]))


def _empirical(why: str) -> Guarantee:
    return Guarantee(
        kind="empirical",
        unit="one text's states",
        adjacency="texts that differ in one token",
        assumptions=(why,),
        discloses=("the number of tokens",),
        source="Shen et al., arXiv 2312.15603",
    )
