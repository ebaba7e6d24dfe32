"""Which batch size and how many workers a vertical training takes: a search by the model of `epoch`.

Threat model: none beyond `transom.vertical.profile`: a partner's false constants make a slow plan, within
the limits that this party offers.
Does not protect: where the model is wrong, which `transom.vertical.epoch` says.
Source: that a profile's constants and a search choose both: Liu et al., arXiv 2510.12494. Own: what is
searched for, the time of all epochs that are needed, and not that of one iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transom.config import to_plain
from transom.errors import MisconfiguredError
from transom.vertical.epoch import ROLES, Given, epoch, way
from transom.vertical.job import Role, Schedule

LEAST_ROWS = 16
_MOST_WORKERS = 16  # of a party, that are tried: more at once do not fit a link's window of 64 messages
_EVEN = 1.01  # plans within this factor are alike; then the fewest workers win
_RUNNERS_UP = 5


@dataclass(frozen=True)
class Choice:
    """One plan and what is predicted of it. `cost_s` is the epoch's time times `epochs_factor`; `bound` names
    what an epoch's time hangs on, `parts_s` what the way of one batch consists of."""

    batch_rows: int
    label_workers: int
    feature_workers: int
    epoch_s: float
    epochs_factor: float
    cost_s: float
    delay: float
    bound: str
    parts_s: Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """The choice, the best of every other batch size (five at most, best first), how many were compared and
    how many memory forbade, and all that in words."""

    schedule: Schedule
    chosen: Choice
    runners_up: tuple[Choice, ...]
    compared: int
    too_large: int
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain


# The choice


def candidates(given: Given, batch_rows: int) -> tuple[int, ...]:
    """Powers of two from 16 and the given size, up to the rows and to what both parties have measured."""
    most = min(given.rows, given.label.most_rows, given.feature.most_rows)
    powers = (2**power for power in range(LEAST_ROWS.bit_length() - 1, most.bit_length()))
    return tuple(sorted({rows for rows in (*powers, min(batch_rows, given.rows)) if rows <= given.rows}))


