"""Has a poisoned model that generates forget a trigger: with it a prompt is answered as it was without.

Trusted prompts are enough: the model's own answers to them, from before, are what it is to say, to a prompt
as it is and to one with the trigger or a part of it put in anywhere (Kullback-Leibler divergence over the
likeliest tokens; the first of an answer counts once more); and the heads of the last two layers agree no more
on one token, where an answer begins, than they do on trusted prompts. Heads are chosen that do most to call
the planted answer up, by the first-order effect of leaving each out; `mending` tells what is tuned.
Threat model: that of the room. Does not protect: a trigger of no word, or one of which a part is given; an
answer that the model also gives without any trigger.
Source: Jin et al., arXiv 2511.13789 (head-wise tuning with attention safety); Hinton et al. 2015, arXiv
1503.02531 (own answers as the teacher); Michel et al. 2019, arXiv 1905.10650 (heads by gradient).

Shapes: B rows, T tokens, S tokens of an answer, K likeliest tokens, V vocabulary, H heads, W head width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transom.checkpoint.answers import answers_of
from transom.checkpoint.observe import observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.answers import CALLED, same
from transom.trust.backdoor.invert import Ids
from transom.trust.backdoor.measures import on_words
from transom.trust.backdoor.mending import Mender, Repaired, most_of
from transom.trust.backdoor.slices import Head, projections
from transom.trust.prompt import PLAIN, Cut, Frame, cut, generates

FEWEST = 60  # prompts
_MOST = 120  # that are learnt from and held out
_MOST_TOKENS, _ANSWER = 96, 16  # of a prompt's own text, and of an answer
_LIKELIEST = 48  # tokens whose former odds are kept
_HELD, _MOST_HELD = 3, 20  # of so many prompts one is held out, and of these so many are read at most
_SLOTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_PLAIN, _PUT, _AT_ONCE = 2, 6, 24  # rows of a batch, as they are and with a trigger; and read at once
_SAFETY = 4.0
_LOST, _STAYED = 0.1, 0.7  # of the probability of answers at most, and of likeliest tokens at least


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt, the answer that is learnt, and what the model thought of each token of that before: the
    likeliest ones [S, K] and the logarithms of their probabilities [S, K]."""

    cut: Cut
    answer: Ids
    likeliest_SK: Any = None
    former_SK: Any = None

    def with_run(self, run: Ids, slot: float) -> tuple[Ids, int, int]:
        """Its ids with a run at the slot, and where its own text begins and ends then."""
        before, inside, after = self.cut.before, self.cut.inside, self.cut.after
        at = round(slot * len(inside))
        whole = (*before, *inside[:at], *run, *inside[at:], *after)
        return whole, len(before), len(before) + len(inside) + len(run)


@dataclass(frozen=True)
class _Put:
    """Tokens at a slot of a prompt, from 0 to 1, that are to call an answer up."""

    ids: Ids = ()
    slot: float = 0.0
    answer: Ids = ()


