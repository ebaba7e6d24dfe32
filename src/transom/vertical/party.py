"""One party of a vertical training, ready to meet the other: its model and workers, its record, its terms.

Threat model: as the room's. The terms tell the partner settings, versions, counts of rows and a hash of the
IDs' order. Does not protect: who holds the partner's terms can test a guess of all joined IDs.
Source: own. Shapes: N rows that both parties have, R rows of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from transom.errors import CheckpointError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.exchange import Agreement
from transom.link.mechanisms import Nothing
from transom.link.r3elu import R3elu, R3eluDp
from transom.link.record import Record
from transom.link.session import WINDOW_BYTES, Session
from transom.link.talk import Talk
from transom.link.told import Listener
from transom.link.tunnel import Tunnel
from transom.vertical import folder, messages
from transom.vertical.feature import FeatureSide
from transom.vertical.half import Half, make_half
from transom.vertical.job import Role, VerticalJob, terms
from transom.vertical.label import LabelSide
from transom.vertical.model import centre, standardise
from transom.vertical.part import Part
from transom.vertical.pool import Pool, Threaded, Told, Worker
from transom.vertical.row_noise import RowNoise
from transom.vertical.schedule import Way, way_of
from transom.vertical.traffic import Keeper, KeptTalk, folder_of
from transom.vertical.worker import Child

Purpose = Literal["train", "predict"]
Workers = Literal["here", "threads", "processes"]
_VERSIONS = ("transom", "torch")
_OF_ROWS = ("file", "rows", "rows of training", "order of the IDs")
_HERE_S = 3600.0  # of one step, where both parties are one process
_DEPTH = 2  # tasks that a worker in a process has at once, so that it need not wait for the next


@dataclass(frozen=True)
class Party:
    """Who it is, what it does, what both must have alike."""

    job: VerticalJob
    side: LabelSide | FeatureSide
    record: Record
    terms: Mapping[str, str]

    @property
    def has_begun(self) -> bool:
        """Whether anything of the run was sent or applied, by this process or one before."""
        return self.record.next_number > 0 or len(self.record.applied) > 0

    def row_noise(self) -> RowNoise:
        """What the embeddings of predictions carry: with the secret of the run that trained, so that a row
        has the same noise in each run of `predict`. Raises CheckpointError where its record is gone."""
        law = self.job.mechanism
        if isinstance(law, R3elu | R3eluDp) and law.learns:
            law = replace(law, importance=self.side.learnt)
        if isinstance(law, Nothing):
            return RowNoise(law, self.record.secret, b"")
        path, names = _record_of(self.job)
        if not path.exists():
            raise CheckpointError(
                f"{path} is gone, the record of the run that trained; the noise of predictions is made with "
                "its secret. Restore it, or train again"
            )
        with Record(path, **names) as trained:
            return RowNoise(law, trained.secret, self.side.pool.half.saved())

    def close(self) -> None:
        self.side.pool.close()
        self.record.close()


def make_party(
    job: VerticalJob, part: Part, tell: Listener, *,
    purpose: Purpose = "train", workers: Workers = "here", new_rows: bool = False,
) -> Party:  # fmt: skip
    """A party with its part of the joined rows, as its record says, or to predict, with what its run left;
    with `new_rows` on others than it was trained on.

    Raises MisconfiguredError, and CheckpointError for a run that began as another.
    """
    _require(job, part, purpose)
    way = way_of(job)
    half = make_half(job, part.width, local=way.local)
    known = facts(job, part, way)
    about = {name: one for name, one in terms(job, known).items() if not name.startswith("version of")}
    about |= {"noise": job.noise_told}
    about |= {"party": job.role, "columns": part.schema, "file": part.digest}
    if purpose == "train":
        _measure(half, part)
    record = _record(job, purpose)
    try:
        pool = _pool(job, part, half, way, workers if purpose == "train" else "here")
        side: LabelSide | FeatureSide
        if job.role == "label":
            tunnel = Tunnel(Nothing(), job.mechanism, record.secret, record.run)
            side = LabelSide(job, part, pool, way, about, tell, tunnel)
        else:
            tunnel = Tunnel(job.mechanism, Nothing(), record.secret, record.run)
            side = FeatureSide(job, part, pool, way, about, tell, tunnel)
        agreed = {**terms(job, known), "purpose": purpose}
        if purpose == "predict":
            head = folder.take(job, half, about, but=_OF_ROWS if new_rows else ())
            side.learnt = head.importance
            agreed |= {"trained": head.run}
        elif record.checkpoint is not None:
            side.restore(record.checkpoint)
        side.charge(record.sent_steps())
        side.told("ready")
        return Party(job, side, record, agreed)
    except BaseException:
        record.close()
        raise


@contextmanager
def met(
    party: Party, broker: Broker, heartbeat_s: float = 1.0, timeout_s: float | None = None
) -> Iterator[tuple[Session, Talk]]:
    """A session with the partner, who has agreed to the same terms."""
    job, link = party.job, party.job.link
    session = Session(
        broker, party.record, party.terms, wire=job.wire,
        limits=messages.limits(job.width, job.wire, broker.max_bytes),
        window=link.window if link else 64, window_bytes=link.window_mb * 2**20 if link else WINDOW_BYTES,
        timeout_s=link.timeout_s if link else _HERE_S,
        heartbeat_s=heartbeat_s, resend_after_s=2 * heartbeat_s,
    )  # fmt: skip
    with session:
        agreement: Agreement = session.connect(timeout_s)
        at_once = max(party.side.way.ahead, 4)
        every_steps = job.train.checkpoint_every_steps
        if job.train.record_traffic_mb and party.terms["purpose"] == "train":
            talk: Talk = KeptTalk(session, agreement, every_steps, at_once, _keeper(party))
        else:
            talk = Talk(session, agreement, every_steps, at_once)
        talk.spent = party.side.spent
        yield session, talk


def _keeper(party: Party) -> Keeper:
    """Of the run's traffic, from where the last checkpoint stands."""
    job, begins = party.job, party.record.checkpoint is None
    return Keeper(folder_of(job), job.train.record_traffic_mb, anew=begins)


