"""What a party knows of its run: how it went, how good the model is, what crossed, what was disclosed.

Threat model: none; it is the party's own. Does not protect: whoever reads it learns losses and counts.
Source: own; the promise: `transom.link.tunnel`. Shapes: R rows of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transom.config import to_plain
from transom.link.mechanisms import Gaussian
from transom.privacy.guarantee import price
from transom.vertical import messages
from transom.vertical.job import PREDICTED, VerticalJob
from transom.vertical.label import LabelSide
from transom.vertical.metrics import SCORE
from transom.vertical.party import Party

_SHARED = (
    "which rows both parties have, how many, and their order",
    "which rows make each batch, when it is worked on, and how long that takes",
    "the sizes and the times of all messages",
    "settings of the training, versions of the software",
)


def report(party: Party, counts: Mapping[str, int]) -> dict[str, Any]:
    """What a party knows of its run; `counts` are of the process that ended it."""
    side, now, job = party.side, party.side.now, party.job
    found: dict[str, Any] = {
        "job": job.name,
        "party": job.role,
        "task": job.task,
        "schedule": job.train.schedule,
        "steps": now.steps,
        "rows": len(side.part),
        "rows_of_training": len(side.part.train),
        "given_out_again": dict(now.dropped),
        "wait_s": side.wait_s,
        "busy_s": side.pool.busy_s,
        "sent": crossed(party),
        "disclosed": list(disclosed(job)),
        "link": dict(counts),
        "timeline": side.timeline.report(),
    }
    if isinstance(side, LabelSide):
        history = [_finite(to_plain(point)) for point in now.history]
        return found | {"score": score_of(job, history), "history": history, "noise": noise_report(party)}
    return found | {"staleness": side.ages.report(), "noise": noise_report(party)}


def score_of(job: VerticalJob, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last evaluation in one figure, with its interval; None without rows to test on."""
    name = SCORE[job.task]
    if not history or history[-1]["metrics"].get(name) is None:
        return None
    low, high = history[-1]["interval"] or (None, None)
    return {"name": name, "value": history[-1]["metrics"][name], "low": low, "high": high}


def crossed(party: Party) -> dict[str, dict[str, int]]:
    """What this party has sent in the whole run, by topic: messages, and rows of `job.width` numbers in them
    (of an evaluation's, which may be answered with none, and a training's)."""
    side, found = party.side, {}
    for topic, steps in _by_topic(party).items():
        rows = 0
        if topic == messages.TRAIN:
            rows = sum(len(side.unit_rows(max(side.units.unit(step), 0))) for step in steps)
        elif topic == messages.EVALUATE and party.job.role == "feature":
            rows = sum(len(side.test_rows(step.batch)) for step in steps)
        found[topic] = {"messages": len(steps), "rows": rows}
    return found


def disclosed(job: VerticalJob) -> tuple[str, ...]:
    """What the partner has learnt, in words."""
    noise = "nothing is added to them" if job.noise.kind == "none" else f"through {job.noise.kind}"
    own = (
        f"embeddings of this party's columns, one a row and epoch: {noise}"
        if job.role == "feature"
        else f"gradients of the loss by its embeddings, which tell of the labels: {noise}"
    )
    hashed = ("every other ID that the partner can guess",) if job.insecure_hashed_join else ()
    return (*_SHARED, *hashed, own)


def noise_report(party: Party) -> dict[str, Any]:
    """How often a row was released at most (replies without rows may count), embeddings once more for all
    predictions that may follow; what that promises together, and what was paid for."""
    side, job = party.side, party.job
    predicted = PREDICTED if job.role == "feature" else 0
    releases = int(side.budget.spent_R.max(initial=0)) + predicted
    guarantee = job.mechanism.guarantee(max(releases, 1))
    told: dict[str, Any] = {
        "kind": job.noise.kind,
        "releases_of_a_row_at_most": releases,
        "of_these_by_predictions": predicted,
        "guarantee": guarantee.to_dict(),
    }
    if isinstance(job.mechanism, Gaussian):
        told["mu"] = math.sqrt(releases) * 2 * job.mechanism.clip / job.mechanism.sigma
    if math.isfinite(side.budget.most):
        told["budget"] = {
            "epsilon": job.noise.epsilon,
            "delta": job.noise.delta,
            "spent": price(guarantee, job.noise.delta) if releases else 0.0,
            "releases": side.budget.most + predicted,
            "ended_the_run": side.now.spent,
        }
    return told


def _finite(value: Any) -> Any:
    """JSON has no other numbers: an AUC of one class alone is None."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_topic(party: Party) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for step in party.record.sent_steps():
        found.setdefault(step.topic, []).append(step)
    return found
