"""What a policy's mechanism really does, computed from its integers: epsilon, attacker, keep-rate, outputs
used.

Threat model: as in `transom.privacy.channel`; the attacker is exact for independent words under the public
prior.
Does not protect anything. Words of a sentence are not independent: an attacker with a language model
recovers more than `bayes_success` says (see the audit).
Source: Bayes' rule and the exact epsilon over the integer tables of `transom.privacy.partition`.

Legend: G groups, V vocabulary, K words of one group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from transom.errors import ReplaceableError
from transom.privacy.channel import Floats, expected_utility, keep_rate, outputs_used
from transom.privacy.mechanisms import build
from transom.privacy.partition import Partition, PartitionedMechanism
from transom.privacy.policy import Policy

CURVE_EPSILONS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


@dataclass(frozen=True)
class Explanation:
    """Figures of one mechanism over `groups` of `groups_in_all` groups; rates are over drawn words.

    `exact_epsilon` is the largest over those groups. `bayes_success` is the attacker's share of right
    guesses, `bayes_chance` the share without seeing the output, both knowing the group; `_all` counts passed
    words as recovered, None without a public pass share. `outputs_used` and `score` are means over groups,
    weighted by the prior.
    """

    mechanism: str
    nominal_epsilon: float
    exact_epsilon: float
    bayes_success: float
    bayes_chance: float
    bayes_success_all: float | None
    keep_rate: float
    outputs_used: float
    group_size: float
    score: float
    groups: int
    groups_in_all: int


def explain(policy: Policy, mechanism: str, epsilon: float, groups: int | None = None) -> Explanation:
    """Compute the figures of one in-group mechanism, over all groups or `groups` evenly spaced ones.

    Raises ReplaceableError for mechanisms that need word vectors, which a policy does not hold.
    """
    partition, prior_V = subset(policy, groups)
    built = build(mechanism, partition, epsilon) if mechanism not in ("santext+", "tem") else None
    if not isinstance(built, PartitionedMechanism):
        raise ReplaceableError(f"{mechanism} needs word vectors; explain an in-group mechanism, for one rnm")
    share, exact = policy.pass_share, built.exact_epsilon()
    attack = built.bayes(prior_V)
    channels = [built.channel(group) for group in range(partition.groups)]
    priors = [_group_prior(prior_V, partition, group) for group in range(partition.groups)]
    mass_G = np.array([prior_V[_rows(partition, group)].sum() for group in range(partition.groups)])

    def mean(values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=mass_G))

    return Explanation(
        mechanism=mechanism,
        nominal_epsilon=epsilon,
        exact_epsilon=exact,
        bayes_success=attack.success,
        bayes_chance=attack.chance,
        bayes_success_all=None if share is None else share + (1 - share) * attack.success,
        keep_rate=mean(keep_rate(c, p) for c, p in zip(channels, priors, strict=True)),
        outputs_used=mean(outputs_used(c, p) for c, p in zip(channels, priors, strict=True)),
        group_size=mean(float(len(p)) for p in priors),
        score=mean(
            expected_utility(c, partition.scores(group), p)
            for group, (c, p) in enumerate(zip(channels, priors, strict=True))
        ),
        groups=partition.groups,
        groups_in_all=policy.partition.groups,
    )


def subset(policy: Policy, groups: int | None) -> tuple[Partition, Floats]:
    """A partition of `groups` evenly spaced groups of the policy (None: all) and the prior of its words."""
    whole, prior_V = policy.partition, policy.prior_V.astype(np.float64)
    if groups is None or groups >= whole.groups:
        return whole, prior_V
    chosen = np.unique(np.linspace(0, whole.groups - 1, max(1, groups)).round().astype(np.int64))
    sizes = np.diff(whole.starts_G1)[chosen]
    scores = [np.rint(whole.scores(int(group)) * 255).astype(np.uint8).ravel() for group in chosen]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    prior = np.concatenate([prior_V[_rows(whole, int(group))] for group in chosen])
    return Partition(starts, np.concatenate(scores)), prior if prior.sum() > 0 else np.ones_like(prior)


def _rows(partition: Partition, group: int) -> slice:
    return slice(int(partition.starts_G1[group]), int(partition.starts_G1[group + 1]))


def _group_prior(prior_V: Floats, partition: Partition, group: int) -> Floats:
    prior_K = prior_V[_rows(partition, group)]
    return prior_K if prior_K.sum() > 0 else np.ones_like(prior_K)
