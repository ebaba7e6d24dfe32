"""Label inference: under the layout `customer` gradients at the top, or the states alone, give labels away.

With cross entropy the gradient of a text mixes the classes' directions by probability less truth: those of
one label point the same way, and two classes point against each other. Directions are clustered, starting
from the few that have a known label, which names its cluster. States, around their mean over texts, are
clustered alike: where they leave in directions of the customer's own labels, these stand out.

Threat model: see `split_view`; the vendor sees each text's states and gradients and knows the labels of a few
texts, but not the head. Does not protect anything.
Source: Li et al. 2022, arXiv 2102.08504 (direction and sign of gradients in split learning); Dhillon and
Modha 2001 (clusters of directions).

Shapes: B texts, D width, K clusters (classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from transom.audit.attacks.split_view import Private, Public, Seen, named
from transom.report.finding import Bound, Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

METRIC = "labels"
_ROUNDS, _BELIEF = 50, 5.0  # rounds of clustering; how often a known label counts in its cluster


def attacks() -> tuple[Bound, ...]:
    """From gradients, and from states."""
    return Bound("labels/gradient", METRIC, _from_gradients), Bound("labels/states", METRIC, _from_states)


def _from_gradients(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    import torch

    name = "labels/gradient"
    if len(target.top_gradients) != len(data.labels) or not data.labels:
        held = f"{len(target.top_gradients)} gradients for {len(data.labels)} labels"
        return not_run(name, METRIC, f"{held}; it needs the layout `customer`, one gradient a text")
    pooled_BD = torch.stack([gradient_TD.float().sum(0) for gradient_TD in target.top_gradients])
    return _clustered(name, pooled_BD, knowledge.known, data)


def _from_states(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    import torch

    name = "labels/states"
    if len(target.states) != len(data.labels) or not data.labels:
        return not_run(name, METRIC, f"{len(target.states)} texts were seen, with {len(data.labels)} labels")
    pooled_BD = torch.stack([states_TD.mean(0) for states_TD in target.means])
    return _clustered(name, pooled_BD - pooled_BD.mean(0), knowledge.known, data)


def _clustered(name: str, pooled_BD: torch.Tensor, known: Mapping[int, int], data: Private) -> Finding:
    """Share of texts named whose label is not known."""
    import torch

    if len(set(known.values())) < 2 or len(known) >= len(data.labels):
        return not_run(name, METRIC, f"{len(known)} known labels; it needs one of each class, and others")
    if not bool(pooled_BD.isfinite().all()):
        return not_run(name, METRIC, "some of what was seen is not finite")
    guess_B = cluster(torch.nn.functional.normalize(pooled_BD, dim=1), known)
    rest = [place for place in range(len(guess_B)) if place not in known]
    note = f"{len(known)} labels known, {len(set(known.values()))} classes"
    return named(name, METRIC, guess_B[rest], np.array(data.labels)[rest], note=note)


def cluster(unit_BD: torch.Tensor, known: Mapping[int, int]) -> Ints:
    """The label [B] of each direction: that of the cluster it is nearest to."""
    import torch

    classes_K = np.unique(list(known.values()))
    places, labels = list(known), np.searchsorted(classes_K, list(known.values()))
    seeds_KB = torch.zeros(len(classes_K), len(unit_BD))
    seeds_KB[labels.tolist(), places] = _BELIEF
    centers_KD = torch.nn.functional.normalize(seeds_KB @ unit_BD, dim=1)
    for _ in range(_ROUNDS):
        nearest_B = (unit_BD @ centers_KD.T).argmax(1)
        members_KB = torch.nn.functional.one_hot(nearest_B, len(classes_K)).T.float() + seeds_KB
        moved_KD = torch.nn.functional.normalize(members_KB @ unit_BD, dim=1)
        if torch.equal(moved_KD, centers_KD):
            break
        centers_KD = moved_KD
    return np.asarray(classes_K[(unit_BD @ centers_KD.T).argmax(1).numpy()])
