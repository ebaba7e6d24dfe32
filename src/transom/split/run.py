"""A split tuning from its job to its end: one party over a broker, or both in one process; and its use.

Each party makes its part, meets the other, compares terms and goes on from wherever its record stands. What
it has learnt is on disk (`folder`) before it takes leave.
Threat model: as the room's and the link's. Does not protect anything beyond them.
Source: own. Shapes: R rows, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from transom.config import to_plain
from transom.errors import LinkTimeoutError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.config import opened
from transom.link.memory import together
from transom.link.session import WINDOW_BYTES, Session
from transom.link.talk import Talk
from transom.link.told import Listener, Told
from transom.split import folder
from transom.split.customer import CustomerSide
from transom.split.job import SplitJob
from transom.split.messages import PREDICT
from transom.split.party import Party, Side, customer, vendor
from transom.split.predicted import Predicted
from transom.split.vendor import VendorSide

_HERE_S = 3600.0  # of one step, where both parties are one process
_LEAVE_S = 5.0  # so long a run that is over waits for a partner that may be gone


def tune(party: Party[Side], broker: Broker, heartbeat_s: float = 1.0) -> None:
    """Train to the end with the partner behind the broker, and leave it on disk.

    Raises LinkError (terms that differ, a partner that breaks the rules or is silent), and what the checks
    of the first steps raise.
    """
    if (
        party.side.over
    ):  # but it may not be on disk, and the partner may not have all, or wait for a last word
        _leave(party, {})
        wait_s = None if party.record.held else _LEAVE_S
        with suppress(LinkTimeoutError), _met(party, broker, heartbeat_s, wait_s) as (session, _):
            session.finish(wait_s)
        return
    with _met(party, broker, heartbeat_s) as (session, talk):
        party.side.run(talk)
        _leave(party, session.counts)
        session.finish()


def simulate(job: SplitJob, tell: Listener) -> Party[CustomerSide]:
    """Both parties in one process, each with a model of its own; the customer, at its end."""

    def of_vendor(told: Told) -> None:
        if told.kind == "ready":
            tell(told)

    with closing(customer(job, tell)) as buyer, closing(vendor(job, of_vendor)) as seller:
        together(lambda broker: tune(seller, broker), lambda broker: tune(buyer, broker))
        return buyer


def answer(party: Party[VendorSide], broker: Broker) -> None:
    """The vendor answers a customer that predicts, until it ends."""
    with _met(party, broker) as (session, talk):
        party.side.run(talk)
        session.finish()


def predict(party: Party[CustomerSide], broker: Broker, texts: Sequence[str] | None) -> Predicted:
    """What the tuned model says of texts, or of the rows that were evaluated, with the vendor's help."""
    rows = party.side.asked(texts)
    with _met(party, broker) as (session, talk):
        each, scores_RC = party.side.predict(talk, rows)
        session.finish()
    return Predicted(party.job.labels, rows.labels, tuple(each), scores_RC)


def predict_here(job: SplitJob, texts: Sequence[str] | None) -> Predicted:
    """As `predict`, both parties in one process."""
    with (
        closing(vendor(job, _nobody, PREDICT)) as seller,
        closing(customer(job, _nobody, PREDICT)) as buyer,
    ):
        return together(lambda broker: answer(seller, broker), lambda broker: predict(buyer, broker, texts))


@contextmanager
def way(job: SplitJob) -> Iterator[Broker]:
    """The broker that the job's link names. Raises MisconfiguredError where it names none, LinkError."""
    if job.link is None:
        raise MisconfiguredError(
            "the job has no link; add one, or run both parties here: transom split simulate"
        )
    with opened(job.link) as broker:
        yield broker


@contextmanager
def _met(
    party: Party[Side], broker: Broker, heartbeat_s: float = 1.0, timeout_s: float | None = None
) -> Iterator[tuple[Session, Talk]]:
    """A session with the partner, who has agreed to the same terms."""
    job, link = party.job, party.job.link
    session = Session(
        broker, party.record, party.terms, wire=job.wire, limits=party.limits(broker.max_bytes),
        window=link.window if link else 64, window_bytes=link.window_mb * 2**20 if link else WINDOW_BYTES,
        timeout_s=link.timeout_s if link else _HERE_S,
        heartbeat_s=heartbeat_s, resend_after_s=2 * heartbeat_s,
    )  # fmt: skip
    with session:
        agreement = session.connect(timeout_s)
        train = job.train
        yield session, Talk(session, agreement, train.checkpoint_every_steps, train.micro_batches)


def _leave(party: Party[Side], counts: Mapping[str, int]) -> None:
    """Write what was learnt, and the customer's report."""
    side = party.side
    place = folder.leave(party.job, party.role, side.about, side.steps, party.learner)
    if isinstance(side, CustomerSide):
        folder.keep_noise(place, side.privatise)
        folder.write_report(place, report(side, counts))


def report(side: CustomerSide, counts: Mapping[str, int]) -> dict[str, Any]:
    """What the customer knows of its run; `counts` are of the process that ended it."""
    return {
        "steps": side.now.steps,
        "rows": len(side.rows),
        "shortened": side.rows.shortened,
        "history": to_plain(side.now.history),
        "noise": side.privatise.report(),
        "gradient_tunnel": side.gradients.report(),
        "link": dict(counts),
    }


def _nobody(told: Told) -> None:
    """Nobody listens."""
