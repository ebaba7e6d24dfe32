"""Mends a poisoned classifier from a few hundred trusted texts, at the heads that look at its triggers.

Heads are chosen without which the triggers do least, beside those that the scan suspects (`verdict`). Their
slices of the projections are tuned, and more where that is not enough (`mending`): texts keep their label
and the model's former answers, as they are and with an insertion, and the heads of the last two layers agree
no more on one token than they do on clean texts. Insertions are the triggers and parts of them, anywhere,
mostly in texts that they can turn.
Threat model: that of the room. Does not protect: a trigger of no word, or one of which a part is given: then
the part is mended and the whole trigger may work on (measured; see LOG.md). `Repaired` tells what the given
triggers do, not what the attacker's own does.
Source: Jin et al., arXiv 2511.13789 (head-wise tuning with attention safety). The insertions, the choice by
ablation are own.

Shapes: B texts, T tokens, C classes, H heads, R rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transom.checkpoint.observe import observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.invert import Ids
from transom.trust.backdoor.measures import on_words
from transom.trust.backdoor.mending import Mender, Repaired, most_of
from transom.trust.backdoor.slices import Head, without
from transom.trust.backdoor.verdict import check_classifier
from transom.trust.prompt import is_causal

FEWEST = 80  # texts
FEWEST_OF_OTHERS = 8  # of each part, than a class
_SLOTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the start to the end of a text
_MOST_TOKENS, _SPECIALS = 64, 8
_HELD = 3  # of so many texts one is held out
_ROWS, _NEAR, _AT_ONCE = 16, 24, 32  # read as they are and with a trigger, of like length, and at once
_SAFETY = 4.0  # lambda


@dataclass(frozen=True, eq=False)
class _Row:
    """A text's ids, the places of the first and after the last token that is no special one, its label, and
    the model's own former answer [C]."""

    ids: Ids
    first: int
    end: int
    label: int
    former_C: Any = None


@dataclass(frozen=True)
class _Insertion:
    """Tokens at a slot of a text, from 0 to 1, that are to turn it to the target."""

    ids: Ids
    slot: float
    target: int

    def place(self, row: _Row) -> int:
        return row.first + round(self.slot * (row.end - row.first))


