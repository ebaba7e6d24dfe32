"""Observed embedding rows: what a host sees of each token when the table is public and the rows are noised.

A row is clip(table[id]) + noise of a known law. Where it was also multiplied by a matrix that the attacker
knows, this is the target that remains when the matrix is undone, or the table is multiplied by it.
`beam` holds the attackers: nearest row, and search with a language.

Threat model: the host keeps every row of every request, owns the public table and knows the law of the noise
(the code is public); where it does not know the scale, it estimates it. Does not protect anything.
Source: the laws are those of Gaussian, Laplace and metric ("d_chi") mechanisms; Qu et al. 2021,
arXiv 2102.01502, for the last.

Shapes: T tokens of a text, N tokens of all texts, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Literal, get_args

from transom.audit.attacks.states import METRIC, recovered
from transom.audit.attacks.traffic import Texts
from transom.errors import MisconfiguredError
from transom.report.finding import MAX_EXAMPLES, Example, Finding, not_run

if TYPE_CHECKING:
    import torch

Law = Literal["none", "gaussian", "laplace", "norm"]


@dataclass(frozen=True)
class Noise:
    """The law of what was added to each row, and the Euclidean length that rows were clipped to before.

    `scale` is the standard deviation of a coordinate ("gaussian"), the scale of a coordinate ("laplace"), or
    1 / eta of a density proportional to exp(-eta * length) ("norm"); None where the attacker has to estimate.
    """

    law: Law = "none"
    scale: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.law not in get_args(Law):
            raise MisconfiguredError(f"noise must be one of {', '.join(get_args(Law))}, got {self.law!r}")
        for name, value in (("scale", self.scale), ("clip", self.clip)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise MisconfiguredError(f"the noise's {name} must be positive and finite, got {value}")

    def distance(self, rows_TD: torch.Tensor, table_VD: torch.Tensor) -> torch.Tensor:
        """[T, V]: the distance that the law's likelihood falls with."""
        import torch

        return torch.cdist(rows_TD, table_VD, p=1.0 if self.law == "laplace" else 2.0)

    def log_likelihood(self, distance: torch.Tensor) -> torch.Tensor:
        """Of rows at that distance, up to a constant. Needs a scale."""
        if self.scale is None:
            raise MisconfiguredError("a likelihood needs the noise's scale; estimate it with fitted()")
        return distance.square() / (-2 * self.scale**2) if self.squares else distance / -self.scale

    def fitted(self, distances_N: torch.Tensor, width: int) -> Noise:
        """With the scale that is likeliest for rows so far from where they came from."""
        mean = distances_N.double().square().mean().sqrt() if self.squares else distances_N.double().mean()
        scale = float(mean) / (width**0.5 if self.squares else width)
        return replace(self, scale=max(scale, 1e-9))

    def variance(self, width: int) -> float:
        """Of one coordinate; 0 where the scale is not known."""
        scale = (self.scale or 0.0) * (self.law != "none")
        return scale**2 * {"laplace": 2.0, "norm": width + 1.0}.get(self.law, 1.0)

    @property
    def squares(self) -> bool:
        """Whether the likelihood falls with the distance's square."""
        return self.law in ("gaussian", "none")

    def clipped(self, table_VD: torch.Tensor) -> torch.Tensor:
        """The rows [V, D] as they are before noise."""
        if self.clip is None:
            return table_VD
        lengths_V1 = table_VD.norm(dim=1, keepdim=True)
        clipped_VD: torch.Tensor = table_VD * (self.clip / lengths_V1.clamp_min(1e-12)).clamp_max(1.0)
        return clipped_VD

    def protect(self, rows_TD: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Rows [T, D] as this mechanism would show them; for measuring, not for protecting: it is seeded."""
        import torch

        rows_TD = self.clipped(rows_TD)
        if self.law == "none":
            return rows_TD
        if self.scale is None:
            raise MisconfiguredError(
                "noise cannot be added without its scale; write for instance gaussian:0.1"
            )
        normal_TD = torch.randn(rows_TD.shape, generator=generator)
        if self.law == "gaussian":
            return rows_TD + self.scale * normal_TD
        logs_TD = (1 - torch.rand(rows_TD.shape, generator=generator)).log()  # of what is above 0
        if self.law == "laplace":
            return rows_TD + normal_TD.sign() * logs_TD * self.scale
        # A length from the Gamma law of shape D is D exponential steps; the direction is uniform.
        lengths_T1 = -self.scale * logs_TD.sum(1, keepdim=True)
        moved_TD: torch.Tensor = rows_TD + lengths_T1 * normal_TD / normal_TD.norm(dim=1, keepdim=True)
        return moved_TD


NO_NOISE = Noise()
_SAMPLE = 128  # rows that the scale is estimated from; each has as many coordinates as the table is wide


@dataclass(frozen=True)
class Rows:
    """The target: one tensor [T, D] a text, and the noise as far as the attacker knows it."""

    texts: tuple[torch.Tensor, ...]
    noise: Noise = NO_NOISE


@dataclass(frozen=True)
class Truth:
    """The plain ids, for scoring only, and how ids are shown in examples (None shows none)."""

    texts: Texts
    decode: Callable[[Sequence[int]], str] | None = None


def misfit(name: str, target: Rows, table_VD: torch.Tensor, data: Truth) -> Finding | None:
    """A finding "not run" where rows, table and truth do not belong together or are no numbers."""
    lengths = [len(text) for text in data.texts]
    if not target.texts or not all(lengths):
        return not_run(name, METRIC, f"no rows to read: {len(target.texts)} texts, {sum(lengths)} tokens")
    if [len(rows) for rows in target.texts] != lengths:
        rows = sum(len(rows) for rows in target.texts)
        held = f"{rows} rows in {len(target.texts)} texts, the truth has {sum(lengths)} tokens"
        reason = f"{held} in {len(lengths)} texts; is it the same text and tokenizer?"
        return not_run(name, METRIC, reason)
    if (width := target.texts[0].shape[1]) != table_VD.shape[1]:
        return not_run(name, METRIC, f"rows are {width} wide, the public table {table_VD.shape[1]}")
    if not all(bool(rows.isfinite().all()) for rows in target.texts):
        return not_run(name, METRIC, "some rows are not finite")
    return None


def estimated(target: Rows, table_VD: torch.Tensor) -> Rows:
    """The target with the noise's scale, estimated where it is not known.

    Rounds of expectation and maximisation, from the rows nearest: the true row of a token is as often
    another one as the posterior says.
    """
    import torch

    noise = target.noise
    if noise.scale is not None:
        return target
    sample_ND = torch.cat(target.texts)[:_SAMPLE]
    away_NV = noise.distance(sample_ND, noise.clipped(table_VD))
    width, noise = table_VD.shape[1], noise.fitted(away_NV.min(1).values, table_VD.shape[1])
    for _ in range(5):
        weight_NV = noise.log_likelihood(away_NV).softmax(1)
        power = 2 if noise.squares else 1
        expected_N = (weight_NV * away_NV**power).sum(1) ** (1 / power)
        noise = noise.fitted(expected_N, width)
    return Rows(target.texts, noise)


def score(name: str, guesses: Texts, data: Truth, seen: Texts | None = None, *, note: str) -> Finding:
    """`states.recovered`, with examples; `seen` are the ids that stand in them for what was seen."""
    shown = examples(guesses, data, seen or guesses)
    return recovered(name, guesses, data.texts, note=note, examples=shown)


def examples(guesses: Texts, data: Truth, seen: Texts | str) -> tuple[Example, ...]:
    """The first few readings beside the truth; `seen` is what was observed, as ids or in words for all."""
    if data.decode is None:
        return ()
    observed = repeat(seen) if isinstance(seen, str) else map(data.decode, seen)
    texts = zip(map(data.decode, data.texts), observed, map(data.decode, guesses), strict=False)
    return tuple(Example(*three) for three in islice(texts, min(MAX_EXAMPLES, len(guesses))))
