"""How long an epoch of a vertical training takes, by a model of what its batches pass; how many are needed.

The time counts batches, cores, what is under way at once, both directions of the link, messages, averages and
the evaluation. It is weighed by how many more epochs large batches, many replicas and old gradients need.
Without that weight the largest batch wins wherever a row costs less in a larger one.
Threat model: none; numbers alone.
Does not protect: against a machine that is busy with other things than when it was measured. Times of tasks
are taken as even; stops and what is given out again are left out. With more workers than cores times are
optimistic; where an epoch is waited for and has less than ten messages, pessimistic by up to a third.
Source: Throughput: asymptotic bounds of closed networks of queues (Denning and Buzen 1978, "The Operational
Analysis of Queueing Network Models"). Weight of the batch: McCandlish et al., arXiv 1812.06162, section 2; of
the delay: Koloskova et al., arXiv 2206.08307 (delays slow what does not depend on the gradient's variance).
That both multiply, and that replicas count as larger batches: own heuristic.
Shapes: B rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from transom.config import Setting
from transom.vertical.job import Role, Schedule
from transom.vertical.profile import Fitted
from transom.vertical.schedule import EVALUATED_AHEAD, chunks

ROLES: tuple[Role, Role] = ("label", "feature")
_LATENCY, _BANDWIDTH, _AVERAGES = "latency of the link", "bandwidth of the link", "averages of workers"
_EVALUATION = "evaluation"


@dataclass(frozen=True)
class Wire:
    """The link as measured: seconds one way, bytes a second in each direction."""

    latency_s: Annotated[float, Setting(least=0, most=1e3)]
    bytes_per_s: Annotated[float, Setting(above=0, most=1e15)]


@dataclass(frozen=True)
class Convergence:
    """How many more epochs a plan needs than the smallest batches would:
    1 + (replicas + delay_cost * delay) * B / critical_rows.

    `critical_rows` is where twice the epochs are needed. The defaults are own measurements of one small
    network (three layers of 64, AdamW, 14,000 rows, to within 3 % of the best loss) at a learning rate that
    stayed: 170 to 250 rows at 0.001, 370 to 480 at 0.004. A delay of 2 to 8 steps cost 0.15 to 0.6 of a
    batch's part a step, nothing at 64 rows. On the credit data (`benchmarks/vertical_planner.py`, a delay of
    4) 128 to 2,048 rows needed 1.5, 2.2, 3.8, 6.5 and 11.8 epochs, as 0.74 times this, within a tenth.
    """

    critical_rows: Annotated[float, Setting(above=0, most=1e12)] = 256.0
    delay_cost: Annotated[float, Setting("Of a step that a gradient is old.", least=0, most=1e3)] = 0.25

    def epochs_factor(self, batch_rows: int, replicas: int, delay: float) -> float:
        """`replicas` are models that learn apart between averages, `delay` steps that a gradient is old."""
        return 1 + (replicas + self.delay_cost * delay) * batch_rows / self.critical_rows


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a plan is made for. `rows` are of training, `tested_rows` are evaluated after each epoch.
    `under_way`: messages that pubsub has at once, and that may wait in `avfl`, each of `bundle` batches where
    the schedule is not lock-step; `epochs` of the run."""

    schedule: Schedule
    label: Fitted
    feature: Fitted
    wire: Wire
    rows: int
    tested_rows: int = 0
    width: int
    value_bytes: float = 4.0
    under_way: int = 5
    bundle: int = 1
    epochs: int = 10
    convergence: Convergence = field(default_factory=Convergence)

    def party(self, role: Role) -> Fitted:
        return self.label if role == "label" else self.feature

    def transfer_s(self, rows: float) -> float:
        """What so many embeddings need in one direction of the link, without its latency."""
        return rows * self.width * self.value_bytes / self.wire.bytes_per_s


@dataclass(frozen=True)
class Way:
    """How a schedule goes, as `transom.vertical.schedule.way_of` has it: workers of each party, parts of a
    batch, units under way, whether an epoch waits for the one before, models that learn apart, batches of a
    unit."""

    workers: Mapping[Role, int]
    shares: int
    ahead: int
    waits: bool
    replicas: int
    bundle: int = 1

    @property
    def delay(self) -> float:
        """Steps that a gradient is old, of those of its own model."""
        if self.shares > 1:
            return 0.0
        return ((self.ahead - 1) * self.bundle + (self.bundle - 1) / 2) / self.replicas


