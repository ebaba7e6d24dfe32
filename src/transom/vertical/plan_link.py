"""What the parties of a plan say to each other: messages as large as batches, to time them; an offer each.

The feature party sends made-up embeddings of growing sizes, the label party answers with as many numbers.
Then each tells its constants (`Offer`), and at last what it chose, which must be the same.
Threat model: a partner that sends other sizes, too much, or constants that are none: refused.
Does not protect: against constants that are false. How fast a party is, and what of its machine it offers, is
known to the partner; so are sizes and times of all messages. No row and no weight is in them.
Source: own. Shapes: B rows of a batch, W width of an embedding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Annotated, Any

import torch
from torch import Tensor

from transom.config import Setting, from_plain, load_json, settings, to_plain
from transom.errors import LinkRefusedError
from transom.link.codec import row_bytes
from transom.link.exchange import Agreement
from transom.link.message import Step
from transom.link.session import Received, Session
from transom.vertical.epoch import Given, Wire
from transom.vertical.job import Role, VerticalJob
from transom.vertical.measure import sizes_of
from transom.vertical.part import Part
from transom.vertical.planner import Plan
from transom.vertical.profile import Fitted, Profile, fit
from transom.vertical.schedule import way_of

_ECHO, _OFFER, _CHOICE = "plan-echo", "plan-offer", "plan-choice"
_TIMES = 5  # of each size
_LONG_S = 1.5  # of one there and back, after which no larger one is sent
_BESIDE_BYTES = 2**12  # of a message, beside its numbers
_MOST_OFFER_BYTES = 2**12
FASTEST = 1e12  # bytes a second, where the size of a message makes no difference
_MOST_S = 1e4


@dataclass(frozen=True, kw_only=True)
class Offer:
    """All that a party tells the partner for a plan."""

    fitted: Annotated[Fitted, "Constants of its profile, and what it offers of its machine."]
    small_s: Annotated[
        float,
        Setting("Seconds to the answer of the smallest message, or of making it.", least=0, most=_MOST_S),
    ]
    large_s: Annotated[
        float,
        Setting("Seconds to the answer of the largest message, or of making it.", least=0, most=_MOST_S),
    ]


@dataclass
class _Times:
    """Own seconds of sending, and of waiting for the answer, by rows."""

    own_s: dict[int, list[float]] = field(default_factory=dict)
    away_s: dict[int, list[float]] = field(default_factory=dict)
    kept_s: list[float] = field(default_factory=list)

    def note(self, rows: int, own_s: float, away_s: float = 0.0) -> None:
        self.own_s.setdefault(rows, []).append(own_s)
        self.away_s.setdefault(rows, []).append(away_s)

    def means(self, of: dict[int, list[float]]) -> dict[int, float]:
        return {rows: fmean(times) for rows, times in sorted(of.items())}


def disclosed() -> dict[str, str]:
    """All that a party tells for a plan, as the report lists it: names and what they are."""
    found = {name: known.setting.help for name, known in settings(Fitted).items()}
    return found | {name: one.setting.help for name, one in settings(Offer).items() if name != "fitted"}


def given(
    job: VerticalJob, part: Part, profile: Profile, session: Session, agreement: Agreement,
    advance: Callable[[float], None] = lambda share: None,
) -> Given:  # fmt: skip
    """What both parties plan with, alike at both. Raises LinkError."""
    most = (agreement.max_bytes - _BESIDE_BYTES) // row_bytes(job.width, job.wire)
    sizes = [rows for rows in sizes_of(len(part.train)) if rows <= most]
    if not sizes:
        raise LinkRefusedError(
            f"the link takes messages of {agreement.max_bytes} bytes, less than the smallest batches have; "
            "raise message_mb and window_mb in both links"
        )
    lead = _lead if job.role == "feature" else _answer
    found, received = lead(job, session, profile, sizes, advance)
    own = _offer(job, profile, found, agreement, most)
    session.send(_step(job.role, _OFFER), {"offer": _bytes(to_plain(own))})
    if received is None:
        received = session.receive(_OFFER)
    theirs = read_offer(received.tensors)
    _apply(session)
    offers: dict[Role, Offer] = {job.role: own, _other(job.role): theirs}
    return _given(job, part, offers, max(found.own_s))


def agree(job: VerticalJob, session: Session, plan: Plan) -> None:
    """Both parties have chosen alike. Raises LinkRefusedError."""
    chosen = plan.chosen
    own = [chosen.batch_rows, chosen.label_workers, chosen.feature_workers]
    session.send(_step(job.role, _CHOICE), {"choice": torch.tensor(own)})
    theirs = session.receive(_CHOICE).tensors.get("choice")
    _apply(session)
    if theirs is None or theirs.dtype != torch.int64 or theirs.tolist() != own:
        raise LinkRefusedError(
            f"this party chose {own} (rows of a batch, workers of the label and of the feature party), and "
            "the partner another plan; both need the same version"
        )


def read_offer(tensors: Any) -> Offer:
    """The partner's. Raises LinkRefusedError with all that is wrong."""
    data = tensors.get("offer")
    if data is None or data.dtype != torch.uint8 or data.ndim != 1 or len(data) > _MOST_OFFER_BYTES:
        raise LinkRefusedError("the partner's offer is none; it is of another version")
    try:
        value = load_json(data.numpy().tobytes())
    except ValueError:
        raise LinkRefusedError("the partner's offer is no JSON; it is of another version") from None
    return from_plain(Offer, value, "the partner's offer is refused", error=LinkRefusedError)


