"""What noise a run will have, found by the customer before its first step and kept for its end: eta, the
tokens that are spared, the directions that the public model uses.

Eta is found on public texts where the job names some, else on the customer's own; then it depends on them,
and shows in the noise's length, so the guarantee says so. Directions are found on public texts; those of
narrow rows, which have no noise then, may be found on the customer's, and the guarantee says so. What is
spared is chosen on the customer's texts: by labels for a classifier, by attention for a language model.
Threat model: the vendor knows everything here but the texts; it is told none of it, and can estimate eta and
the spared tokens from what it gets.
Does not protect: the measure is that of the nearest neighbour at the embedding. After a block it measures
nothing (a trained inverter reads states there), and no eta is found for it: it is refused.
Source: Shen et al., arXiv 2312.15603; the shape is Transom's own (`privacy.noise`).

Shapes: B batch, T tokens of a text, N tokens of several, H heads, V vocabulary, D width, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.cut import Front, three
from transom.checkpoint.observe import observing
from transom.errors import MisconfiguredError
from transom.link.tunnels import TunnelSettings
from transom.privacy.contributing import Contributing, by_attention, by_class
from transom.privacy.empirical import calibrate_eta, likeliest, nearest_distance
from transom.privacy.nearest import Ints
from transom.privacy.noise import Floats, task_directions, used_directions
from transom.privacy.stream import Stream
from transom.split.job import SplitJob
from transom.split.learner import schedule
from transom.split.rows import Rows, padded
from transom.split.settled import Settled

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS = 1024  # that privacy is measured on: a standard error of at most 0.016
_TEXTS = 256  # that a model is run on, for attention, directions and distances
_TEXTS_AT_ONCE = 8
_MOST_NUMBERS = 2**17  # of a basis, which is kept as JSON
_ROWS_A_NUMBER = 4  # of a row: with as many rows as numbers a linear fit names random labels
_RANGE = (1e-3, 1e2)  # of eta, in units of sqrt(width) / nearest distance: nothing is seen, and everything


def settle(
    job: SplitJob, front: Front, rows: Rows, secret: bytes, run: str, public: Rows | None = None
) -> Settled:
    """The noise of a run that is trained on these rows: the same for the same arguments.

    `secret` is the run's 32 bytes; noise that is drawn to measure with is never sent. `public` are
    `rows.read_public`'s. Raises MisconfiguredError where eta is to be found after a block or cannot be found,
    and for a shape without public texts.
    """
    table_VD = front.parts.embedding.weight.detach().float().cpu().numpy()
    spared = _contributing(job, front, rows, len(table_VD))
    basis, center = _directions(job, front, rows if job.noise.directions_of == "own" else public)
    settled = Settled(
        noise=job.noise,
        tunnel=job.tunnel,
        after_block=job.after_block,
        changing=job.return_gradient,
        releases=_releases(job, len(rows)),
        longest=job.data.max_tokens if job.data else max(map(len, rows.ids)),
        nearest=0.0,
        eta=job.noise.eta,
        spared=() if spared is None else spared.ids,
        spared_told="" if spared is None else spared.told,
        basis=basis,
        center=center,
        common=_common(public) if public and job.noise.denoise else (),
        before=rows.frame[0],
        after=rows.frame[1],
        last=job.noise.pool and front.parts.family.causal,
        gradient_strength=paid(job.gradient_tunnel).strength(job.train.epochs, signed=True),
    )
    if job.tunnel.kind != "none":
        return _through(settled, front.parts.width, secret)
    if job.noise.pool:
        seen_ND = settled.ready(_means(front, public or rows, _TEXTS))
        if job.noise.narrow:
            from scipy.spatial.distance import pdist

            return replace(settled, nearest=float(np.median(pdist(seen_ND))))
    else:
        seen_ND = settled.ready(_states(front, public or rows) if job.after_block else table_VD)
    settled = replace(settled, nearest=nearest_distance(seen_ND))
    if job.noise.target_privacy is not None:
        eta = _calibrated(settled, job.noise.target_privacy, table_VD, public or rows, secret, run)
        told = "the customer's texts" if public is None else "public texts"
        settled = replace(settled, eta=eta, eta_from=told)
    if job.after_block or job.noise.pool:
        return settled
    return replace(
        settled, measured=_measured(settled, table_VD, rows, Stream(secret, f"split/{run}/measured"))
    )


def _through(settled: Settled, width: int, secret: bytes) -> Settled:
    """With the tunnel's strength, tried on a row: a width that it does not take is refused before a step."""
    found = replace(settled, strength=paid(settled.tunnel).strength(settled.together, signed=True))
    found.noisy(np.zeros((1, width), np.float32), np.zeros(1, np.int64), Stream(secret, "split/tried"))
    return found


def paid(tunnel: TunnelSettings) -> TunnelSettings:
    """Without spare releases: what goes again in split tuning has the noise of the first time."""
    return replace(tunnel, spare=0)


