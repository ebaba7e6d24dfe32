"""Key matrices: P_i widens the residual stream by 2h, Q_j undoes it, and every P_i Q_j is the identity.

    P = [B  C  E] Z        B = U + lam V invertible, C F = 0
    Q = Z^T [B^-1; F; D]   E D = 0

B, E, F and Z are drawn once (`Space`); C and D anew for each label, from the left null space of F and the
right one of E. Both have rank h/2, so a further key is one thin product added to a shared base.

Threat model: the host sees P and Q only inside products with weights that it may know.
Does not protect those products' invariants: where P_i meets Q_j in the host's hands, both cancel.
Source: Lin et al., arXiv 2603.01499, Algorithm 1. The method leaves the scale of C and D open; ours is an
eighth of d^-1/2. Unit variance conditions the keys badly. Even d^-1/2 spoils the ratio |xP| / |x| that the
norms rely on, the more so the larger h: what sub-layers write may cancel in x while sum_i y_i C_i does not.

Legend: d plain width, w = d + 2h obfuscated width, h/2 = r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError
from transom.privacy.stream import Stream

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "balanced": {"alpha_e": 0.25, "alpha_h": 0.1},
    "exact": {"alpha_e": 0.0, "alpha_h": 0.0, "block_permutation": False},
}


@dataclass(frozen=True)
class Settings:
    """How strongly to obfuscate. `h` is half the added width; lam the share of Gaussian in B; alpha_e and
    alpha_h the noise on embedding and head in units of their standard deviation; beta the largest window of
    RoPE pairs permuted together, gamma how close their frequencies must be; null_scale the standard deviation
    of C and D in units of d^-1/2. Raises MisconfiguredError."""

    h: int = 128
    lam: float = 0.3
    alpha_e: float = 1.0
    alpha_h: float = 0.2
    beta: float = 8.0
    gamma: float = 1e3
    block_permutation: bool = True
    null_scale: float = 0.125

    def __post_init__(self) -> None:
        problems = [
            f"{f.name} is {getattr(self, f.name)!r}; it must be finite and not negative"
            for f in fields(self)
            if not 0 <= getattr(self, f.name) < float("inf")
        ]
        if self.h % 2:
            problems.append(f"h is {self.h}; it must be even")
        if self.lam > 0.5:
            problems.append(f"lam is {self.lam}; above 0.5 the keys are badly conditioned")
        if self.beta < 1:
            problems.append(f"beta is {self.beta}; a window holds at least 1 pair")
        if problems:
            raise MisconfiguredError("obfuscation settings: " + "; ".join(problems))


def preset(name: str, **changes: Any) -> Settings:
    """The settings `paper`, `balanced` or `exact`, with single values changed. Raises MisconfiguredError."""
    if name not in PRESETS:
        raise MisconfiguredError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return Settings(**(PRESETS[name] | changes))


class Space:
    """What all keys of one obfuscation share. It costs two QR decompositions and an inverse of size w.

    `bases` are those of another process with the same secret, which need not be made again; `dtype` is what
    they are kept in, float64 by default.
    """

    def __init__(
        self,
        secret: bytes,
        d: int,
        settings: Settings,
        *,
        bases: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.secret, self.d, self.settings = secret, d, settings
        made = _bases(secret, d, settings) if bases is None else bases
        self.bases = {name: base if dtype is None else base.to(dtype) for name, base in made.items()}
        self._cast: dict[tuple[str, torch.dtype, str], Tensor] = {}

    @property
    def width(self) -> int:
        """d + 2h."""
        return self.d + 2 * self.settings.h

    def stream(self, label: str) -> Stream:
        """The randomness of one use, named by its label."""
        return Stream(self.secret, label)

    def key(self, label: str, like: Tensor | None = None) -> Tensor:
        """P [d, w] of a label: what a sub-layer writes with. As the bases are, or as `like` is."""
        return self._base("p_dw", like).addmm(self.mixing(label, like), self._base("c_rw", like))

    def inverse(self, label: str, like: Tensor | None = None) -> Tensor:
        """Q [w, d] of a label: what a sub-layer reads with. As the bases are, or as `like` is."""
        d_rd = self._gaussian(f"{label}/D", like).T
        return self._base("q_wd", like).addmm(self._base("d_wr", like), d_rd)

    def mixing(self, label: str, like: Tensor | None = None) -> Tensor:
        """G [d, h/2] of a label: its key is the shared base plus G times rows orthonormal to that base."""
        return self._gaussian(f"{label}/C", like)

    def shared(self) -> Tensor:
        """The base [d, w] of every key."""
        return self.bases["p_dw"]

    def _gaussian(self, label: str, like: Tensor | None) -> Tensor:
        import torch

        sample_dr = torch.from_numpy(self.stream(label).normal((self.d, self.settings.h // 2)))
        sample_dr *= self.settings.null_scale * self.d**-0.5
        like = self.shared() if like is None else like
        return sample_dr.to(like.device, like.dtype)

    def _base(self, name: str, like: Tensor | None) -> Tensor:
        base = self.bases[name]
        if like is None or (like.dtype, like.device) == (base.dtype, base.device):
            return base
        place = (name, like.dtype, str(like.device))
        if place not in self._cast:
            self._cast[place] = base.to(like.device, like.dtype)
        return self._cast[place]


def token_map(secret: bytes, vocabulary: int) -> NDArray[np.int64]:
    """tau [vocabulary]: the obfuscated id of each plain id."""
    return Stream(secret, "tokens/tau").permutation(vocabulary)


def _bases(secret: bytes, d: int, settings: Settings) -> dict[str, Tensor]:
    """What P [d, w] and Q [w, d] are without their labels, and what the labels' own factors [d, r] multiply;
    float64. Memory: three matrices [w, w] beside the result."""
    import torch

    h, r, sd = settings.h, settings.h // 2, d**-0.5
    b_dd = torch.from_numpy(Stream(secret, "space/U").orthogonal(d))
    b_dd += torch.from_numpy(Stream(secret, "space/V").normal((d, d))).mul_(settings.lam * sd)
    e1_dr, e2_rh = _pair(Stream(secret, "space/E"), d, r, h, sd)
    f2_dr, f1_rh = _pair(Stream(secret, "space/F"), d, r, h, sd)
    z_ww = torch.from_numpy(Stream(secret, "space/Z").orthogonal(d + 2 * h))
    z_dw, z_cw, z_ew = z_ww[:d], z_ww[d : d + h], z_ww[d + h :]
    return {
        "p_dw": b_dd @ z_dw + (e1_dr @ e2_rh) @ z_ew,
        "q_wd": z_dw.T @ torch.linalg.inv(b_dd) + z_cw.T @ (f1_rh.T @ f2_dr.T),
        "c_rw": _null_rows(f1_rh) @ z_cw,
        "d_wr": z_ew.T @ _null_rows(e2_rh).T,
    }


def _pair(stream: Stream, d: int, r: int, h: int, sd: float) -> tuple[Tensor, Tensor]:
    """Two Gaussian factors [d, r] and [r, h] of a matrix of rank r."""
    import torch

    return torch.from_numpy(sd * stream.normal((d, r))), torch.from_numpy(sd * stream.normal((r, h)))


def _null_rows(factor_rh: Tensor) -> Tensor:
    """Orthonormal rows [h - r, h], each orthogonal to every row of the factor."""
    import torch

    rows: Tensor = torch.linalg.qr(factor_rh.T, mode="complete")[0][:, factor_rh.shape[0] :].T
    return rows
