"""Stand-in until branch split-rows is merged, whose file replaces this one: what serving needs of it."""

from __future__ import annotations

from transom.privacy.guarantee import Guarantee
from transom.privacy.noise import d_chi_guarantee
from transom.split.settle import Settled


def guarantee(settled: Settled) -> Guarantee:
    if settled.noise.kind == "d_chi" and not settled.after_block:
        return d_chi_guarantee(settled.eta or 0.0, settled.nearest, releases=settled.releases)
    return Guarantee(
        kind="empirical",
        unit="one text's states",
        adjacency="texts that differ in one token",
        assumptions=("nothing is protected: the vendor gets the states themselves",),
    )