def facts(job: VerticalJob, part: Part, way: Way) -> dict[str, str]:
    """What the parties must have alike beside the job, as each finds it."""
    found = {
        "rows": str(len(part)),
        "rows of training": str(len(part.train)),
        "order of the IDs": part.order_hash,
        **{f"version of {name}": version(name).partition("+")[0] for name in _VERSIONS},
    }
    return found | ({"workers": str(way.workers)} if way.paired else {})


def _require(job: VerticalJob, part: Part, purpose: Purpose) -> None:
    if job.role == "feature" and not part.width:
        raise MisconfiguredError("the feature party has no columns; name some in data.features")
    if purpose == "train" and not len(part.train):
        raise MisconfiguredError(
            f"no row is left to train on, of {len(part)} that both parties have; lower data.test_share"
        )


def _measure(half: Half, part: Part) -> None:
    """Mean and deviation of the rows of training."""
    if half.bottom is not None:
        standardise(half.bottom, part)
    if half.top is not None:
        centre(half.top, part)


def _pool(job: VerticalJob, part: Part, half: Half, way: Way, workers: Workers) -> Pool:
    """One worker in lock-step is the server itself: what a worker alone has learnt would be lost with it."""
    if workers == "here" or (way.lockstep and way.local):
        return Pool(half, way.workers)

    def make(number: int, tell: Callable[[Told], None]) -> Worker:
        if workers == "threads":
            return Threaded(make_half(job, part.width, local=way.local), tell)
        if job.train.cluster:
            from transom.vertical.cluster import Actor

            return Actor(job, part.width, tell, local=way.local)
        return Child(job, part.width, tell, local=way.local)

    deadline_s = job.train.worker_deadline_s if workers == "processes" else math.inf
    return Pool(half, way.workers, make, 1 if way.lockstep else _DEPTH, deadline_s)


def _record(job: VerticalJob, purpose: Purpose) -> Record:
    """The party's record: on disk while it trains, in memory to predict."""
    path, names = _record_of(job)
    if purpose == "train":
        return Record(path, **names)
    return Record(None, **names | {"run": f"{names['run']}.{purpose}"})


def _record_of(job: VerticalJob) -> tuple[Path, dict[str, str]]:
    """Where the record of the training is, and whose it is."""
    other: Role = "feature" if job.role == "label" else "label"
    path, link = job.folder / "record", job.link
    names = {"job": job.name, "run": "run", "party": str(job.role), "partner": str(other)}
    if link is not None:
        names = {"job": link.job, "run": link.run, "party": link.party, "partner": link.partner}
        path = link.record or path
    return path / f"{names['run']}-{names['party']}.sqlite", names
