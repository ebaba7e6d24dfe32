"""One party of a split tuning, ready to meet the other: its part of the model, its record, its terms.

Threat model: as the room's. The terms tell the partner digests of the front and of the tokenizer, sizes and
versions. Does not protect: the labels' names are terms, too, since both parties' jobs have them.
Source: own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from transom.checkpoint.cut import Front, three
from transom.checkpoint.fingerprint import fingerprint
from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, MisconfiguredError
from transom.link import state
from transom.link.codec import Limits
from transom.link.learner import Learner
from transom.link.record import Record
from transom.link.talk import unpack
from transom.link.told import Listener, Told
from transom.split import folder, messages
from transom.split.customer import CustomerSide, Progress
from transom.split.folder import Role
from transom.split.gradients import Gradients
from transom.split.job import Data, SplitJob, terms
from transom.split.learner import schedule
from transom.split.messages import TRAIN, Bounds
from transom.split.parts import load_model, make_customer, make_vendor
from transom.split.privatise import Privatiser, make_privatiser
from transom.split.rows import Rows, read_public, read_rows
from transom.split.settled import settled_from
from transom.split.vendor import VendorSide

_LONGEST = 2**17
_VERSIONS = ("transom", "torch", "transformers", "peft")
Side = TypeVar("Side", VendorSide, CustomerSide)


@dataclass(frozen=True)
class Party(Generic[Side]):
    """Who it is, what it does, what both must have alike; `limits` are the link's, of so many bytes."""

    role: Role
    job: SplitJob
    side: Side
    record: Record
    terms: Mapping[str, str]
    limits: Callable[[int], Limits]

    @property
    def learner(self) -> Learner | None:
        """What it trains."""
        return self.side.part.learner

    def close(self) -> None:
        self.record.close()


def vendor(job: SplitJob, tell: Listener, purpose: str = TRAIN) -> Party[VendorSide]:
    """The vendor of a job. Raises as `load_model`, and CheckpointError for a run that began as another."""
    found = load_model(job)
    known = facts(found, job)
    part = make_vendor(found.model, job, schedule(job.train, 1))  # the customer tells how many rows there are
    bounds = Bounds(job.train.batch_rows, int(known["longest text"]), job.train.micro_batches)
    side = VendorSide(part, job, about(job, known, "vendor"), bounds, tell)
    if purpose != TRAIN:
        side.takes = messages.PREDICT, messages.END
    width = part.middle.parts.width
    with _record(job, "vendor", purpose) as record:
        party = Party(
            "vendor", job, side, record, {**terms(job, known), "purpose": purpose},
            lambda most: messages.vendor_limits(width, job.wire, most),
        )  # fmt: skip
        return _ready(party, purpose)


def customer(job: SplitJob, tell: Listener, purpose: str = TRAIN) -> Party[CustomerSide]:
    """The customer of a job, with its rows. Raises as `vendor`, and MisconfiguredError for bad rows."""
    if job.data is None:
        raise MisconfiguredError("the customer's job names no rows; set data.train")
    found = load_model(job)
    known = facts(found, job)
    tokenizer = _tokenizer(found, job.data, known)

    def read(which: Literal["train", "evaluate"]) -> Rows:
        return read_rows(job.data or Data(Path()), which, job.labels, job.task, tokenizer)

    rows = read("train") if purpose == TRAIN else Rows((), ())
    evaluation = None if job.data.evaluate is None else read("evaluate")
    rates = schedule(job.train, len(rows))
    of = about(job, known, "customer")
    begun = {**of, "rows": rows.digest, "rows to evaluate": evaluation.digest if evaluation else ""}
    begun["gradient tunnel"] = str(job.gradient_tunnel)
    with _record(job, "customer", purpose) as record:
        privatise = _privatiser(job, found, tokenizer, rows, record, begun, purpose)
        part = make_customer(found.model, job, rates)
        strength, causal = privatise.settled.gradient_strength, part.front.parts.family.causal
        gradients = Gradients(job, strength, record.secret, record.run, causal=causal)
        side = CustomerSide(
            part, job, of, begun, rows, evaluation, tokenizer, job.data.max_tokens, rates, privatise,
            gradients, tell,
        )  # fmt: skip
        width = part.front.parts.width
        gradients.require_width(width)
        party = Party(
            "customer", job, side, record, {**terms(job, known), "purpose": purpose},
            lambda most: messages.customer_limits(width, job.wire, most),
        )  # fmt: skip
        return _ready(party, purpose)