def hidden(settled: Settled, table_VD: Floats, ids_N: Ints, stream: Stream) -> NDArray[np.bool_]:
    """Which tokens [N] the nearest neighbour, who knows all but the noise, does not name at the embedding."""
    table_VD = settled.ready(table_VD)
    noise_ND = settled.draw(stream, ids_N, table_VD.shape[1])
    eta_V = settled.etas(np.arange(len(table_VD))) if settled.spared else None
    named_N = likeliest(table_VD, table_VD[ids_N] + noise_ND, eta_V=eta_V, shape=settled.shape)
    return np.asarray(named_N != ids_N)


def _calibrated(
    settled: Settled, target: float, table_VD: Floats, rows: Rows, secret: bytes, run: str
) -> float:
    if settled.after_block:
        raise MisconfiguredError(
            "target_privacy is the nearest neighbour's at the embedding, and says nothing of states after "
            f"block {settled.after_block}; give eta, and audit it with a trained inverter"
        )
    ids_N, unit = _content(rows), math.sqrt(table_VD.shape[1]) / settled.nearest

    def measure(eta: float) -> float:
        stream = Stream(secret, f"split/{run}/calibrated")  # the same noise for every eta
        return float(hidden(replace(settled, eta=eta), table_VD, ids_N, stream).mean())

    low, high = (edge * unit for edge in _RANGE)
    return calibrate_eta(measure, target, low / settled.noise.spare, high).eta


def _measured(settled: Settled, table_VD: Floats, rows: Rows, stream: Stream) -> dict[str, Any]:
    """Empirical privacy on the customer's own tokens: of all, of those spared, and of the others."""
    ids_N = _content(rows)
    hidden_N, spared_N = hidden(settled, table_VD, ids_N, stream), np.isin(ids_N, settled.spared)
    parts = {"all": ids_N >= 0, "contributing": spared_N, "others": ~spared_N}
    shares = {name: float(hidden_N[part_N].mean()) for name, part_N in parts.items() if part_N.any()}
    return {"tokens": len(ids_N), **shares}


def _content(rows: Rows) -> Ints:
    """Some tokens [N] of the texts, evenly spaced, without the tokenizer's own."""
    ids = np.array([one for text in rows.ids for one in text if one not in rows.specials], np.int64)
    return ids[np.linspace(0, len(ids) - 1, min(_TOKENS, len(ids))).round().astype(np.int64)]


def _common(public: Rows) -> tuple[tuple[int, int], ...]:
    """Tokens of public texts and how often each comes."""
    ids_C, counts_C = np.unique([one for text in public.ids for one in text], return_counts=True)
    return tuple(zip(ids_C.tolist(), counts_C.tolist(), strict=True))


def _releases(job: SplitJob, rows: int) -> int:
    """How often a row goes with new noise: never again while the front stays, else once an epoch, or for a
    row that is evaluated once an evaluation, of which there may be one more at an end."""
    if not job.return_gradient:
        return 1
    every, steps = job.train.evaluate_every_steps, schedule(job.train, rows).total_steps
    return max(job.train.epochs, 1 + (math.ceil(steps / every) if every else job.train.epochs))


def _contributing(job: SplitJob, front: Front, rows: Rows, vocabulary: int) -> Contributing | None:
    share = job.noise.contributing
    if not share:
        return None
    if job.task == "classification":
        return by_class(rows.ids, rows.labels, vocabulary, share, never=rows.specials)
    texts = _some(rows.ids)
    received = [_received(front, text)[1:] for text in texts]  # a first token gets attention for being it
    return by_attention([text[1:] for text in texts], received, vocabulary, share, never=rows.specials)


def _received(front: Front, text: Sequence[int]) -> Floats:
    """The attention [T] that each token of a text gets in a causal model: the mean over blocks, heads and the
    tokens that may see it."""
    import torch

    blocks = len(front.parts.blocks)
    if not blocks:
        raise MisconfiguredError(
            "the customer's model has no blocks whose attention could say which tokens contribute; give it "
            "the public model, or leave `contributing` out"
        )
    ids_1T = torch.tensor([text], device=front.parts.embedding.weight.device)
    seers_T = torch.arange(len(text), 0, -1, device=ids_1T.device)

    def mean(_kind: str, _layer: int, probabilities_BHTT: Tensor) -> Tensor:
        return probabilities_BHTT[0].mean(0).sum(0) / seers_T

    with torch.no_grad(), observing(front.parts.model, range(blocks), ["attention"], mean) as seen:
        front.parts.model(input_ids=ids_1T)
    found_T: Tensor = torch.stack([one for values in seen.values() for one in values]).mean(0)
    return np.asarray(found_T.float().cpu().numpy())


