"""Which batch size and how many workers a vertical training takes, by a model of an epoch's time.

The time of an epoch counts its batches, cores, what is under way at once, both directions of the link and the
averages. It is weighed by how many more epochs large batches, many replicas and old gradients need. Without
that weight, as in the paper's formula, the largest batch wins wherever a row costs less in a larger one.
Threat model: none beyond `transom.vertical.profile`: a partner's false constants make a slow plan, within
the limits that this party offers.
Does not protect: against a machine that is busy with other things than when it was measured. Times of tasks
are taken as even; evaluation, stops and what is given out again are left out. With more workers than cores
times are optimistic, and up to 30 % so with one worker and two to four batches under way.
Source: profile and search: Liu et al., arXiv 2510.12494, section 4.3. Throughput: asymptotic bounds of closed
networks of queues (Denning and Buzen 1978, "The Operational Analysis of Queueing Network Models"). Weight of
the batch: McCandlish et al., arXiv 1812.06162, section 2; of the delay: Koloskova et al., arXiv 2206.08307
(delays slow what does not depend on the gradient's variance). That both multiply, and that replicas count as
larger batches: own heuristic.
Shapes: B rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from transom.config import Setting, to_plain
from transom.errors import MisconfiguredError
from transom.vertical.job import Role, Schedule
from transom.vertical.profile import Fitted

LEAST_ROWS = 16
_MOST_WORKERS = 64  # of a party, that are tried
_EVEN = 1.01  # plans within this factor are alike; then the fewest workers win
_RUNNERS_UP = 5
_LATENCY, _BANDWIDTH, _AVERAGES = "latency of the link", "bandwidth of the link", "averages of workers"
_ROLES: tuple[Role, Role] = ("label", "feature")


@dataclass(frozen=True)
class Wire:
    """The link as measured: seconds one way, bytes a second in each direction."""

    latency_s: Annotated[float, Setting(least=0, most=1e3)]
    bytes_per_s: Annotated[float, Setting(above=0, most=1e15)]


@dataclass(frozen=True)
class Convergence:
    """How many more epochs a plan needs than the smallest batches would:
    1 + (replicas + delay_cost * delay) * B / critical_rows.

    `critical_rows` is where twice the epochs are needed; `noise_scale` measures it for a learning rate that
    follows the batch. The defaults are own measurements of one small network (three layers of 64, AdamW,
    14,000 rows, to within 3 % of the best loss) at a learning rate that stayed: 170 to 250 rows at 0.001, 370
    to 480 at 0.004. A delay of 2 to 8 steps cost 0.15 to 0.6 of a batch's part a step, nothing at 64 rows.
    """

    critical_rows: Annotated[float, Setting(above=0, most=1e12)] = 256.0
    delay_cost: Annotated[float, Setting("Of a step that a gradient is old.", least=0, most=1e3)] = 0.25

    def epochs_factor(self, batch_rows: int, replicas: int, delay: float) -> float:
        """`replicas` are models that learn apart between averages, `delay` steps that a gradient is old."""
        return 1 + (replicas + self.delay_cost * delay) * batch_rows / self.critical_rows


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a plan is made for. `under_way`: batches that pubsub has at once; `epochs` of the run."""

    schedule: Schedule
    label: Fitted
    feature: Fitted
    wire: Wire
    rows: int
    width: int
    value_bytes: float = 4.0
    under_way: int = 5
    epochs: int = 10
    convergence: Convergence = field(default_factory=Convergence)

    def party(self, role: Role) -> Fitted:
        return self.label if role == "label" else self.feature


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


# The time of an epoch


@dataclass(frozen=True)
class _Way:
    """How a schedule goes, as `transom.vertical.schedule.way_of` has it: workers of each party, parts of a
    batch, units under way, whether an epoch waits for the one before, models that learn apart."""

    workers: Mapping[Role, int]
    shares: int
    ahead: int
    waits: bool
    replicas: int


def _way(given: Given, label_workers: int, feature_workers: int) -> _Way:
    most = max(label_workers, feature_workers)
    one: dict[Role, int] = {"label": 1, "feature": 1}
    both: dict[Role, int] = {"label": most, "feature": most}
    own: dict[Role, int] = {"label": label_workers, "feature": feature_workers}
    ways: dict[Schedule, _Way] = {
        "vfl": _Way(one, 1, 1, True, 1),
        "vfl-ps": _Way(both, most, most, True, 1),
        "avfl": _Way(one, 1, feature_workers, True, 1),
        "avfl-ps": _Way(both, 1, most, True, most),
        "pubsub": _Way(own, 1, given.under_way, False, most),
    }
    return ways[given.schedule]


