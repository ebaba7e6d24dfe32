"""A customer's split tuning as an audit's target: what the vendor saw of its rows, what it knows, the truth.

Rows leave as they really did, with the noise of the run where its folder holds it; else noise is settled and
drawn here, as a new run would. Under the layout `customer` gradients at the top are those of a first step, by
a head that has learnt nothing yet; later ones, of rows that the model has learnt, tell less. Through a tunnel
they are the mean of as many releases as there are epochs, as if they were alike in all. A customer's
front that is trained is taken as it began, which is what the attacker knows, with one view an epoch.
Threat model: run by the customer, who alone has rows and secret; the law of the noise, which tokens were
spared, and which public text the job names are the attacker's too. Audited texts are taken out of that.
Does not protect anything. What a lossy wire rounds afterwards is left out, which helps the attacker.
Source: own; the attacks are `attacks.split_*`.

Shapes: B texts, T tokens of a text, D width, V vocabulary.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.rows import NO_NOISE, Noise
from transom.audit.attacks.split_view import Law, Private, Public, Seen, but
from transom.checkpoint.cut import Front, three
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.data import rows as files
from transom.errors import CheckpointError, MisconfiguredError
from transom.link.mechanisms import Clipping, DChi, Gaussian, Laplace, Mechanism
from transom.link.message import Step
from transom.privacy.stream import SECRET_BYTES, Stream
from transom.split import folder
from transom.split.denoised import Denoiser
from transom.split.gradients import Gradients
from transom.split.job import SplitJob
from transom.split.metrics import count_targets
from transom.split.parts import Head, load_model
from transom.split.privatise import Privatiser, make_privatiser
from transom.split.rows import Rows, encode, pad_id_of, padded, read_public, read_rows
from transom.split.settled import Settled

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 16  # that pass through the model side by side


@dataclass(frozen=True, eq=False)
class Case:
    """For the attacks. `contributing` is the truth of the tokens that are spared alone, None without any;
    `told` says for the reader how it was made."""

    target: Seen
    knowledge: Public
    data: Private
    contributing: Private | None
    told: dict[str, Any] = field(default_factory=dict)


def case(job: SplitJob, public: Path, limit: int = 100, known: int = 2) -> Case:
    """The job's first `limit` rows to train on, as the vendor saw them. `public` holds the attacker's texts,
    with labels where it has the job's columns; `known` labels of each class are the attacker's.

    Raises as `read_rows`, `load_model` and `settle`, and CheckpointError for another job's noise.
    """
    if job.data is None:
        raise MisconfiguredError("the job names no rows; set data.train")
    found = load_model(job)
    if found.tokenizer is None:
        raise CheckpointError(f"{found.source.path} has no tokenizer.json; give a folder that has one")
    found.model.requires_grad_(False)
    rows = read_rows(job.data, "train", job.labels, job.task, found.tokenizer)
    audited = replace(rows, ids=rows.ids[:limit], labels=rows.labels[:limit])
    privatise, made_here = _privatiser(job, three(found.model, job.after_block)[0], rows, found.tokenizer)
    target = seen(job, found.model, audited, privatise, pad_id_of(found.tokenizer))
    own = _without(_public(job, public, found.tokenizer), audited)
    frame = audited.frame if job.noise.pool else None
    knowledge = Public(found.model, job.after_block, own.ids, own.labels, _known(audited, known), frame)
    counted = but(audited.ids, rows.specials)
    data = Private(audited.ids, audited.labels, counted, found.tokenizer.tokenizer.decode)
    told = {
        "texts": len(audited),
        "attacker's texts": len(own),
        "noise": "drawn here" if made_here else "of the run",
        "eta": privatise.settled.eta,
    }
    return Case(target, knowledge, data, _contributing(data, privatise.settled), told)


def seen(job: SplitJob, model: Any, rows: Rows, privatise: Privatiser, pad_id: int) -> Seen:
    """What the vendor sees of rows that stand first in their file; the states before they are denoised, which
    tells what is sent and no less."""
    import torch

    front, middle, tail = three(model, job.after_block)
    head = Head(tail, job.task) if job.layout == "customer" else None
    denoise = Denoiser.of(privatise.settled, front) if privatise.settled.noise.denoise else None
    law = law_of(privatise.settled, front)
    causal, strength = front.parts.family.causal, privatise.settled.gradient_strength
    pass_on = Gradients(job, strength, secrets.token_bytes(SECRET_BYTES), "audit", causal=causal)
    epochs, targets = job.train.epochs if job.gradient_tunnel.kind != "none" else 1, 0
    views = job.train.epochs if job.return_gradient else 1
    states: list[Tensor] = []
    tops: list[Tensor] = []
    gradients: list[Tensor] = []
    for numbers, ids_BT, mask_BT, labels in _batches(rows, pad_id):
        with torch.no_grad():
            hidden_BTD = front(ids_BT, mask_BT)
            noisy_RBTD = torch.stack(
                [privatise(hidden_BTD, ids_BT, mask_BT, numbers, view) for view in range(views)]
            )
            sent_BTD = noisy_RBTD[0] if denoise is None else denoise(noisy_RBTD[0], ids_BT, mask_BT)
            sent_BT = privatise.leaving(mask_BT)
            top_BTD = middle(sent_BTD, sent_BT) if head else None
        lengths = sent_BT.sum(1).tolist()
        states += [law.told(noisy_RBTD[:, row, :length]) for row, length in enumerate(lengths)]
        if head is not None and top_BTD is not None:
            targets = targets or count_targets(job.task, labels)  # of all batches, so of one scale
            graded = head.grade(top_BTD, sent_BT, labels, targets)
            steps = [Step(epoch, numbers[0], "backward", topic="audit") for epoch in range(epochs)]
            passed = [pass_on(graded.gradient_BTD, sent_BT, targets, step).detach() for step in steps]
            tops += _cut(top_BTD, lengths)
            gradients += torch.split(torch.stack(passed).mean(0), lengths)
    spread = _deviation(pass_on.mechanism, front.parts.width) / max(targets, 1) / math.sqrt(epochs)
    return Seen(tuple(states), law, tuple(tops), tuple(gradients), spread)


def law_of(settled: Settled, front: Front) -> Law:
    """The noise of a run as its attacker knows it."""
    import torch

    vocabulary, width = front.parts.embedding.weight.shape[0], front.parts.width
    noise, shape = settled.noise, settled.shape
    passing = None
    if settled.narrow is not None:
        center_D, basis_DR = settled.narrow.center_D, settled.narrow.basis_DR
        passing = torch.from_numpy(center_D).float(), torch.from_numpy(basis_DR).float()
    if settled.tunnel.kind != "none":
        return _law_through(settled.mechanism, passing)
    if noise.kind == "none":
        return Law(NO_NOISE, narrow=passing)
    if noise.kind == "gaussian":
        return Law(Noise("gaussian", noise.sigma, noise.clip), narrow=passing)
    if settled.eta is None:
        raise CheckpointError("the noise kept of the run has no eta; restore the folder of the run")
    bent = None if shape is None else torch.from_numpy(shape.bend(np.eye(width))).float()
    spare_V = torch.from_numpy(settled.etas(np.arange(vocabulary)) / settled.eta).float()
    return Law(Noise("norm", 1 / settled.eta), bent, spare_V if settled.spared else None, passing)


def _law_through(mechanism: Mechanism, passing: tuple[Tensor, Tensor] | None) -> Law:
    """That of a tunnel."""
    if isinstance(mechanism, Gaussian):
        return Law(Noise("gaussian", mechanism.sigma, mechanism.clip), narrow=passing)
    if isinstance(mechanism, DChi):
        return Law(Noise("norm", 1 / mechanism.eta, mechanism.clip), narrow=passing)
    if isinstance(mechanism, Clipping):
        return Law(Noise(clip=mechanism.clip), narrow=passing)
    if isinstance(mechanism, Laplace):
        return Law(Noise("laplace", mechanism.scale), narrow=passing, mechanism=mechanism)
    return Law(narrow=passing, mechanism=mechanism)


def _deviation(mechanism: Mechanism, width: int) -> float:
    """Of a coordinate of rows of zeros that pass it."""
    import torch

    stream = Stream(secrets.token_bytes(SECRET_BYTES), "measured")
    return float(mechanism.privatise(torch.zeros(256, width, dtype=torch.float64), stream).std())


def _privatiser(
    job: SplitJob, front: Front, rows: Rows, tokenizer: TokenizerFiles
) -> tuple[Privatiser, bool]:
    """The run's own, or one that is made here, and whether it is."""
    left = folder.folder_of(job, "customer")
    if (left / "noise.json").exists():
        return folder.kept_noise(left, job), False
    public = read_public(job, tokenizer)
    return make_privatiser(job, front, rows, secrets.token_bytes(SECRET_BYTES), "audit", public), True