def _directions(
    job: SplitJob, front: Front, found_on: Rows | None
) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """The directions [D][R] that the task's labels tell apart, or that the public model uses: by gradients,
    where the customer has its blocks. And what a narrow row lies around [D]: the mean of those rows."""
    if job.noise.inside == 1 and not job.noise.narrow:
        return (), ()
    if found_on is None:
        raise MisconfiguredError("this noise needs public texts to find its directions on")
    width, count = front.parts.width, job.noise.directions
    if count * width > _MOST_NUMBERS:
        raise MisconfiguredError(
            f"{count} directions of {width} numbers are more than the {_MOST_NUMBERS} that are kept; take "
            f"{_MOST_NUMBERS // width} or fewer"
        )
    if job.noise.directions_of == "own" and len(found_on) < _ROWS_A_NUMBER * width:
        raise MisconfiguredError(
            f"directions of {width} numbers fit the labels of {len(found_on)} rows by heart, and would give "
            f"them away; they want {_ROWS_A_NUMBER * width} rows, or directions_of: task"
        )
    if job.noise.directions_of != "model":
        means_BD, labels_B = _means(front, found_on, len(found_on)), np.array(found_on.labels)
        basis_DR = task_directions(means_BD, labels_B, job.noise.directions)
        return _plain(basis_DR), tuple(means_BD.mean(0).tolist()) if job.noise.narrow else ()
    whole = len(front.parts.blocks) > front.blocks
    gradients_ND = _gradients(job, front, found_on) if whole else None
    basis_DR = used_directions(_states(front, found_on), job.noise.directions, gradients_ND)
    return _plain(basis_DR), ()


def _plain(basis_DR: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, basis_DR.tolist()))


def _means(front: Front, rows: Rows, most: int) -> Floats:
    """The row [B, D] of some texts, as `Settled.pooled`."""
    import torch

    means, (before, after) = [], rows.frame
    with torch.no_grad():
        for ids_BT, mask_BT in _batches(front, rows, most):
            places_BT = mask_BT.cumsum(1) * mask_BT  # from 1; rows are padded on the right
            inner_BT = (places_BT > before) & (places_BT <= mask_BT.sum(1, keepdim=True) - after)
            inner_BT = torch.where(inner_BT.any(1, keepdim=True), inner_BT, mask_BT != 0)
            if front.parts.family.causal:
                inner_BT &= places_BT == (places_BT * inner_BT).max(1, keepdim=True).values
            counts_BT1 = inner_BT[..., None]
            means.append((front(ids_BT, mask_BT) * counts_BT1).sum(1) / counts_BT1.sum(1))
    return np.asarray(torch.cat(means).float().cpu().numpy())


def _states(front: Front, rows: Rows) -> Floats:
    """What crosses the cut of some texts [N, D], padding left out."""
    import torch

    with torch.no_grad():
        parts = [front(ids_BT, mask_BT)[mask_BT != 0] for ids_BT, mask_BT in _batches(front, rows)]
    return np.asarray(torch.cat(parts).float().cpu().numpy())


def _gradients(job: SplitJob, front: Front, rows: Rows) -> Floats:
    """How what the head reads moves with the states [N, D]: gradients of it along random directions."""
    import torch

    middle, parts = three(front.parts.model, front.blocks)[1], []
    drawn = torch.Generator().manual_seed(0)  # public
    for ids_BT, mask_BT in _batches(front, rows):
        hidden_BTD = front(ids_BT, mask_BT).detach().requires_grad_()
        top_BTD = middle(hidden_BTD, mask_BT)
        along_BTD = torch.randn(top_BTD.shape, generator=drawn).to(top_BTD)
        moved = (top_BTD * along_BTD * _read(job, front, mask_BT)[..., None]).sum()
        parts.append(torch.autograd.grad(moved, hidden_BTD)[0][mask_BT != 0])
    return np.asarray(torch.cat(parts).float().cpu().numpy())


def _read(job: SplitJob, front: Front, mask_BT: Tensor) -> Tensor:
    """Where [B, T] the head reads: every token, the last one or the first; rows are padded on the right."""
    if job.task == "causal":
        return mask_BT
    places_BT = mask_BT.cumsum(1)
    return mask_BT * (places_BT == (places_BT[:, -1:] if front.parts.family.causal else 1))


def _batches(front: Front, rows: Rows, most: int = _TEXTS) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and mask [B, T] of some texts, where the front is."""
    texts, device = _some(rows.ids, most), front.parts.embedding.weight.device
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        chosen = Rows(tuple(texts[start : start + _TEXTS_AT_ONCE]), ())
        ids_BT, mask_BT, _labels = padded(chosen, range(len(chosen)), 0)
        yield ids_BT.to(device), mask_BT.to(device)


def _some(texts: Sequence[tuple[int, ...]], most: int = _TEXTS) -> list[tuple[int, ...]]:
    """Texts, evenly spaced, so many as a model is run on."""
    numbers = np.linspace(0, len(texts) - 1, min(most, len(texts))).round().astype(int)
    return [texts[number] for number in numbers]