def way(given: Given, label_workers: int, feature_workers: int) -> Way:
    """`vfl` has one worker a party whatever is said, `avfl` one worker with as many batches under way as the
    feature party's number says; in `-ps` both parties have the larger number."""
    most = max(label_workers, feature_workers)
    one: dict[Role, int] = {"label": 1, "feature": 1}
    both: dict[Role, int] = {"label": most, "feature": most}
    own: dict[Role, int] = {"label": label_workers, "feature": feature_workers}
    ways: dict[Schedule, Way] = {
        "vfl": Way(one, 1, 1, True, 1),
        "vfl-ps": Way(both, most, most, True, 1),
        "avfl": Way(one, 1, feature_workers, True, 1, given.bundle),
        "avfl-ps": Way(both, 1, most, True, most, given.bundle),
        "pubsub": Way(own, 1, given.under_way, False, most, given.bundle),
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
        computing = {_computing(role): self.computing_s[role] for role in ROLES}
        messages = {_messages(role): 2 * self.message_s[role] for role in ROLES}
        return {**computing, _LATENCY: self.latency_s, _BANDWIDTH: 2 * self.transfer_s, **messages}

    def stations(self, way: Way, cores: Mapping[Role, int]) -> dict[str, float]:
        """What each station needs for a unit at the least. A single worker is the party's own process, which
        sends and receives as well; several are processes beside it."""
        found = {_BANDWIDTH: self.transfer_s}
        for role in ROLES:
            computing_s, messages_s = self.computing_s[role], 2 * self.message_s[role]
            if way.workers[role] == 1:
                busiest = _computing(role) if computing_s >= messages_s else _messages(role)
                found[busiest] = computing_s + messages_s
            else:
                found[_computing(role)] = computing_s / min(way.workers[role], cores[role])
                found[_messages(role)] = messages_s
        return found


def _computing(role: Role) -> str:
    return f"computing of the {role} party"


def _messages(role: Role) -> str:
    return f"messages of the {role} party"


def _unit(given: Given, rows: int, batches: int = 1) -> _Unit:
    """Of so many rows, in so many batches."""
    parties = {role: given.party(role) for role in ROLES}
    each = rows / batches
    return _Unit(
        {role: batches * (one.forward(each) + one.backward(each)) for role, one in parties.items()},
        given.transfer_s(rows),
        2 * given.wire.latency_s,
        {role: one.message(rows) for role, one in parties.items()},
    )


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch, of the parts of a batch's way with its share of what comes once an epoch, and what
    the epoch hangs on."""

    seconds: float
    parts_s: Mapping[str, float]
    bound: str


def epoch_time_s(given: Given, batch_rows: int, label_workers: int, feature_workers: int) -> float:
    """Seconds of an epoch; workers as for `way`."""
    return epoch(given, batch_rows, way(given, label_workers, feature_workers)).seconds


def epoch(given: Given, batch_rows: int, way: Way) -> Epoch:
    """What an epoch takes."""
    batch_rows = min(batch_rows, given.rows)
    batches = math.ceil(given.rows / batch_rows)
    if (way.ahead == 1 and way.bundle == 1) or way.shares > 1:
        last_rows = given.rows - (batches - 1) * batch_rows
        parts, last = _lockstep(given, batch_rows, way), _lockstep(given, last_rows, way)
        found = Epoch((batches - 1) * sum(parts.values()) + sum(last.values()), parts, _largest(parts))
    else:
        found = _pipelined(given, batch_rows, way)
    once = {_AVERAGES: _averages_s(given, batches, way), _EVALUATION: _evaluation_s(given, batch_rows, way)}
    name = _largest(once)
    parts = {**found.parts_s}
    for one, seconds in once.items():
        parts[one] = parts.get(one, 0.0) + seconds / batches
    bound = name if once[name] > found.seconds else found.bound
    return Epoch(found.seconds + sum(once.values()), parts, bound)


def _lockstep(given: Given, rows: int, way: Way) -> dict[str, float]:
    """The parts of a batch that is alone under way: its shares are computed at once, and queue for what is
    there once, the link and each party's messages."""
    unit, queued = _unit(given, math.ceil(rows / way.shares)), way.shares - 1
    parts = unit.parts()
    queues = {_BANDWIDTH: unit.transfer_s} | {_messages(role): unit.message_s[role] for role in ROLES}
    queue_s = queued * max(queues.values())
    parts[_largest(queues)] += queue_s
    if queued:  # the label party's workers get their weights while the gradients travel
        average_s = {role: way.shares * given.party(role).average_s for role in ROLES}
        meanwhile_s = parts[_computing("feature")] + unit.latency_s + 2 * unit.transfer_s
        parts[_AVERAGES] = average_s["feature"] + max(0.0, average_s["label"] - meanwhile_s)
    return parts


def _pipelined(given: Given, batch_rows: int, way: Way) -> Epoch:
    """Where several units are under way: they go in rounds of so many, or one after the other through the
    slowest station, whichever takes longer. The feature party begins one before it learns from another;
    the other way round they come in bunches, and stations are idle between."""
    cores = {role: given.party(role).cores for role in ROLES}
    unit_rows = min(way.bundle * batch_rows, given.rows)
    units = math.ceil(given.rows / unit_rows)
    last_rows = given.rows - (units - 1) * unit_rows
    full, last = (_unit(given, rows, math.ceil(rows / batch_rows)) for rows in (unit_rows, last_rows))
    parts, stations = full.parts(), full.stations(way, cores)
    full_s, slowest_s = sum(parts.values()), max(stations.values())
    less_s = full_s - sum(last.parts().values()), slowest_s - max(last.stations(way, cores).values())
    if way.waits:
        epochs, spared_s = 1, less_s[(units - 1) % way.ahead > 0]
        rounds_s, queue_s = _following(full_s, slowest_s, units, way.ahead)
        rounds_s, queue_s = rounds_s - spared_s, queue_s - less_s[1]
    else:
        epochs = given.epochs
        means_s = full_s - less_s[0] / units, slowest_s - less_s[1] / units
        rounds_s, queue_s = _following(*means_s, units * epochs, way.ahead)
    bound = _largest(parts) if rounds_s > queue_s else _largest(stations)
    return Epoch((full_s + max(rounds_s, queue_s)) / epochs, parts, bound)


def _following(whole_s: float, slowest_s: float, count: int, ahead: int) -> tuple[float, float]:
    """After the first of `count` things has passed, of which so many are under way: till the others have, by
    rounds, and by the slowest station."""
    rounds, rest = divmod(count - 1, ahead)
    return rounds * whole_s + rest * slowest_s, (count - 1) * slowest_s


def _averages_s(given: Given, batches: int, way: Way) -> float:
    """Once an epoch where there are several models, and at each checkpoint, of those that learn apart."""
    if way.shares > 1:
        return 0.0
    found = 0.0
    for role in ROLES:
        party, workers = given.party(role), way.workers[role]
        checkpoints = batches / party.checkpoint_steps if workers > 1 else 0.0
        found += workers * party.average_s * ((way.replicas > 1) + checkpoints)
    return found


def _evaluation_s(given: Given, batch_rows: int, way: Way) -> float:
    """What the evaluation adds: all of it where the next epoch waits, else what it takes of the slowest."""
    if not given.tested_rows:
        return 0.0
    count = len(chunks(given.tested_rows, batch_rows))
    rows = given.tested_rows / count
    label, feature = given.label, given.feature
    stations = (
        feature.forward(rows) + feature.message(rows), given.transfer_s(rows),
        label.forward(rows) + label.message(1),
    )  # fmt: skip
    if not way.waits:
        return count * max(stations)
    whole_s = sum(stations) + 2 * given.wire.latency_s
    return whole_s + max(_following(whole_s, max(stations), count, EVALUATED_AHEAD))


def _largest(parts: Mapping[str, float]) -> str:
    return max(parts, key=lambda name: parts[name])
