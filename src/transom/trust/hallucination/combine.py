"""From what was selected of each family to one number: logistic regression, boosted trees, a small network.

All three are fitted by scikit-learn or scipy and kept as plain arrays, from which they are computed here: no
pickle is written or read, and scoring needs numpy alone.
Threat model: arrays are a file's, and checked when it is read (`detector`). Does not protect: see the room.
Source: Friedman 2001 (gradient boosting); scikit-learn's documentation of `tree_` and `coefs_`.

Shapes: N answers, Q numbers of each, T trees, J nodes of a tree, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from transom.errors import extra
from transom.trust.hallucination.states import Floats

Kind = Literal["logistic", "boosting", "mlp"]
KINDS: tuple[Kind, ...] = ("logistic", "boosting", "mlp")
_TREES, _DEPTH, _RATE, _SHARE = 80, 2, 0.05, 0.5
_UNITS, _DECAY, _PASSES = 12, 3.0, 400
_HELD_BACK = 1e-2  # of what logistic regression makes of families


class Combiner(Protocol):
    """Gives the log-odds of being made up."""

    def log_odds(self, chosen_NQ: Floats) -> Floats:
        """Of each answer [N]."""

    def arrays(self) -> dict[str, Floats]:
        """All that it is."""


@dataclass(frozen=True, eq=False)
class Linear:
    """Weights and one more number."""

    weight_Q: Floats
    bias_1: Floats

    def log_odds(self, chosen_NQ: Floats) -> Floats:
        """See `Combiner`."""
        return np.asarray(chosen_NQ @ self.weight_Q + self.bias_1[0])

    def arrays(self) -> dict[str, Floats]:
        """See `Combiner`."""
        return {"weight_Q": self.weight_Q, "bias_1": self.bias_1}


@dataclass(frozen=True, eq=False)
class Trees:
    """A node asks whether number `asked_TJ` is at most `at_TJ`, and goes to `below_TJ` or `above_TJ`; of a
    leaf both are 0, and `worth_TJ` counts."""

    asked_TJ: Floats
    at_TJ: Floats
    below_TJ: Floats
    above_TJ: Floats
    worth_TJ: Floats
    base_1: Floats

    def log_odds(self, chosen_NQ: Floats) -> Floats:
        """See `Combiner`."""
        total_N = np.full(len(chosen_NQ), float(self.base_1[0]))
        rows_N = np.arange(len(chosen_NQ))
        for tree in range(len(self.asked_TJ)):
            node_N = np.zeros(len(chosen_NQ), int)
            while (inner_N := self.below_TJ[tree][node_N] > 0).any():
                asked_N = self.asked_TJ[tree][node_N].astype(int)
                below_N = chosen_NQ[rows_N, asked_N].astype(np.float32) <= self.at_TJ[tree][node_N]
                next_N = np.where(below_N, self.below_TJ[tree][node_N], self.above_TJ[tree][node_N])
                node_N = np.where(inner_N, next_N, node_N).astype(int)
            total_N += self.worth_TJ[tree][node_N]
        return total_N

    def arrays(self) -> dict[str, Floats]:
        """See `Combiner`."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Network:
    """One layer of rectified units, of numbers that are brought to mean 0 and deviation 1."""

    centre_Q: Floats
    scale_Q: Floats
    inner_QU: Floats
    inner_U: Floats
    outer_U: Floats
    bias_1: Floats

    def log_odds(self, chosen_NQ: Floats) -> Floats:
        """See `Combiner`."""
        z_NQ = (chosen_NQ - self.centre_Q) / self.scale_Q
        units_NU = np.maximum(z_NQ @ self.inner_QU + self.inner_U, 0)
        return np.asarray(units_NU @ self.outer_U + self.bias_1[0])

    def arrays(self) -> dict[str, Floats]:
        """See `Combiner`."""
        return dict(vars(self))


_TYPES: Mapping[Kind, Any] = {"logistic": Linear, "boosting": Trees, "mlp": Network}


def of_arrays(kind: Kind, arrays: Mapping[str, Floats]) -> Combiner:
    """What `arrays` gave. Raises TypeError for others."""
    made: Combiner = _TYPES[kind](**arrays)
    return made


def names_of(kind: Kind) -> tuple[str, ...]:
    """The names of a kind's arrays; their shapes are told by the letters at the end."""
    return tuple(_TYPES[kind].__dataclass_fields__)