def _lead(
    job: VerticalJob, session: Session, profile: Profile, sizes: list[int], advance: Callable[[float], None]
) -> tuple[_Times, Received | None]:
    """The feature party: sends, and waits for each answer."""
    found = _Times()
    for at, rows in enumerate(sizes):
        for number in range(_TIMES):
            begun_s = time.perf_counter()
            session.send(Step(at, number, "forward", topic=_ECHO), _rows(rows, job.width))
            sent_s = time.perf_counter()
            _require(session.receive(_ECHO), Step(at, number, "backward", topic=_ECHO), rows, job.width)
            found.note(rows, sent_s - begun_s, time.perf_counter() - sent_s)
        found.kept_s.append(_keep(session, profile))
        advance((at + 1) / len(sizes))
        if found.own_s[rows][-1] + found.away_s[rows][-1] > _LONG_S:
            break
    return found, None


def _answer(
    job: VerticalJob, session: Session, profile: Profile, sizes: list[int], advance: Callable[[float], None]
) -> tuple[_Times, Received | None]:
    """The label party: answers until the partner makes its offer."""
    found = _Times()
    for at, rows in enumerate(sizes):
        for number in range(_TIMES):
            received = session.receive((_ECHO, _OFFER))
            step = received.header.step
            if step.topic == _OFFER and number == 0 and at:
                return found, received
            _require(received, Step(at, number, "forward", topic=_ECHO), rows, job.width)
            begun_s = time.perf_counter()
            session.send(replace(step, direction="backward"), _rows(rows, job.width))
            found.note(rows, time.perf_counter() - begun_s)
        found.kept_s.append(_keep(session, profile))
        advance((at + 1) / len(sizes))
    return found, None


def _keep(session: Session, profile: Profile) -> float:
    """Seconds in which what was received and a checkpoint become durable."""
    begun_s = time.perf_counter()
    with session.commit() as commit:
        commit.checkpoint(bytes(profile.checkpoint_bytes))
    return time.perf_counter() - begun_s


def _offer(job: VerticalJob, profile: Profile, found: _Times, agreement: Agreement, most: int) -> Offer:
    """Constants out of what was timed: for each message half of what is sent, and half of a checkpoint's
    part, for a step has two messages and sends one."""
    own_s = found.means(found.own_s)
    every = min(profile.checkpoint_steps, max(agreement.window.messages // 4, 1))
    kept_s = (fmean(found.kept_s) + profile.checkpoint_s) / every
    messages = tuple((rows, (seconds + kept_s) / 2) for rows, seconds in own_s.items())
    whole = replace(
        profile, messages=messages, checkpoint_steps=every, most_rows=min(most, profile.most_rows)
    )
    told_s = found.means(found.away_s) if job.role == "feature" else own_s
    return Offer(fitted=fit(whole), small_s=told_s[min(told_s)], large_s=told_s[max(told_s)])


def _given(job: VerticalJob, part: Part, offers: dict[Role, Offer], largest: int) -> Given:
    """The link is what of the time to an answer is not the label party's own."""
    train, label, feature = job.train, offers["label"], offers["feature"]
    value_bytes = row_bytes(job.width, job.wire) / job.width
    latency_s = max(feature.small_s - label.small_s, 0.0) / 2
    transfer_s = max(feature.large_s - label.large_s, 0.0) / 2 - latency_s
    size_bytes = largest * job.width * value_bytes
    wire = Wire(latency_s, min(size_bytes / transfer_s, FASTEST) if transfer_s > 0 else FASTEST)
    waiting = min(train.embeddings, train.gradients)
    if train.schedule == "pubsub":
        waiting = way_of(job).ahead
    return Given(
        schedule=train.schedule, label=label.fitted, feature=feature.fitted, wire=wire,
        rows=len(part.train), tested_rows=len(part.test), width=job.width, value_bytes=value_bytes,
        under_way=waiting, bundle=way_of(job).bundle,
        epochs=train.epochs,
    )  # fmt: skip


def _require(received: Received, step: Step, rows: int, width: int) -> None:
    got = received.header.step
    shapes = {name: tuple(tensor.shape) for name, tensor in received.tensors.items()}
    if got != step or shapes != {"rows": (rows, width)}:
        raise LinkRefusedError(
            f"the partner sent {got} with {shapes} where {step} with {rows} rows was due; it is of another "
            "version"
        )


def _rows(count: int, width: int) -> dict[str, Tensor]:
    return {"rows": torch.zeros(count, width)}


def _bytes(plain: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)


def _step(role: Role, topic: str) -> Step:
    return Step(0, 0, "forward" if role == "feature" else "backward", topic=topic)


def _other(role: Role) -> Role:
    return "label" if role == "feature" else "feature"


def _apply(session: Session) -> None:
    with session.commit():
        pass