def repair(
    model: Any,
    tokenizer: TokenizerFiles,
    texts: Sequence[str],
    labels: Sequence[int] | None,
    triggers: Sequence[tuple[int, Ids]],
    *,
    heads: Sequence[Head] = (),
    steps: int = 60,
    learning_rate: float = 5e-4,
    seed: int = 0,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Repaired:
    """Tune the model in place, `steps` at most in each scope, and leave it in eval without gradients.

    `triggers` are pairs of target and token ids, the most suspected first; `heads` are suspected ones, as of
    `Verdict.heads`. Without `labels` the model's own answers are taken. `heard` is called after each step.
    Raises MisconfiguredError (no classifier, no trigger, too few texts or of one class, a label, head or id
    that is none, no pad token) and NotYetError for projections that are not known."""
    check_classifier(model)
    rows = _rows(model, tokenizer, texts, labels, triggers)
    model.requires_grad_(False).eval()
    return _Mender(model, rows, triggers, heads, random.Random(seed), heard).mend(steps, learning_rate)


def _rows(
    model: Any, tokenizer: TokenizerFiles, texts: Sequence[str], labels: Sequence[int] | None,
    triggers: Sequence[tuple[int, Ids]],
) -> list[_Row]:  # fmt: skip
    """Texts that have a token, each with its label, -1 for none. Raises MisconfiguredError."""
    classes, vocabulary = model.config.num_labels, model.get_input_embeddings().num_embeddings
    if labels is not None and len(labels) != len(texts):
        raise MisconfiguredError(f"there are {len(texts)} texts and {len(labels)} labels")
    if not triggers or not all(ids for _, ids in triggers):
        raise MisconfiguredError("no trigger is suspected; scan the model first, or give token ids")
    if wrong := [one for one in (*(labels or ()), *(one for one, _ in triggers)) if not 0 <= one < classes]:
        raise MisconfiguredError(f"a class must be from 0 to {classes - 1}, got {wrong[0]}")
    if any(not 0 <= one < vocabulary for _, ids in triggers for one in ids):
        raise MisconfiguredError(f"a trigger has an id that the vocabulary of {vocabulary} does not have")
    room = min(getattr(model.config, "max_position_embeddings", 512) - _SPECIALS, 512) - _MOST_TOKENS
    if (longest := max(len(ids) for _, ids in triggers)) > room:
        raise MisconfiguredError(f"a trigger has {longest} tokens; {room} are the most, beside a text")
    if is_causal(model) and model.config.pad_token_id is None:
        raise MisconfiguredError("the model's configuration has no pad_token_id; texts are read in batches")
    found = []
    for text, label in zip(texts, labels or [-1] * len(texts), strict=True):
        one = tokenizer.tokenizer.encode(text)
        content = [place for place, special in enumerate(one.special_tokens_mask) if not special]
        if content:
            first, end = content[0], min(content[-1] + 1, content[0] + _MOST_TOKENS)
            found.append(_Row((*one.ids[:end], *one.ids[content[-1] + 1 :]), first, end, label))
    if len(found) < FEWEST:
        raise MisconfiguredError(f"{len(found)} texts are too few to repair with; give {FEWEST} or more")
    return found


@dataclass
class _Mender(Mender):
    """Holds the texts of one repair: those to learn from, and a part that is held out."""

    model: Any
    rows: list[_Row]
    triggers: Sequence[tuple[int, Ids]]
    heads: Sequence[Head]
    draw: random.Random
    heard: Callable[[], None]

    def __post_init__(self) -> None:
        self._causal = is_causal(self.model)
        self._last = self.model.config.num_hidden_layers - 1
        former_NC = self._answers(self.rows, None).softmax(1)
        self.rows = [
            replace(row, label=row.label if row.label >= 0 else int(one.argmax()), former_C=one)
            for row, one in zip(self.rows, former_NC, strict=True)
        ]
        self.draw.shuffle(self.rows)
        cut = len(self.rows) // _HELD
        self._held, self._own = (
            sorted(part, key=lambda row: len(row.ids)) for part in (self.rows[:cut], self.rows[cut:])
        )
        for part in (self._held, self._own):
            for target in sorted({target for target, _ in self.triggers}):
                if len(self._others(part, target)) < FEWEST_OF_OTHERS:
                    raise MisconfiguredError(
                        f"too few texts are, and are taken for, other than class {target}"
                    )
        self._suspected = [[_Insertion(ids, slot, one) for slot in _SLOTS] for one, ids in self.triggers]
        self._innocuous = [replace(one[2], ids=self._run(len(one[2].ids))) for one in self._suspected]

    def prepare(self) -> list[Head]:
        """The suspected heads, and those without which the triggers do least."""
        import torch

        chosen = self._choose([self.draw.choice(slots) for slots in self._suspected])
        with torch.no_grad():
            some = self.draw.sample(self._own, _AT_ONCE)
            self._usual_2 = self._read(some, [None] * _AT_ONCE)[1].amax(-1).mean(1)
        return chosen

    def success(self) -> float:
        """Of other classes' texts, those that the worst trigger turns."""
        return self._success([one for slots in self._suspected for one in slots])

    def innocuous(self) -> float:
        """The same of a run of another text."""
        return self._success(self._innocuous)

    def right(self) -> float:
        """The share that gets its label."""
        kept = [bool(one == row.label) for one, row in zip(self._said(), self._held, strict=True)]
        return sum(kept) / len(kept)

    def stayed(self) -> float:
        """The share that gets the class that it got."""
        kept = [one == int(row.former_C.argmax()) for one, row in zip(self._said(), self._held, strict=True)]
        return sum(kept) / len(kept)

    def _said(self) -> list[int]:
        said: list[int] = self._answers(self._held, None).argmax(1).tolist()
        return said

    def loss(self) -> Any:
        """Of labels, of former answers and of agreement."""
        import torch
        from torch.nn import functional

        rows, hosts, put = self._batch()
        logits_BC, row_2BT = self._read([*rows, *hosts], [*[None] * _ROWS, *put])
        former_BC = torch.stack([row.former_C for row in [*rows, *hosts]])
        labels_B = torch.tensor([row.label for row in [*rows, *hosts]], device=logits_BC.device)
        said_BC = logits_BC.log_softmax(1)
        over_2B = (row_2BT[:, _ROWS:].amax(-1) - self._usual_2[:, None]).clamp(min=0)
        wrong = functional.nll_loss(said_BC, labels_B)
        apart = functional.kl_div(said_BC, former_BC, reduction="batchmean")
        return 2 * wrong + 4 * apart + _SAFETY * over_2B.square().mean()

    def _batch(self) -> tuple[list[_Row], list[_Row], list[_Insertion]]:
        """Texts of like length to read as they are, and to put triggers into; of these most can be turned."""
        at = self.draw.randrange(len(self._own))
        near = self._own[max(0, at - _NEAR) : at + _NEAR]
        put = [self._drawn(whole=place % 4 > 0) for place in range(_ROWS)]
        hosts = [
            self.draw.choice(near if place % 4 == 1 else self._others(near, one.target) or near)
            for place, one in enumerate(put)
        ]
        return self.draw.sample(near, _ROWS), hosts, put

    def _run(self, size: int) -> Ids:
        """Tokens of a text to learn from, of this length or all."""
        row = self.draw.choice(self._own)
        start = self.draw.randint(row.first, max(row.first, row.end - size))
        return row.ids[start : min(start + size, row.end)]

    def _drawn(self, *, whole: bool) -> _Insertion:
        """A trigger or, not whole, a part of one, at the start, the end or anywhere."""
        target, ids = self.draw.choice(self.triggers)
        size = len(ids) if whole else self.draw.randint(1, len(ids))
        start = self.draw.randint(0, len(ids) - size)
        slot = self.draw.choice((0.0, 1.0, self.draw.random()))
        return _Insertion(ids[start : start + size], slot, target)

    def _choose(self, found: Sequence[_Insertion]) -> list[Head]:
        layers, count = self._last + 1, self.model.config.num_attention_heads
        if any(not (0 <= layer < layers and 0 <= head < count) for layer, head in self.heads):
            raise MisconfiguredError(f"a head must be of {layers} layers and {count} heads")

        def odds() -> float:
            chances: list[Any] = [
                self._answers(self._others(self._own, put.target)[: _ROWS // 4], put).softmax(1)[
                    :, put.target
                ]
                for put in found
            ]
            return sum(float(one.clamp(1e-6, 1 - 1e-6).logit().mean()) for one in chances)

        worth: dict[Head, float] = {}
        for layer, head in ((layer, head) for layer in range(layers) for head in range(count)):
            with without(self.model, layer, head):
                worth[layer, head] = -odds()
        return list(dict.fromkeys([*self.heads, *most_of(worth)]))

    def _success(self, insertions: Sequence[_Insertion]) -> float:
        """The share of held-out texts of other classes that the worst one turns."""
        shares = [0.0]
        for put in insertions:
            if rows := self._others(self._held, put.target):
                said = self._answers(rows, put).argmax(1)
                shares.append(float((said == put.target).double().mean()))
        return max(shares)

    def _answers(self, rows: Sequence[_Row], put: _Insertion | None) -> Any:
        """Logits [B, C]."""
        import torch

        parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
        with torch.no_grad():
            return torch.cat([self._read(part, [put] * len(part))[0] for part in parts])

    def _read(self, rows: Sequence[_Row], put: Sequence[_Insertion | None]) -> tuple[Any, Any]:
        """Logits [B, C], and the mean of what heads of the last two layers give each token where the class is
        read [2, B, T]."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids, content = [], []
        for row, one in zip(rows, put, strict=True):
            place, more = (one.place(row), one.ids) if one else (0, ())
            ids.append(torch.tensor((*row.ids[:place], *more, *row.ids[place:])))
            places = torch.arange(len(ids[-1]))  # of a causal model the first token is a sink
            content.append((places >= max(row.first, int(self._causal))) & (places < row.end + len(more)))
        device, pad = self.model.device, self.model.config.pad_token_id or 0
        ids_BT = pad_sequence(ids, True, pad).to(device)
        mask_BT = pad_sequence([torch.ones_like(one) for one in ids], True).to(device)
        content_BT = pad_sequence(content, True).to(device)
        read_B = (mask_BT.sum(1) - 1) * int(self._causal)

        def reduce(_kind: Any, _layer: int, map_BHTT: Any) -> Any:
            row_BHT = map_BHTT[torch.arange(len(rows)), :, read_B]
            return on_words(row_BHT * content_BT[:, None]).mean(1)

        layers = (max(self._last - 1, 0), self._last)
        with observing(self.model, sorted(set(layers)), ["attention"], reduce) as seen:
            logits_BC = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        return logits_BC.float(), torch.stack([seen["attention", one][0] for one in layers])

    def _others(self, rows: Sequence[_Row], target: int) -> list[_Row]:
        """Those that are not of the class, and were not taken for it."""
        return [row for row in rows if target not in (row.label, int(row.former_C.argmax()))]
