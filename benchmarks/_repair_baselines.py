"""Other ways to repair a classifier from trusted labelled texts, in own code, for `backdoor_repair.py`.

All tune all weights of a BERT with AdamW, in batches of texts of like length. `fine_tuning` does nothing
else. `fine_pruning` first takes away the neurons between a layer's two dense parts that are least active on
the texts, as many as cost at most `_LOST` of the accuracy on them (Liu et al. 2018, arXiv 1805.12185, there
of a convolution). `crow` adds `_ALPHA` times how much hidden states turn from layer to layer where the
embeddings were moved by `_EPSILON` times the sign of that measure's gradient (Min et al. 2024, arXiv
2411.12768, whose values they are). `pure` takes away the heads whose attention varies least over the texts,
by the same rule, and is punished for how concentrated the rows are at which the class is read (Zhao et al.
2024, PURE: head pruning and attention normalisation; its measures are not copied to the letter).

Shapes: B texts, T tokens, D model, H heads, F neurons.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.seeded import seeded
from transom.trust.backdoor.poison import Rows
from transom.trust.backdoor.slices import projections
from transom.trust.backdoor.words import encoded

BATCH, MOST_TOKENS = 8, 64
_LOST, _GRID = 0.02, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_READ = 96  # texts by which neurons and heads are chosen
_EPSILON, _ALPHA = 0.1, 5.5
_NORM = 1.0  # weight of attention's concentration

Loss = Callable[[Any, Any, Any, Any], Any]  # of model, ids, mask and labels
Weights = list[tuple[Any, Any]]  # each with what is kept of it


def task_loss(model: Any, ids_BT: Any, mask_BT: Any, labels_B: Any) -> Any:
    return functional.cross_entropy(model(input_ids=ids_BT, attention_mask=mask_BT).logits, labels_B)


def batches(rows: Rows, steps: int, draw: random.Random) -> list[list[int]]:
    """Places of rows, epoch by epoch, of like length within a batch."""
    found: list[list[int]] = []
    while len(found) < steps:
        order = sorted(range(len(rows.texts)), key=lambda one: len(rows.texts[one]) + 20 * draw.random())
        parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        found += draw.sample(parts, len(parts))
    return found[:steps]


def tune(
    found: Checkpoint,
    rows: Rows,
    steps: int,
    rate: float,
    loss: Loss = task_loss,
    kept: Weights | None = None,
) -> None:
    """Tune all weights in place; those in `kept` stay zero where it says so."""
    model: Any = found.model
    with seeded(0):
        model.requires_grad_(True).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for places in batches(rows, steps, random.Random(0)):
            ids_BT, mask_BT = encoded(found, [rows.texts[one] for one in places], MOST_TOKENS)
            labels_B = torch.tensor([rows.labels[one] for one in places])
            loss(model, ids_BT, mask_BT, labels_B).backward()
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            _leave_out(kept or [])
        model.requires_grad_(False).eval()


def fine_tuning(found: Checkpoint, rows: Rows, steps: int, rate: float) -> None:
    tune(found, rows, steps, rate)


def fine_pruning(found: Checkpoint, rows: Rows, steps: int, rate: float) -> None:
    model: Any = found.model
    layers = list(model.bert.encoder.layer)
    sums_F: list[Any] = [0.0] * len(layers)
    hooks = [
        layer.intermediate.register_forward_hook(
            lambda _module, _inputs, out_BTF, place=place: sums_F.__setitem__(
                place, sums_F[place] + out_BTF.abs().sum((0, 1))
            )
        )
        for place, layer in enumerate(layers)
    ]
    _right(found, rows)
    for hook in hooks:
        hook.remove()
    parts = [
        (
            (layer.output.dense.weight, 1),
            (layer.intermediate.dense.weight, 0),
            (layer.intermediate.dense.bias, 0),
        )
        for layer in layers
    ]

    def pruned(share: float) -> Weights:
        found_: Weights = []
        for active_F, weights in zip(sums_F, parts, strict=True):
            keep_F = active_F > active_F.quantile(share)
            found_ += [
                (weight, keep_F if weight.dim() == 1 or axis else keep_F[:, None]) for weight, axis in weights
            ]
        return found_

    tune(found, rows, steps, rate, kept=_most(found, rows, pruned))


def crow(found: Checkpoint, rows: Rows, steps: int, rate: float) -> None:
    embedding: Any = found.model.get_input_embeddings()

    def turned(model: Any, states_BTD: Any, mask_BT: Any) -> Any:
        layers = model(
            inputs_embeds=states_BTD, attention_mask=mask_BT, output_hidden_states=True
        ).hidden_states
        apart = [1 - functional.cosine_similarity(a, b, dim=-1) for a, b in pairwise(layers)]
        return sum((one * mask_BT).sum() / mask_BT.sum() for one in apart) / len(apart)

    def loss(model: Any, ids_BT: Any, mask_BT: Any, labels_B: Any) -> Any:
        states_BTD = embedding(ids_BT)
        start_BTD = states_BTD.detach().requires_grad_(True)
        (slope_BTD,) = torch.autograd.grad(turned(model, start_BTD, mask_BT), start_BTD)
        moved = turned(model, states_BTD + _EPSILON * slope_BTD.sign(), mask_BT)
        return task_loss(model, ids_BT, mask_BT, labels_B) + _ALPHA * moved

    tune(found, rows, steps, rate, loss)


def pure(found: Checkpoint, rows: Rows, steps: int, rate: float) -> None:
    model: Any = found.model
    model.set_attn_implementation("eager")
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    varied: dict[tuple[int, int], float] = {}
    ids_BT, mask_BT = encoded(found, rows.texts[:_READ], MOST_TOKENS)
    with torch.no_grad():
        maps = model(input_ids=ids_BT, attention_mask=mask_BT, output_attentions=True).attentions
    for layer, map_BHTT in enumerate(maps):
        variance_H = map_BHTT[:, :, 0].var(0).mean(-1)
        varied |= {(layer, head): float(one) for head, one in enumerate(variance_H)}
    order = sorted(varied, key=lambda one: varied[one])

    def pruned(share: float) -> Weights:
        kept: Weights = []
        for layer in range(layers):
            keep_D = torch.ones(model.config.hidden_size, dtype=torch.bool)
            for at, head in order[: round(share * len(order))]:
                if at == layer:
                    keep_D.view(heads, -1)[head] = False
            kept.append((projections(model, layer)[3][0].weight, keep_D))
        return kept

    def loss(model: Any, ids_BT: Any, mask_BT: Any, labels_B: Any) -> Any:
        out = model(input_ids=ids_BT, attention_mask=mask_BT, output_attentions=True)
        sharp = torch.stack([one[:, :, 0].square().sum(-1).mean() for one in out.attentions]).mean()
        return functional.cross_entropy(out.logits, labels_B) + _NORM * sharp

    tune(found, rows, steps, rate, loss, _most(found, rows, pruned))


def _most(found: Checkpoint, rows: Rows, pruned: Callable[[float], Weights]) -> Weights:
    """The largest share of the grid that costs at most `_LOST` of the accuracy is taken away."""
    before = _right(found, rows)
    for share in _GRID:
        kept = pruned(share)
        own = [weight.detach().clone() for weight, _ in kept]
        _leave_out(kept)
        if _right(found, rows) >= before - _LOST:
            return kept
        with torch.no_grad():
            for (weight, _), was in zip(kept, own, strict=True):
                weight.copy_(was)
    return []


def _leave_out(kept: Weights) -> None:
    with torch.no_grad():
        for weight, mask in kept:
            weight.mul_(mask)


def _right(found: Checkpoint, rows: Rows) -> float:
    """Accuracy on some of the rows."""
    texts: Sequence[str] = rows.texts[:_READ]
    ids_BT, mask_BT = encoded(found, texts, MOST_TOKENS)
    model: Any = found.model
    with torch.no_grad():
        said = model(input_ids=ids_BT, attention_mask=mask_BT).logits.argmax(1).tolist()
    return sum(a == b for a, b in zip(said, rows.labels, strict=False)) / len(texts)


BASELINES = {"fine-tuning": fine_tuning, "fine-pruning": fine_pruning, "crow": crow, "pure": pure}
