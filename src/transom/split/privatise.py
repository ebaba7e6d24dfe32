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
With `pool` a text leaves as one row, the mean of its tokens' states, of a causal model the last one, which
alone has seen them all: their number does not leave, and what the noise promises of a row it promises of the
whole text. With `narrow` only its part in the task's directions does: a few numbers a text, which is where
the noise is, too.
Source: Shen et al., arXiv 2312.15603; Balle and Wang 2018 (Gaussian). Pooling at the cut is own.

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
from transom.link.tunnels import budget_report
from transom.privacy.guarantee import Guarantee
from transom.privacy.nearest import Ints
from transom.privacy.noise import TEXT, TOKEN, Floats, d_chi_guarantee, gaussian_guarantee
from transom.privacy.stream import Stream
from transom.split.job import Noise, SplitJob
from transom.split.rows import Rows
from transom.split.settle import settle
from transom.split.settled import Settled

if TYPE_CHECKING:
    from torch import Tensor

Topic = Literal["train", "evaluate", "predict"]
_SEEN = "the vendor can tell eta from the length of the noise, width / eta on average, though it is not told"
_COMPUTED = (
    "what is sent is computed with eta and with which tokens are spared, and tells of both, though the "
    "vendor is told neither"
)
_NOISY = "the noisy rows"
_EXPECTED = "of each noisy row what it lets expect, which tells of a text nothing that the noisy row does not"
_ROW = "one row a text, the mean of its tokens' states or, of a causal model, the last one"
_POOLED = f"{_ROW}: with the noise"
_NARROWED = f"{_ROW}: its part in the task's directions, with the noise"
_MEAN = "the row of a text tells of its words, whatever their order; audit it"
_FEW = "they tell of it what tells the classes, and of its words what goes with that; audit it"
_OWN = (
    "the label of each text that is trained on, as far as the directions fit it, which were found on these "
    "labels; the directions themselves, and the mean around which rows lie"
)
_EACH = "a text of two rows, or one that is asked later as a text of no file, is released once for each"
_TYPICAL = "two texts, at the median distance"  # in a few directions some two always lie side by side
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
        With `pool` [B, 1, D].

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
        leaves_BT = self.leaving(mask_BT).cpu().numpy() != 0
        sent_BTD = np.zeros((*leaves_BT.shape, plain_BTD.shape[2]), plain_BTD.dtype)
        for row, number in enumerate(numbers_B):
            real_T = real_BT[row]
            label = f"{topic}/{number:d}"
            noisy_ND = self._noisy(plain_BTD[row, real_T], token_BT[row, real_T], label, step)
            sent_BTD[row, leaves_BT[row]] = noisy_ND
        return torch.from_numpy(sent_BTD).to(states_BTD)

    def leaving(self, mask_BT: Tensor) -> Tensor:
        """The mask of what is sent of texts with this one: with `pool` [B, 1], of ones."""
        return mask_BT.new_ones((len(mask_BT), 1)) if self.settled.noise.pool else mask_BT

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
        if settled.noise.pool:
            states_ND, ids_N = settled.pooled(states_ND), ids_N[:1]
        noisy_ND = settled.noisy(states_ND, ids_N, Stream(self.secret, label))
        return noisy_ND if settled.narrow is None else settled.narrow.rows(noisy_ND)

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
            "eta_known_to_vendor": _seen(settled) if eta else None,
            "sent": _sent(noise),
            "nearest_distance": settled.nearest,
            "nearest_is_of": _nearest_is_of(settled),
            "eta_times_nearest": _bound(settled) if eta else None,
            "spared": settled.spared_told or None,
            "directions": len(settled.basis[0]) if settled.basis else 0,
            "drawn": "at each step" if settled.changing else "once a text",
            "releases_of_a_row_at_most": settled.releases,
            "privacy_nearest_neighbour": dict(settled.measured) or None,
            "not_measured": _not_measured(settled),
            "tunnel": self._tunnel(),
            "guarantee": self.guarantee.to_dict(),
        }

    def _tunnel(self) -> dict[str, Any] | None:
        """Kind and price of the tunnel: no row leaves more often than was paid for, since it was paid for all
        releases before the first one."""
        settled = self.settled
        if settled.tunnel.kind == "none":
            return None
        return budget_report(settled.tunnel, settled.mechanism, settled.together)


def make_privatiser(
    job: SplitJob, front: Front, rows: Rows, secret: bytes, run: str, public: Rows | None = None
) -> Privatiser:
    """The privatiser of a new run; arguments and errors as `settle.settle`.

    To go on or to predict, take what was kept: `Privatiser(settled_from(data, job), secret, run)`.
    """
    return Privatiser(settle(job, front, rows, secret, run, public), secret, run)