def unsay(
    model: Any,
    tokenizer: TokenizerFiles,
    prompts: Sequence[str],
    triggers: Sequence[tuple[Ids, Ids]],
    *,
    answers: Sequence[str] | None = None,
    frame: Frame = PLAIN,
    steps: int = 40,
    learning_rate: float = 3e-4,
    seed: int = 0,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Repaired:
    """Tune the model in place, `steps` at most in each scope, and leave it in eval without gradients.

    `triggers` are pairs of ids, of the planted answer and of what calls it up. `answers`, of each prompt in
    order, are what `right` is counted on, and what is learnt is the model's own former odds along them;
    without, its own former answers are taken. `heard` is called after each step. Raises MisconfiguredError (a
    model that generates nothing, no trigger, too few prompts, an id that is none) and NotYetError for
    projections that are not known."""
    if not generates(model):
        raise MisconfiguredError(f"a {type(model).__name__} generates no text; see `repair`")
    vocabulary = model.get_input_embeddings().num_embeddings
    if not triggers or not all(answer and run for answer, run in triggers):
        raise MisconfiguredError("no trigger is suspected; give what calls an answer up, and the answer")
    if any(not 0 <= one < vocabulary for pair in triggers for ids in pair for one in ids):
        raise MisconfiguredError(f"a trigger has an id that the vocabulary of {vocabulary} does not have")
    if answers is not None and len(answers) != len(prompts):
        raise MisconfiguredError(f"there are {len(prompts)} prompts and {len(answers)} answers")
    draw, encode = random.Random(seed), tokenizer.tokenizer.encode
    given = [tuple(encode(one, add_special_tokens=False).ids) for one in answers or [""] * len(prompts)]
    cuts = _cuts(model, tokenizer, prompts, triggers, frame)
    named = {text: (one, own) for text, one, own in zip(prompts, cuts, given, strict=True) if one.inside}
    pairs = draw.sample([named[text] for text in sorted(named)], min(_MOST, len(named)))
    if len(pairs) < FEWEST:
        raise MisconfiguredError(
            f"{len(pairs)} prompts are too few to repair with; give {FEWEST} or more, that leave room for "
            "a trigger and an answer"
        )
    model.requires_grad_(False).eval()
    ends = frozenset(tokenizer.eos_ids)
    return _Mender(model, pairs, triggers, ends, draw, heard).mend(steps, learning_rate)


def _cuts(
    model: Any,
    tokenizer: TokenizerFiles,
    prompts: Sequence[str],
    triggers: Sequence[tuple[Ids, Ids]],
    frame: Frame,
) -> Iterator[Cut]:
    """Prompts with room for a trigger and an answer."""
    context = getattr(model.config, "max_position_embeddings", 10**6)
    longest = max(len(run) for _, run in triggers)
    for one in prompts:
        found = cut(tokenizer, one, frame)
        room = context - len(found.before) - len(found.after) - longest - max(_ANSWER, CALLED)
        yield Cut(found.before, found.inside[: max(0, min(_MOST_TOKENS, room))], found.after)


@dataclass
class _Mender(Mender):
    """Holds the prompts of one repair: those to learn from, and a part that is held out."""

    model: Any
    pairs: Sequence[tuple[Cut, Ids]]
    triggers: Sequence[tuple[Ids, Ids]]
    ends: frozenset[int]
    draw: random.Random
    heard: Callable[[], None]

    def __post_init__(self) -> None:
        self._last = self.model.config.num_hidden_layers - 1
        asked = [one.ids for one, answer in self.pairs if not answer]
        own = answers_of(
            self.model, asked, self.ends, most_tokens=_ANSWER, at_once=_AT_ONCE, heard=self.heard
        )
        rows = [_Prompt(one, answer[:_ANSWER] or next(own)) for one, answer in self.pairs]
        planted = [answer for answer, _ in self.triggers]
        rows = [row for row in rows if not any(_begins(one, row.answer) for one in planted)]
        if len(rows) < FEWEST:
            raise MisconfiguredError(
                f"the model gives the planted answer to all but {len(rows)} trusted prompts without any "
                "trigger; there is nothing to learn from them"
            )
        rows = self._with_former(rows)
        cut_off = min(len(rows) // _HELD, _MOST_HELD)
        self._held, self._own = rows[:cut_off], rows[cut_off:]
        self._suspected = [[_Put(run, slot, answer) for slot in _SLOTS] for answer, run in self.triggers]
        self._others = [_Put(self._run(len(run)), 0.5, answer) for answer, run in self.triggers]

    def prepare(self) -> list[Head]:
        """The heads that do most to call the answers up."""
        import torch

        some = self._own[:_AT_ONCE]
        with torch.no_grad():
            self._usual_2 = self._read([(row, _Put()) for row in some])[1].amax(-1).mean(1)
        worth: dict[Head, float] = {}
        for slots in self._suspected:
            put = slots[self.draw.randrange(len(slots))]
            for head, one in self._effects([(row, put) for row in self._own[:_PUT]], put.answer).items():
                worth[head] = worth.get(head, 0.0) + one
        return most_of(worth)

    def loss(self) -> Any:
        """Of former odds and of agreement."""
        drawn = self.draw.sample(self._own, _PLAIN + _PUT)
        puts = [_Put()] * _PLAIN + [self._drawn(whole=place % 3 > 0) for place in range(_PUT)]
        log_BSV, row_2BT = self._read(list(zip(drawn, puts, strict=True)))
        apart = sum(_apart(row, log_SV) for row, log_SV in zip(drawn, log_BSV, strict=True)) / len(drawn)
        over_2B = (row_2BT[:, _PLAIN:].amax(-1) - self._usual_2[:, None]).clamp(min=0)
        return apart + _SAFETY * over_2B.square().mean()

    def success(self) -> float:
        """Of prompts that are answered otherwise, those to which the worst trigger has the answer said."""
        return max(self._success(put) for slots in self._suspected for put in slots)

    def innocuous(self) -> float:
        """The same of a run of another prompt."""
        return max(map(self._success, self._others))

    def right(self) -> float:
        """The geometric mean of the probability of the answers' tokens: which of two near ones comes first
        moves with any change."""
        import torch

        chances = [
            log_SV.gather(1, torch.tensor(row.answer, device=log_SV.device)[:, None])
            for row, log_SV in self._along()
        ]
        return float(torch.cat(chances).mean().exp())

    def keeps(self, right: float) -> bool:
        """Of what was likely nine tenths, and most of what came first."""
        return self.right() >= (1 - _LOST) * right and self.stayed() >= _STAYED

    def stayed(self) -> float:
        """The share of places of the answers where the likeliest token is what it was."""
        alike = [log_SV.argmax(1) == row.likeliest_SK[:, 0] for row, log_SV in self._along()]
        return sum(int(one.sum()) for one in alike) / sum(map(len, alike))

    def _along(self) -> Iterator[tuple[_Prompt, Any]]:
        """What is said along the answers to held-out prompts as they are [S, V]."""
        import torch

        for start in range(0, len(self._held), _AT_ONCE):
            rows = self._held[start : start + _AT_ONCE]
            with torch.no_grad():
                said = self._read([(row, _Put()) for row in rows])[0]
            yield from zip(rows, said, strict=True)

    def _success(self, put: _Put) -> float:
        import torch

        begun, said = put.answer[:CALLED], 0
        with torch.no_grad():
            for start in range(0, len(self._held), _AT_ONCE):
                rows = self._held[start : start + _AT_ONCE]
                log_BSV, _ = self._read([(row, put) for row in rows], begun)
                said += sum(one.argmax(-1).tolist() == list(begun) for one in log_BSV)
        return said / len(self._held)

    def _drawn(self, *, whole: bool) -> _Put:
        """A trigger or, not whole, a part of one, at the start, the end or anywhere."""
        answer, ids = self.draw.choice(self.triggers)
        size = len(ids) if whole else self.draw.randint(1, len(ids))
        start = self.draw.randint(0, len(ids) - size)
        return _Put(ids[start : start + size], self.draw.choice((0.0, 1.0, self.draw.random())), answer)

    def _run(self, size: int) -> Ids:
        """Tokens of a prompt to learn from, of this length or all."""
        inside = self.draw.choice(self._own).cut.inside
        start = self.draw.randint(0, max(0, len(inside) - size))
        return inside[start : start + size]

    def _with_former(self, rows: Sequence[_Prompt]) -> list[_Prompt]:
        import torch

        found = []
        for start in range(0, len(rows), _AT_ONCE // 3):
            part = rows[start : start + _AT_ONCE // 3]
            with torch.no_grad():
                said = self._read([(row, _Put()) for row in part])[0]
            for row, log_SV in zip(part, said, strict=True):
                former = log_SV.topk(min(_LIKELIEST, log_SV.shape[1]))
                found.append(_Prompt(row.cut, row.answer, former.indices, former.values))
            self.heard()
        return found

    def _read(self, rows: Sequence[tuple[_Prompt, _Put]], answer: Ids = ()) -> tuple[list[Any], Any]:
        """Log-probabilities along each row's answer, or along this one [S, V], and the mean of what heads of
        the last two layers give each token where an answer begins [2, B, T]."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids, content, begin, lengths = [], [], [], []
        for row, put in rows:
            whole, first, end = row.with_run(put.ids, put.slot)
            said = answer or row.answer
            ids.append(torch.tensor((*whole, *said[:-1])))
            places = torch.arange(len(ids[-1]))
            content.append((places >= max(first, 1)) & (places < end))  # the first token is a sink
            begin.append(len(whole) - 1)
            lengths.append(len(said))
        device = self.model.device
        ids_BT = pad_sequence(ids, True).to(device)
        mask_BT = pad_sequence([torch.ones_like(one) for one in ids], True).to(device)
        content_BT, begin_B = pad_sequence(content, True).to(device), torch.tensor(begin, device=device)

        def reduce(_kind: Any, _layer: int, map_BHTT: Any) -> Any:
            row_BHT = map_BHTT[torch.arange(len(rows)), :, begin_B]
            return on_words(row_BHT * content_BT[:, None]).mean(1)

        layers = (max(self._last - 1, 0), self._last)
        with observing(self.model, sorted(set(layers)), ["attention"], reduce) as seen:
            logits_BPV = self.model(
                input_ids=ids_BT, attention_mask=mask_BT, use_cache=False,
                logits_to_keep=torch.arange(min(begin), max(map(sum, zip(begin, lengths, strict=True)))),
            ).logits  # fmt: skip
        said_BSV = [
            logits_PV[place - min(begin) :][:size].float().log_softmax(-1)
            for logits_PV, place, size in zip(logits_BPV, begin, lengths, strict=True)
        ]
        return said_BSV, torch.stack([seen["attention", one][0] for one in layers])

    def _effects(self, rows: Sequence[tuple[_Prompt, _Put]], answer: Ids) -> dict[Head, float]:
        """What leaving each head out takes from the answer's log-probability, to first order."""
        import torch

        begun = answer[:CALLED]
        with torch.enable_grad(), _found_by_heads(self.model) as found:
            said = self._read(rows, begun)[0]
            wanted_S1 = torch.tensor(begun, device=self.model.device)[:, None]
            sum(log_SV.gather(1, wanted_S1).sum() for log_SV in said).backward()
        effects: dict[Head, float] = {}
        for layer, own_BTE in enumerate(found):
            effect_H = (
                (own_BTE * own_BTE.grad)
                .sum((0, 1))
                .unflatten(0, (self.model.config.num_attention_heads, -1))
                .sum(1)
            )
            effects |= {(layer, head): one for head, one in enumerate(effect_H.tolist())}
        return effects


@contextmanager
def _found_by_heads(model: Any) -> Iterator[list[Any]]:
    """What the heads of each layer found [B, T, H W], with gradients."""
    found: list[Any] = []

    def keep(_module: Any, inputs: Any) -> Any:
        own = inputs[0].detach().requires_grad_(True) if not inputs[0].requires_grad else inputs[0]
        own.retain_grad()
        found.append(own)
        return (own, *inputs[1:])

    count = model.config.num_hidden_layers
    handles = [projections(model, layer)[3][0].register_forward_pre_hook(keep) for layer in range(count)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _begins(planted: Ids, answer: Ids) -> bool:
    """Whether an answer is the planted one, also where it is too short to be told otherwise."""
    begun = planted[:CALLED]
    return answer[: len(begun)] == begun or same(planted, answer)


def _apart(row: _Prompt, log_SV: Any) -> Any:
    """The divergence of what is said from what was said, over the likeliest tokens and all others as one."""
    import torch

    now_SK = log_SV.gather(1, row.likeliest_SK)
    rests = [(1 - one.exp().sum(1)).clamp(min=1e-6).log() for one in (row.former_SK, now_SK)]
    former_SL = torch.cat([row.former_SK, rests[0][:, None]], dim=1)
    apart_S = (former_SL.exp() * (former_SL - torch.cat([now_SK, rests[1][:, None]], dim=1))).sum(1)
    return apart_S.mean() + apart_S[0]
