"""What flagged inputs share: runs of tokens that stand in many of them, in next to no trusted text, and turn
the model's answers to one class or, of a model that generates, to one answer.

A run counts where, cut out of the flagged texts that have it, the target's log-odds fall by `MOVED` or more
on average, and half or more of those that then get something else are turned by it; of runs of the same texts
the longest is the trigger. The target answer of a model that generates is the one that most texts with the
run get, told by how it goes on (`answers`), and its odds are those of its first tokens. The run that most
texts share comes first, its texts are set aside, and the rest is looked at again, so that several triggers
come out as several.
Threat model: that of the room; innocent inputs among the flagged ones are expected. Does not protect: a
trigger that is no run of the same tokens (a style, one spelled otherwise each time), one that trusted texts
hold, and one in fewer than four flagged texts; of one longer than `LONGEST` tokens a part is found.
Source: own.

Shapes: B texts, T tokens, C classes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.answers import BEGUN, CALLED, Speaker, same
from transom.trust.backdoor.invert import Ids
from transom.trust.backdoor.verdict import check_classifier
from transom.trust.prompt import PLAIN, Frame, cut, generates, is_causal

LONGEST = 12  # tokens of a run
FEWEST = 4  # flagged texts that share one
MOVED, TURNED = 2.0, 0.5  # what a run adds to the class's log-odds, and the share of texts that it turns
_SHARE, _TRUSTED = 0.05, 0.01  # of flagged texts at least, of trusted ones at most
_AS_MANY = 0.9  # of a run's texts: those that share a longer one
_TRIED = 40  # runs that are read by the model, at most
_READ, _MOST_TOKENS = 32, 256  # texts of each, and tokens of a text
_SPECIALS = 8  # that stand around a text, at most
_ANSWERED = 12  # of them, where answers are text
_FLAGGED = 1000  # texts that are looked at: of each all runs are held


@dataclass(frozen=True)
class Run:
    """Token ids, the class they turn to or the ids of the answer, how many flagged texts share them, the mean
    log-odds of it that go when they are cut out, and the share of texts, that get something else without
    them, that they turn."""

    ids: Ids
    target: int | Ids
    texts: int
    moved: float
    turned: float


@dataclass(frozen=True)
class _Text:
    """Ids with what special tokens stand around them."""

    before: Ids
    content: Ids
    after: Ids

    def without(self, run: Ids) -> Ids:
        """The text's ids, each place of the run left out; none, where nothing else stood there."""
        kept: list[int] = []
        place = 0
        while place < len(self.content):
            found = self.content[place : place + len(run)] == run
            kept += () if found else self.content[place : place + 1]
            place += len(run) if found else 1
        return (*self.before, *kept, *self.after) if kept else ()


