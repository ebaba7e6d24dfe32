"""A vertical training from its job to its end: one party over a broker, or both in one process; and its use.

Each party makes its part, meets the other, compares terms and goes on from wherever its record stands. What
it has learnt is on disk (`folder`) before it takes leave.
Threat model: as the room's and the link's. Does not protect anything beyond them.
Source: own. Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from transom.config import to_plain
from transom.errors import LinkTimeoutError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.config import opened
from transom.link.memory import together
from transom.link.told import Listener, Told
from transom.vertical import folder
from transom.vertical.feature import FeatureSide
from transom.vertical.job import VerticalJob
from transom.vertical.label import LabelSide
from transom.vertical.part import Part
from transom.vertical.party import Party, Workers, make_party, met
from transom.vertical.report import report

Scores = NDArray[np.float64]
_LEAVE_S = 5.0  # so long a run that is over waits for a partner that may be gone


def train(party: Party, broker: Broker, heartbeat_s: float = 1.0, meet_s: float | None = None) -> None:
    """Train to the end with the partner behind the broker, and leave it on disk. A partner that does not come
    in `meet_s`, or the link's timeout, is not waited for.

    Raises LinkError (terms that differ, a partner that breaks the rules or is silent), MisconfiguredError
    for a model that diverges.
    """
    if party.side.now.over:  # but it may not be on disk, and the partner may wait for a last word
        wait_s = None if party.record.held else _LEAVE_S
        _leave(party, {})
        with suppress(LinkTimeoutError), met(party, broker, heartbeat_s, wait_s) as (session, _):
            session.finish(wait_s)
        return
    with met(party, broker, heartbeat_s, meet_s) as (session, talk):
        party.side.now = replace(party.side.now, mark=folder.mark_of(party.record.id, session.partner_record))
        party.side.run(talk)
        _leave(party, session.counts)
        session.finish()


def simulate(
    jobs: tuple[VerticalJob, VerticalJob], parts: tuple[Part, Part], tell: Listener, *,
    workers: Workers = "here",
) -> LabelSide:  # fmt: skip
    """Both parties in one process, the label party first; its side, at its end. It tells of both."""
    ages: dict[str, float] = {}  # of gradients, which the feature party knows

    def of_feature(told: Told) -> None:
        if told.kind == "ready":
            tell(told)
        ages.update((name, one) for name, one in told.found.items() if name.startswith("staleness"))

    def of_label(told: Told) -> None:
        tell(replace(told, found={**told.found, **ages}) if told.kind == "step" else told)

    with (
        closing(make_party(jobs[0], parts[0], of_label, workers=workers)) as label,
        closing(make_party(jobs[1], parts[1], of_feature, workers=workers)) as feature,
    ):
        together(lambda broker: train(feature, broker), lambda broker: train(label, broker))
        return _label(label)


def answer(party: Party, broker: Broker) -> int:
    """The feature party answers a label party that predicts, until it ends; how many rows left."""
    side = party.side
    if not isinstance(side, FeatureSide):
        raise TypeError("the label party asks")
    noise = party.row_noise()
    with met(party, broker) as (session, talk):
        count = side.answer(talk, noise)
        session.finish()
    return count


def predict(party: Party, broker: Broker, numbers: Sequence[int] | NDArray[np.int64] | None = None) -> Scores:
    """The scores [R] or [R, C] of rows by their number in the joined table, of all without, with the feature
    party's help."""
    side = _label(party)
    with met(party, broker) as (session, talk):
        wanted = np.arange(len(side.part)) if numbers is None else np.asarray(numbers, dtype=np.int64)
        found = side.predict(talk, wanted)
        side.end(talk)
        session.finish()
    return found


def predict_here(
    jobs: tuple[VerticalJob, VerticalJob], parts: tuple[Part, Part],
    numbers: Sequence[int] | NDArray[np.int64] | None = None, *, new_rows: bool = False,
) -> Scores:  # fmt: skip
    """As `predict`, both parties in one process."""
    label, feature = (
        make_party(job, part, _nobody, purpose="predict", new_rows=new_rows)
        for job, part in zip(jobs, parts, strict=True)
    )
    with closing(label), closing(feature):
        return together(lambda end: answer(feature, end), lambda end: predict(label, end, numbers))


@contextmanager
def way(job: VerticalJob) -> Iterator[Broker]:
    """The broker that the job's link names. Raises MisconfiguredError where it names none, LinkError."""
    if job.link is None:
        raise MisconfiguredError(
            "the job has no link; add one, or run both parties here: transom vertical simulate"
        )
    with opened(job.link) as broker:
        yield broker


def _leave(party: Party, counts: Mapping[str, int]) -> None:
    """Write what was learnt, and how it went."""
    side = party.side
    head = folder.Head(to_plain(party.job), side.about, side.steps, side.now.mark, side.learnt)
    folder.leave(party.job, side.pool.half, head, report(party, counts))


def _label(party: Party) -> LabelSide:
    if not isinstance(party.side, LabelSide):
        raise TypeError("the feature party has no labels")
    return party.side


def _nobody(told: Told) -> None:
    """Nobody listens."""