def combiner(kind: Kind, chosen_NQ: Floats, made_up_N: Any, choice: Sequence[int], seed: int = 0) -> Combiner:
    """Fit one; `choice` are the numbers that logistic regression takes. Raises MissingExtraError."""
    with extra("hallucination", "scikit-learn"):
        from sklearn.ensemble import GradientBoostingClassifier
        from sklearn.neural_network import MLPClassifier
    if kind == "logistic":
        return _agreed(chosen_NQ, made_up_N, choice)
    if kind == "boosting":
        fitted = GradientBoostingClassifier(
            n_estimators=_TREES, max_depth=_DEPTH, learning_rate=_RATE, subsample=_SHARE, random_state=seed
        ).fit(chosen_NQ, made_up_N)
        return _trees(fitted, float(np.mean(made_up_N)))
    centre_Q, scale_Q = chosen_NQ.mean(0), _deviation(chosen_NQ)
    net = MLPClassifier((_UNITS,), alpha=_DECAY, solver="lbfgs", max_iter=_PASSES, random_state=seed).fit(
        (chosen_NQ - centre_Q) / scale_Q, made_up_N
    )
    (inner_QU, outer_U1), (inner_U, bias_1) = net.coefs_, net.intercepts_
    return Network(centre_Q, scale_Q, inner_QU, inner_U, outer_U1[:, 0], bias_1)


def _agreed(chosen_NQ: Floats, made_up_N: Any, choice: Sequence[int]) -> Linear:
    """Logistic regression of some numbers without negative weights, as each is a log-odds already: what
    disagrees with the labels gets none."""
    with extra("hallucination", "scikit-learn"):
        from scipy.optimize import minimize
    x_NK = chosen_NQ[:, list(choice)]
    centre_K, scale_K = x_NK.mean(0), _deviation(x_NK)
    z_NK, way_N = (x_NK - centre_K) / scale_K, 2.0 * np.asarray(made_up_N) - 1

    def loss(weight: Floats) -> tuple[float, Floats]:
        right_N = way_N * (z_NK @ weight[1:] + weight[0])
        pull_N = -way_N * np.exp(-np.logaddexp(0, right_N)) / len(way_N)
        held = _HELD_BACK * weight[1:]
        value = np.logaddexp(0, -right_N).mean() + held @ weight[1:] / 2
        return float(value), np.concatenate([[pull_N.sum()], z_NK.T @ pull_N + held])

    start = np.concatenate([[0.0], np.full(x_NK.shape[1], 0.1)])
    bounds = [(None, None), *[(0, None)] * x_NK.shape[1]]
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    weight_Q = np.zeros(chosen_NQ.shape[1])
    weight_Q[list(choice)] = found[1:] / scale_K
    return Linear(weight_Q, np.array([found[0] - (found[1:] / scale_K) @ centre_K]))


def linear(x_NF: Floats, made_up_N: Any, strength: float) -> tuple[Floats, Floats]:
    """Logistic regression with an L2 penalty on numbers of mean 0 and deviation 1, as weights [F] and one
    more number [1] of the numbers themselves. Raises MissingExtraError."""
    with extra("hallucination", "scikit-learn"):
        from sklearn.linear_model import LogisticRegression
    centre_F, scale_F = x_NF.mean(0), _deviation(x_NF)
    fitted = LogisticRegression(C=strength, max_iter=300).fit((x_NF - centre_F) / scale_F, made_up_N)
    weight_F = fitted.coef_[0] / scale_F
    return weight_F, fitted.intercept_ - weight_F @ centre_F


def _deviation(x_NF: Floats) -> Floats:
    spread_F = x_NF.std(0)
    return np.where(spread_F > 1e-9, spread_F, 1.0)


def _trees(fitted: Any, share: float) -> Trees:
    trees = [one.tree_ for one in fitted.estimators_[:, 0]]
    most = max(tree.node_count for tree in trees)
    parts = {name: np.zeros((len(trees), most)) for name in ("asked", "at", "below", "above", "worth")}
    for place, tree in enumerate(trees):
        leaf_J = tree.children_left < 0
        values = (
            np.maximum(tree.feature, 0), tree.threshold, tree.children_left, tree.children_right,
            _RATE * tree.value[:, 0, 0],
        )  # fmt: skip
        for (name, part), value in zip(parts.items(), values, strict=True):
            part[place, : tree.node_count] = value if name == "worth" else np.where(leaf_J, 0, value)
    base_1 = np.array([np.log(share / (1 - share))])
    return Trees(**{f"{name}_TJ": part for name, part in parts.items()}, base_1=base_1)