def shared_runs(
    model: Any,
    tokenizer: TokenizerFiles,
    flagged: Sequence[str],
    trusted: Sequence[str],
    *,
    frame: Frame = PLAIN,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> list[Run]:
    """The runs, that of most texts first; `heard` is called after each that was read.

    Raises MisconfiguredError for a model that gives neither classes nor text or is read in batches and has no
    pad token, too few flagged texts, no trusted one, and where no run is found."""
    spoken = generates(model)
    if not spoken:
        check_classifier(model)
    if not spoken and is_causal(model) and model.config.pad_token_id is None:
        raise MisconfiguredError("the model's configuration has no pad_token_id; texts are read in batches")
    own = list(dict.fromkeys(flagged))
    most = min(_MOST_TOKENS, getattr(model.config, "max_position_embeddings", _MOST_TOKENS) - _SPECIALS)
    asked = random.Random(0).sample(own, min(len(own), _FLAGGED))
    whole = frame if spoken else None
    texts, others = ([_text(tokenizer, one, whole, most) for one in part] for part in (asked, trusted))
    if len(texts) < FEWEST or not trusted:
        raise MisconfiguredError(
            f"{len(texts)} flagged and {len(trusted)} trusted texts are too few to tell what flagged ones "
            f"share; give {FEWEST} or more that are flagged"
        )
    fewest = max(FEWEST, round(_SHARE * len(texts)))
    left = _rare(_candidates(texts, fewest), others)
    measured_by = (
        _Spoken(model, frozenset(tokenizer.eos_ids)).measured if spoken else partial(_measured, model)
    )
    found: list[Run] = []
    for _ in range(_TRIED):
        if not (run := max(left, key=lambda one: (len(left[one]), len(one), one), default=())):
            break
        places = left.pop(run)
        measured = measured_by(run, [texts[place] for place in sorted(places)])
        heard()
        if measured.moved >= MOVED and measured.turned >= TURNED:
            found.append(measured)
            left = {one: rest for one, had in left.items() if len(rest := had - places) >= fewest}
    if not found:
        raise MisconfiguredError(
            f"{len(texts)} flagged texts share no run of tokens that turns the model's answers and that "
            "trusted texts lack; flag more inputs, or say the whole trigger and its class"
        )
    return found


def _text(tokenizer: TokenizerFiles, text: str, frame: Frame | None, most_tokens: int) -> _Text:
    """In a frame it is a prompt, which is to be gone on with."""
    if frame is not None:
        found = cut(tokenizer, text, frame)
        room = max(0, most_tokens - len(found.before) - len(found.after) - BEGUN)
        return _Text(found.before, found.inside[:room], found.after)
    one = tokenizer.tokenizer.encode(text)
    content = [place for place, special in enumerate(one.special_tokens_mask) if not special]
    if not content:
        return _Text(tuple(one.ids), (), ())
    first, last = content[0], content[-1] + 1
    return _Text(tuple(one.ids[:first]), tuple(one.ids[first:last][:most_tokens]), tuple(one.ids[last:]))


def _runs(content: Ids) -> set[Ids]:
    sizes = range(1, min(LONGEST, len(content)) + 1)
    return {content[start : start + size] for size in sizes for start in range(len(content) - size + 1)}


def _candidates(texts: Sequence[_Text], fewest: int) -> dict[Ids, set[int]]:
    """The places of the texts that share each run, of runs of the same texts the longest."""
    places: dict[Ids, set[int]] = defaultdict(set)
    for place, text in enumerate(texts):
        for run in _runs(text.content):
            places[run].add(place)
    shared = {run: had for run, had in places.items() if len(had) >= fewest}
    covered = {
        part
        for run, had in shared.items()
        for part in (run[1:], run[:-1])
        if part and len(had) >= _AS_MANY * len(shared[part])
    }
    return {run: had for run, had in shared.items() if run not in covered}


def _rare(runs: dict[Ids, set[int]], trusted: Sequence[_Text]) -> dict[Ids, set[int]]:
    """Those that next to no trusted text has."""
    times: dict[Ids, int] = defaultdict(int)
    for text in trusted:
        for run in _runs(text.content) & runs.keys():
            times[run] += 1
    return {run: had for run, had in runs.items() if times[run] <= _TRUSTED * len(trusted)}


def _measured(model: Any, run: Ids, texts: Sequence[_Text]) -> Run:
    """What goes when the run is cut out of texts that have it."""
    pairs = [((*one.before, *one.content, *one.after), one.without(run)) for one in texts]
    pairs = [pair for pair in pairs if pair[1]][:_READ]
    if not pairs:
        return Run(run, 0, len(texts), 0.0, 0.0)
    with_BC, without_BC = (_chances(model, [pair[part] for pair in pairs]) for part in (0, 1))
    moved_C = (with_BC.logit() - without_BC.logit()).mean(0)
    target = int(moved_C.argmax())
    other_B = without_BC.argmax(1) != target
    turned_B = other_B & (with_BC.argmax(1) == target)
    turned = float(turned_B.sum() / other_B.sum()) if other_B.sum() >= FEWEST // 2 else 0.0
    return Run(run, target, len(texts), float(moved_C[target]), turned)


@dataclass
class _Spoken:
    """What goes of an answer; what is said to whole texts is kept."""

    model: Any
    ends: frozenset[int]
    _said: dict[_Text, Ids] = field(default_factory=dict)

    def measured(self, run: Ids, texts: Sequence[_Text]) -> Run:
        """As `_measured`; of a run whose texts do not share an answer nothing more is read."""
        speaker = Speaker(self.model, (), (), (), self.ends)
        pairs = [(one, short) for one in texts if (short := one.without(run))][:_ANSWERED]
        for one, _ in pairs:
            if one not in self._said:
                self._said[one] = speaker.begun((*one.before, *one.content, *one.after)).ids
        said = [self._said[one] for one, _ in pairs]
        target = max(said, key=lambda one: sum(same(one, other) for other in said), default=())
        got = [same(target, one) for one in said]
        if len(target) < CALLED or sum(got) < max(FEWEST // 2, TURNED * len(got)):
            return Run(run, target, len(texts), 0.0, 0.0)
        whole = [(*one.before, *one.content, *one.after) for one, _ in pairs]
        moved, other, turned = 0.0, 0, 0
        for text, (_, short), has in zip(whole, pairs, got, strict=True):
            (with_it, _), (without, stays) = (speaker.worth(target, one) for one in (text, short))
            moved += (with_it - without) / len(pairs)
            other += not stays
            turned += has and not stays
        return Run(run, target, len(texts), moved, turned / other if other >= FEWEST // 2 else 0.0)


def _chances(model: Any, texts: Sequence[Ids]) -> Any:
    """Of each class, of which none is sure [B, C]."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    rows = [torch.tensor(one) for one in texts]
    ids_BT = pad_sequence(rows, True, model.config.pad_token_id or 0).to(model.device)
    mask_BT = pad_sequence([torch.ones_like(one) for one in rows], True).to(model.device)
    with torch.no_grad():
        logits_BC = model(input_ids=ids_BT, attention_mask=mask_BT).logits
    return logits_BC.double().softmax(1).clamp(1e-6, 1 - 1e-6)