def guarantee(settled: Settled) -> Guarantee:
    """What the noise promises: of a token's row at the embedding, of a whole text's rows after a block. The
    noise is the one that was settled, also where `settled` is of other releases and longer texts."""
    noise = settled.noise
    if settled.tunnel.kind != "none":
        return _tunnelled(settled)
    if noise.kind == "none" and noise.pool:
        what = f"{len(settled.basis[0])} numbers a text, and {_FEW}" if settled.narrow else _MEAN
        told = (_OWN,) if noise.directions_of == "own" else ()
        return replace(_empirical(f"no noise: {what}"), discloses=told)
    if noise.kind == "none":
        return _empirical("nothing is protected: the vendor gets the states themselves")
    if noise.kind == "gaussian":
        return _gaussian(settled)
    eta = settled.eta or math.nan
    if noise.pool:
        return d_chi_guarantee(
            eta, settled.nearest, inside=noise.inside, releases=settled.releases, unit=TEXT,
            between=_TYPICAL if noise.narrow else "",
        )  # fmt: skip
    if settled.after_block:
        return _empirical(
            f"eta {eta:g}, released {settled.releases} times, {_bound(settled):.3g} between nearest "
            "states; a token moves every row of its text there, so d_chi's bound of one row covers no token, "
            "and attacks measure what is left"
        )
    found = d_chi_guarantee(
        eta, settled.nearest, inside=noise.inside, releases=settled.releases, spared=settled.spared_told
    )
    disclosed = []
    if settled.eta_from == "the customer's texts":
        disclosed.append(f"eta, found on the texts: {_seen(settled)}")
    if noise.denoise and settled.spared:
        disclosed.append(f"which tokens are spared: {_COMPUTED}")
    return replace(found, discloses=(*found.discloses, *disclosed))


def _not_measured(settled: Settled) -> str | None:
    if settled.measured:
        return None
    if settled.tunnel.kind != "none":
        return "what a tunnel leaves to read is not measured here; audit it"
    return _MEAN if settled.noise.pool else _NOT_MEASURED


def _sent(noise: Noise) -> str:
    if noise.narrow:
        return _NARROWED
    return _EXPECTED if noise.denoise else _POOLED if noise.pool else _NOISY


def _nearest_is_of(settled: Settled) -> str:
    if settled.noise.narrow:
        return _TYPICAL
    if settled.noise.pool:
        return "rows of texts"
    return "states of texts" if settled.after_block else "embeddings"


def _bound(settled: Settled) -> float:
    """Of one release, between nearest tokens or states: where noise is shaped, in its weakest direction."""
    return (settled.eta or math.nan) / settled.noise.inside * settled.nearest


def _seen(settled: Settled) -> str:
    """How the vendor may come to know eta: denoised rows have no length of noise."""
    return _COMPUTED if settled.noise.denoise else _SEEN


def _gaussian(settled: Settled) -> Guarantee:
    """A token moves one row at the embedding; after a block all rows of its text, each by twice the clip."""
    clip, sigma = settled.noise.clip or math.nan, settled.noise.sigma or math.nan
    if settled.noise.pool:
        return gaussian_guarantee(sigma, clip, releases=settled.releases, unit=TEXT)
    if not settled.after_block:
        return gaussian_guarantee(sigma, clip, releases=settled.releases)
    found = gaussian_guarantee(
        sigma, clip * math.sqrt(settled.longest), releases=settled.releases, unit="all tokens of one text"
    )
    told = f"a text has at most {settled.longest} tokens, all of whose rows are covered together"
    return replace(found, assumptions=(told, *found.assumptions))


def _tunnelled(settled: Settled) -> Guarantee:
    """What the tunnel promises, of what one row holds or all rows of a text do."""
    found = settled.mechanism.guarantee(settled.together)
    told, unit = "a row depends on its own token alone", TOKEN
    discloses = (*found.discloses, "the number of tokens")
    if settled.noise.pool:
        told, unit, discloses = "a text leaves as one row", TEXT, found.discloses
    elif settled.after_block:
        told = f"a text has at most {settled.longest} tokens, all of whose rows are covered together"
        unit = "all tokens of one text"
    return replace(found, unit=unit, assumptions=(told, _EACH, *found.assumptions), discloses=discloses)


def _empirical(why: str) -> Guarantee:
    return Guarantee(
        kind="empirical",
        unit="one text's states",
        adjacency="texts that differ in one token",
        assumptions=(why,),
        discloses=("the number of tokens",),
        source="Shen et al., arXiv 2312.15603",
    )