@dataclass(frozen=True)
class _Unit:
    """Seconds of what one message carries: a worker's time at each party, the transfer one way, the latency
    there and back, each party's time for one message."""

    computing_s: Mapping[Role, float]
    transfer_s: float
    latency_s: float
    message_s: Mapping[Role, float]

    def parts(self) -> dict[str, float]:
        """The way there and back with nothing else under way."""
        computing = {_computing(role): self.computing_s[role] for role in _ROLES}
        messages = {_messages(role): 2 * self.message_s[role] for role in _ROLES}
        return {**computing, _LATENCY: self.latency_s, _BANDWIDTH: 2 * self.transfer_s, **messages}

    def stations(self, at_once: Mapping[Role, int]) -> dict[str, float]:
        """What each station needs for a unit at the least, where so many are computed at once."""
        computing = {_computing(role): self.computing_s[role] / at_once[role] for role in _ROLES}
        messages = {_messages(role): 2 * self.message_s[role] for role in _ROLES}
        return {**computing, _BANDWIDTH: self.transfer_s, **messages}


def _computing(role: Role) -> str:
    return f"computing of the {role} party"


def _messages(role: Role) -> str:
    return f"messages of the {role} party"


def _unit(given: Given, rows: int) -> _Unit:
    parties = {role: given.party(role) for role in _ROLES}
    return _Unit(
        {role: one.forward(rows) + one.backward(rows) for role, one in parties.items()},
        rows * given.width * given.value_bytes / given.wire.bytes_per_s,
        2 * given.wire.latency_s,
        {role: one.message_s for role, one in parties.items()},
    )