def _public(job: SplitJob, source: Path, tokenizer: TokenizerFiles) -> Rows:
    """The attacker's texts, with their labels where a classifier's are there."""
    if job.data is None:
        raise MisconfiguredError("the job names no rows; set data.train")
    data = replace(job.data, train=source)
    if files.form_of(source) is files.Format.text:
        return encode(files.read_texts(source), tokenizer, data.max_tokens)
    return read_rows(data, "train", job.labels, job.task, tokenizer)


def _without(rows: Rows, audited: Rows) -> Rows:
    known = set(audited.ids)
    kept = [number for number, text in enumerate(rows.ids) if text not in known]
    labels = tuple(rows.labels[number] for number in kept) if rows.labels else ()
    return replace(rows, ids=tuple(rows.ids[number] for number in kept), labels=labels)


def _known(rows: Rows, count: int) -> dict[int, int]:
    """The first texts of each class, with their labels."""
    places = (np.flatnonzero(np.array(rows.labels) == label)[:count] for label in sorted(set(rows.labels)))
    return {int(place): rows.labels[place] for some in places for place in some}


def _contributing(data: Private, settled: Settled) -> Private | None:
    if not settled.spared:
        return None
    spared = set(settled.spared)
    return replace(data, counted=tuple(tuple(token in spared for token in text) for text in data.texts))


def _batches(rows: Rows, pad_id: int) -> Iterator[tuple[Sequence[int], Tensor, Tensor, Tensor]]:
    for start in range(0, len(rows), _ROWS):
        numbers = range(start, min(start + _ROWS, len(rows)))
        yield numbers, *padded(rows, numbers, pad_id)


def _cut(rows_BTD: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [rows_TD[:length].detach() for rows_TD, length in zip(rows_BTD, lengths, strict=True)]