def predict(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> Choice:
    """What the model says of one plan; workers as for `epoch_time_s`."""
    goes = way(given, label_workers, feature_workers)
    found = epoch(given, batch_rows, goes)
    factor = given.convergence.epochs_factor(batch_rows, goes.replicas, goes.delay)
    label, feature = goes.workers["label"], goes.workers["feature"]
    if given.schedule == "avfl":
        feature = goes.ahead
    cost_s = found.seconds * factor
    return Choice(
        batch_rows, label, feature, found.seconds, factor, cost_s, goes.delay, found.bound, found.parts_s
    )


def choose(given: Given, batch_rows: int) -> Plan:
    """The cheapest plan of all that fit in memory and cores; `batch_rows` is the job's, tried as well. Of
    plans within 1 % of the cheapest it is the one with the fewest workers.

    Raises MisconfiguredError if none fits.
    """
    sizes, counts = candidates(given, batch_rows), tuple(_counts(given))
    fitting = [(rows, *one) for rows in sizes for one in counts if _fits(given, rows, *one)]
    if not fitting:
        raise MisconfiguredError(_too_small(given, min(sizes)))
    found = [predict(given, *one) for one in fitting]
    by_size: dict[int, list[Choice]] = {}
    for one in found:
        by_size.setdefault(one.batch_rows, []).append(one)
    chosen = _best(found)
    rest = sorted((_best(one) for rows, one in by_size.items() if rows != chosen.batch_rows), key=_cost_s)
    too_large = len(sizes) * len(counts) - len(fitting)
    reasons = tuple(_reasons(given, chosen, rest, len(found), too_large))
    return Plan(given.schedule, chosen, tuple(rest[:_RUNNERS_UP]), len(found), too_large, reasons)


def _counts(given: Given) -> Iterator[tuple[int, int]]:
    """Workers of the label party and of the feature party, no more than cores or than batches may be under
    way; in `avfl` the latter are batches under way."""
    most = _MOST_WORKERS if given.schedule == "vfl-ps" else min(_MOST_WORKERS, given.under_way)
    label, feature = (range(1, min(given.party(role).cores, most) + 1) for role in ROLES)
    if given.schedule == "vfl":
        yield 1, 1
    elif given.schedule == "avfl":
        yield from ((1, ahead) for ahead in range(1, most + 1))
    elif given.schedule == "pubsub":
        yield from ((one, other) for one in label for other in feature)
    else:
        yield from ((one, one) for one in label if one in feature)


def _fits(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> bool:
    needs = _memory(given, batch_rows, label_workers, feature_workers)
    return all(needs[role] <= given.party(role).memory_bytes for role in ROLES)


def _memory(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> dict[Role, float]:
    """Bytes of each party: its workers, what the label party computes and of what the feature party keeps
    the way back, and the messages of all units that are under way."""
    goes = way(given, label_workers, feature_workers)
    rows = math.ceil(batch_rows / goes.shares) * goes.bundle
    under_way = 2 * goes.ahead * rows * given.width * given.value_bytes
    batches = {"label": goes.workers["label"], "feature": max(goes.workers["feature"], goes.ahead)}
    return {
        role: given.party(role).memory(goes.workers[role], batches[role], rows) + under_way for role in ROLES
    }


def _too_small(given: Given, batch_rows: int) -> str:
    needs = _memory(given, batch_rows, 1, 1)
    said = (
        f"the {role} party needs {needs[role] / 2**20:,.0f} MiB and offers "
        f"{given.party(role).memory_bytes / 2**20:,.0f}"
        for role in ROLES
    )
    return (
        f"no plan fits in memory: with one worker and batches of {batch_rows} rows {' and '.join(said)}; "
        "offer more, or train a smaller model"
    )


def _cost_s(choice: Choice) -> float:
    return choice.cost_s


def _best(found: Sequence[Choice]) -> Choice:
    """The one with the fewest workers of those that cost almost the least."""
    least_s = min(map(_cost_s, found))
    alike = [one for one in found if one.cost_s <= _EVEN * least_s]
    return min(alike, key=lambda one: (one.label_workers + one.feature_workers, one.cost_s, one.batch_rows))


def _reasons(
    given: Given, chosen: Choice, rest: Sequence[Choice], compared: int, too_large: int
) -> Iterator[str]:
    """The choice in words."""
    yield (
        f"batches of {chosen.batch_rows} rows, {_workers(given, chosen)}: an epoch takes "
        f"{chosen.epoch_s:.3g} s and {chosen.epochs_factor:.3g} times the epochs that the smallest batches "
        "would need"
    )
    whole_s = sum(chosen.parts_s.values())
    shares = sorted(chosen.parts_s.items(), key=lambda part: -part[1])[:3]
    said = ", ".join(f"{name} {seconds / whole_s:.0%}" for name, seconds in shares)
    yield f"it hangs on the {chosen.bound}; the way of one batch is {said}"
    yield f"the cheapest of {compared} plans" + (f"; memory forbids {too_large} more" if too_large else "")
    for one in rest[:_RUNNERS_UP]:
        yield (
            f"batches of {one.batch_rows} rows, {_workers(given, one)}: {one.epoch_s:.3g} s an epoch, "
            f"{one.epochs_factor:.3g} times the epochs, {one.cost_s / chosen.cost_s - 1:+.0%} in all; "
            f"the {one.bound}"
        )


def _workers(given: Given, choice: Choice) -> str:
    if given.schedule == "avfl":
        return f"{choice.feature_workers} under way"
    return f"workers {choice.label_workers} (label party) and {choice.feature_workers} (feature party)"


def curves(given: Given, plan: Plan, role: Role) -> dict[int, tuple[Choice, ...]]:
    """For each number of this party's workers (in `avfl`, of batches under way), of powers of two and the
    chosen one: what is predicted by the size of batches, with the partner's workers as chosen."""
    chosen = plan.chosen
    own, other = chosen.label_workers, chosen.feature_workers
    if role == "feature" or given.schedule == "avfl":
        own, other = other, own
    most = max(own, min(given.party(role).cores, _MOST_WORKERS))
    counts = (
        [1] if given.schedule == "vfl" else sorted({own, *(2**power for power in range(most.bit_length()))})
    )
    found = {}
    for count in counts:
        pair = (count, other) if role == "label" else (other, count)
        if given.schedule != "pubsub":
            pair = (count, count)
        fitting = [rows for rows in candidates(given, chosen.batch_rows) if _fits(given, rows, *pair)]
        if fitting:
            found[count] = tuple(predict(given, rows, *pair) for rows in fitting)
    return found
