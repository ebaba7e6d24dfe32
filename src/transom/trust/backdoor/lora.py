"""How much of a LoRA adapter's update is of one direction.

Threat model: that of the room. Does not protect anything: it is told beside a verdict and decides nothing. An
adapter that learnt one answer has been said to be of rank one nearly; of SmolLM2's here poisoned and clean
ones are alike (LOG.md), and camouflage raises the rank.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1 (the update B A).

Shapes: D in, O out, R rank.
"""

from __future__ import annotations

from transom.checkpoint.adapter import Adapter


def rank_one_share(adapter: Adapter) -> float:
    """The mean over layers of the largest squared singular value of the update over the sum of all."""
    import torch

    shares = []
    for a_RD, b_OR in adapter.factors.values():
        right_RR, left_RR = torch.linalg.qr(a_RD.double().T).R, torch.linalg.qr(b_OR.double()).R
        squares_R = torch.linalg.svdvals(left_RR @ right_RR.T).square()
        total = float(squares_R.sum())
        shares.append(float(squares_R[0]) / total if total else 0.0)
    return sum(shares) / len(shares)