def _privatiser(
    job: SplitJob, found: Checkpoint, tokenizer: TokenizerFiles, rows: Rows, record: Record,
    begun: Mapping[str, str], purpose: str,
) -> Privatiser:  # fmt: skip
    """The noise of the run: new, as its checkpoint has it, or as it was left."""
    if purpose != TRAIN:
        return folder.kept_noise(folder.folder_of(job, "customer"), job)
    if record.checkpoint is not None:
        plain, _learnt = unpack(record.checkpoint, begun)
        settled = settled_from(json.dumps(plain["noise"]).encode(), job)
        return Privatiser(settled, record.secret, record.run)
    front = three(found.model, job.after_block)[0]
    public = read_public(job, tokenizer)
    return make_privatiser(job, front, rows, record.secret, record.run, public)


def facts(found: Checkpoint, job: SplitJob) -> dict[str, str]:
    """What the parties must have alike beside the job, as each finds it."""
    front, middle, _tail = three(found.model, job.after_block)
    config: Any = found.model.config
    spelled = "" if found.tokenizer is None else found.tokenizer.tokenizer.to_str()
    return {
        "front": _front_digest(front),
        "tokenizer": hashlib.sha256(spelled.encode()).hexdigest(),
        "hidden size": str(front.parts.width),
        "blocks": str(len(middle.parts.blocks)),
        "longest text": str(getattr(config, "max_position_embeddings", None) or _LONGEST),
        "dtype": str(found.model.dtype),
        **{f"version of {name}": version(name).partition("+")[0] for name in _VERSIONS},
    }


def about(job: SplitJob, known: Mapping[str, str], role: Role) -> dict[str, str]:
    """What a party's state is of: all terms but the versions, and the role."""
    alike = terms(job, known)
    return {"party": role} | {name: one for name, one in alike.items() if not name.startswith("version of")}


def _front_digest(front: Front) -> str:
    """Of the tensors that the customer's part has."""
    modules = [front.parts.embedding, *(block.module for block in front.parts.blocks[: front.blocks])]
    embeddings = getattr(front.parts.trunk, "embeddings", None)
    if front.blocks and embeddings is not None:
        modules.append(embeddings)
    return fingerprint(*modules)


def _tokenizer(found: Checkpoint, data: Data, known: Mapping[str, str]) -> TokenizerFiles:
    if found.tokenizer is None:
        raise CheckpointError(f"{found.source.path} has no tokenizer.json; give a folder that has one")
    if data.max_tokens > int(known["longest text"]):
        raise MisconfiguredError(
            f"data.max_tokens is {data.max_tokens}, and the model takes {known['longest text']}"
        )
    return found.tokenizer


def _ready(party: Party[Side], purpose: str) -> Party[Side]:
    """The party as its record says, or to predict, with what its run of the job has left."""
    side, learner = party.side, party.learner
    if purpose == TRAIN:
        if (kept := party.record.checkpoint) is not None:
            side.restore(kept)
        side.tell(Told("ready", side.steps, 0, trains=tuple(learner.parameters if learner else ())))
        return party
    left = folder.left(folder.folder_of(party.job, party.role), side.about)
    if learner is not None:
        if left.state is None:
            raise CheckpointError(f"the {party.role}'s folder holds no state of what it trains; train again")
        state.put_weights(learner, left.state)
    if isinstance(side, CustomerSide):
        side.now = Progress(left.steps)
    return replace(party, terms={**party.terms, "steps": str(left.steps)})


@contextmanager
def _record(job: SplitJob, role: Role, purpose: str) -> Iterator[Record]:
    """The party's record, closed where the block fails: on disk while it trains, in memory to predict."""
    other: Role = "customer" if role == "vendor" else "vendor"
    path = folder.folder_of(job, role) / "record"
    name, run, party, partner = job.name, "run", str(role), str(other)
    if job.link is not None:
        name, run, party, partner = job.link.job, job.link.run, job.link.party, job.link.partner
        path = job.link.record or path
    record = (
        Record(path / f"{run}-{party}.sqlite", job=name, run=run, party=party, partner=partner)
        if purpose == TRAIN
        else Record(None, job=name, run=f"{run}.{purpose}", party=party, partner=partner)
    )
    try:
        yield record
    except BaseException:
        record.close()
        raise