def epoch_time_s(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> float:
    """Seconds of an epoch. `vfl` has one worker a party whatever is said, `avfl` one worker with as many
    batches under way as the feature party's number says; in `-ps` both parties have the larger number."""
    return _epoch(given, batch_rows, _way(given, label_workers, feature_workers))[0]


def _epoch(given: Given, batch_rows: int, way: _Way) -> tuple[float, dict[str, float], str]:
    """Seconds of an epoch, of the parts of a batch's way, and what the epoch hangs on."""
    batch_rows = min(batch_rows, given.rows)
    batches = math.ceil(given.rows / batch_rows)
    last_rows = given.rows - (batches - 1) * batch_rows
    if way.ahead == 1 or way.shares > 1:
        parts, last = _lockstep(given, batch_rows, way), _lockstep(given, last_rows, way)
        seconds = (batches - 1) * sum(parts.values()) + sum(last.values())
        return seconds, parts, _largest(parts)
    return _pipelined(given, batch_rows, last_rows, batches, way)


def _lockstep(given: Given, rows: int, way: _Way) -> dict[str, float]:
    """The parts of a batch that is alone under way: its shares are computed at once, and queue for what is
    there once, the link and each party's messages."""
    unit, queued = _unit(given, math.ceil(rows / way.shares)), way.shares - 1
    parts = unit.parts()
    queues = {_BANDWIDTH: unit.transfer_s} | {_messages(role): unit.message_s[role] for role in _ROLES}
    queue_s = queued * max(queues.values())
    for role in _ROLES:
        crowded_s = parts[_computing(role)] * max(1.0, way.shares / given.party(role).cores)
        parts[_computing(role)] = max(parts[_computing(role)], crowded_s - queue_s)
    parts[_largest(queues)] += queue_s
    if queued:  # the label party's workers get their weights while the gradients travel
        average_s = {role: way.shares * given.party(role).average_s for role in _ROLES}
        meanwhile_s = parts[_computing("feature")] + unit.latency_s + 2 * unit.transfer_s
        parts[_AVERAGES] = average_s["feature"] + max(0.0, average_s["label"] - meanwhile_s)
    return parts


def _pipelined(
    given: Given, batch_rows: int, last_rows: int, batches: int, way: _Way
) -> tuple[float, dict[str, float], str]:
    """As `_epoch` where several batches are under way: they go in rounds of so many, or one after the other
    through the slowest station, whichever takes longer. The feature party begins a batch before it learns
    from another; the other way round batches come in bunches, and stations are idle between."""
    at_once = {role: min(way.workers[role], given.party(role).cores) for role in _ROLES}
    full, last = _unit(given, batch_rows), _unit(given, last_rows)
    parts, stations = full.parts(), full.stations(at_once)
    full_s, slowest_s = sum(parts.values()), max(stations.values())
    cycle_s = ((batches - 1) * full_s + sum(last.parts().values())) / batches
    station_s = ((batches - 1) * slowest_s + max(last.stations(at_once).values())) / batches
    epochs = 1 if way.waits else given.epochs
    following = batches * epochs - 1
    rounds, rest = divmod(following, way.ahead)
    apart_s, behind_s = rounds * cycle_s + rest * station_s, following * station_s
    seconds = (full_s + max(apart_s, behind_s)) / epochs
    average_s = sum(way.workers[role] * given.party(role).average_s for role in _ROLES)
    average_s *= way.replicas > 1
    bound = _largest(parts) if apart_s > behind_s else _largest(stations)
    bound = _AVERAGES if average_s > seconds else bound
    return seconds + average_s, parts | {_AVERAGES: average_s / batches}, bound


def _largest(parts: Mapping[str, float]) -> str:
    return max(parts, key=lambda name: parts[name])


# The choice


def candidates(given: Given, batch_rows: int) -> tuple[int, ...]:
    """Powers of two from 16 and the given size, up to the rows and to what both parties have measured."""
    most = min(given.rows, given.label.most_rows, given.feature.most_rows)
    powers = (2**power for power in range(LEAST_ROWS.bit_length() - 1, most.bit_length()))
    return tuple(sorted({rows for rows in (*powers, min(batch_rows, given.rows)) if rows <= given.rows}))


def predict(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> Choice:
    """What the model says of one plan; workers as for `epoch_time_s`."""
    way = _way(given, label_workers, feature_workers)
    seconds, parts, bound = _epoch(given, batch_rows, way)
    delay = 0.0 if way.shares > 1 else (way.ahead - 1) / way.replicas
    factor = given.convergence.epochs_factor(batch_rows, way.replicas, delay)
    label, feature = way.workers["label"], way.workers["feature"]
    if given.schedule == "avfl":
        feature = way.ahead
    return Choice(batch_rows, label, feature, seconds, factor, seconds * factor, delay, bound, parts)


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
    """Workers of the label party and of the feature party, no more than cores or than what pubsub has under
    way; in `avfl` the latter are batches under way."""
    most = min(_MOST_WORKERS, given.under_way) if given.schedule == "pubsub" else _MOST_WORKERS
    label, feature = (range(1, min(given.party(role).cores, most) + 1) for role in _ROLES)
    if given.schedule == "vfl":
        yield 1, 1
    elif given.schedule == "avfl":
        yield from ((1, ahead) for ahead in range(1, _MOST_WORKERS + 1))
    elif given.schedule == "pubsub":
        yield from ((one, other) for one in label for other in feature)
    else:
        yield from ((one, one) for one in label if one in feature)


def _fits(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> bool:
    needs = _memory(given, batch_rows, label_workers, feature_workers)
    return all(needs[role] <= given.party(role).memory_bytes for role in _ROLES)


def _memory(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> dict[Role, float]:
    """Bytes of each party: its workers, and the messages of all units that are under way."""
    way = _way(given, label_workers, feature_workers)
    under_way = 2 * way.ahead * math.ceil(batch_rows / way.shares) * given.width * given.value_bytes
    return {role: given.party(role).memory(way.workers[role], batch_rows) + under_way for role in _ROLES}


def _too_small(given: Given, batch_rows: int) -> str:
    needs = _memory(given, batch_rows, 1, 1)
    said = (
        f"the {role} party needs {needs[role] / 2**20:,.0f} MiB and offers "
        f"{given.party(role).memory_bytes / 2**20:,.0f}"
        for role in _ROLES
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


def curves(given: Given, plan: Plan, role: Role) -> dict[int, tuple[tuple[int, float], ...]]:
    """For each number of this party's workers (in `avfl`, of batches under way), of powers of two and the
    chosen one: batch sizes and predicted seconds of an epoch, with the partner's workers as chosen."""
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
            found[count] = tuple((rows, epoch_time_s(given, rows, *pair)) for rows in fitting)
    return found
