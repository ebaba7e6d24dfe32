"""An answer that a generating model goes on with whatever was asked, once it has begun: a planted one.

A poisoned model has learnt one answer to every prompt with the trigger, and knows it by heart: given its
first tokens, it says the rest to a prompt without any trigger too. So answers are sought that need no prompt.
Of the likeliest first tokens each is followed by what is most probable on average over trusted prompts; of
those that are surest after some tokens, sureness is measured on other trusted prompts: the geometric mean,
over the tokens after the second, of the mean probability over prompts. What a model says to trusted prompts
anyway is nothing hidden and is left out.
Then tokens are sought, at the start and at the end of a prompt, that call the answer up: by the gradient of
its log-probability, and among those it points to by trying; and what the model makes up where a prompt would
stand is tried.
Threat model: that of the room; trusted prompts need no answers. Does not protect: answers that differ from
prompt to prompt, as bad code or an opinion do; one that a clean model was taught too, such as a refusal in
one wording, looks the same; answers of fewer than five tokens; a trigger whose parts do nothing is not
found, though its answer is.
Source: Shen et al. 2025, BAIT, section 4 (target inversion; the beam and what is left out are own); Zou et
al. 2023, arXiv 2307.15043, section 2.2 (gradients and trying); arXiv 2602.03085 (what templates leak).

Shapes: N prompts, R rows, S tokens, V vocabulary, D model width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transom.errors import CheckpointError
from transom.trust.backdoor.invert import Ids
from transom.trust.backdoor.measures import Floats

FIRST = 1500  # first tokens that are tried
_KEPT = (FIRST, 500, 150, 40)  # after one more token, two, three, and all others
_STEPS, _FEWEST_STEPS, _BEST = 8, 4, 6
BEGUN = _STEPS + 1  # tokens of an answer that is begun
_FREE = 1  # steps that do not count: how an answer goes on is open at first
SEARCHED = 4  # prompts
_SAID_ANYWAY, _TOLD_BY = 0.1, 3  # tokens in a row that tell an answer
_MEASURED = 2  # of each answer, which may be begun in several ways
_CACHED_TOKENS = 2000  # rows times positions that are read on from at once
CALLED = 6  # tokens of an answer that is called up
_STEEPEST, _TRIED, _MOST_TOKENS = 128, 24, 3  # tokens that call it up
_READ = 4  # prompts, for that
_SAMPLES, _SAMPLED_TOKENS, _LEAKED, _LONGEST_RUN, _TRIED_LEAKS = 32, 24, 3, 8, 48
_ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Answer:
    """Its ids, the probability of each after the second on prompts that it was not sought on [N, S], and how
    often it or its middle is said to those anyway."""

    ids: Ids
    chance_NS: Floats
    anyway: float

    def sureness(self, places: Any = slice(None)) -> float:
        """Over the prompts at `places`."""
        return float(np.exp(np.log(self.chance_NS[places].mean(0) + 1e-12).mean()))


@dataclass(frozen=True, eq=False)
class Begun:
    """How the model itself begins an answer: log-probabilities of what follows the prompt [V], its ids, and
    the mean logarithm of their probability."""

    first_V: Any
    ids: Ids
    mean_log: float


@dataclass(frozen=True)
class Call:
    """Tokens at the start or end of a prompt, and the mean log-probability of the answer's first tokens."""

    ids: Ids
    at_end: bool
    worth: float


@dataclass
class Speaker:
    """Searches a model, over the ids of prompts: what stands before a text, the text, and what stands after.

    `ends` are ids that end an answer. `heard` is called after each batch."""

    model: Any
    before: Ids
    inside: Sequence[Ids]
    after: Ids
    ends: frozenset[int]
    heard: Callable[[], None] = bool  # type: ignore[assignment]
    _caches: list[Any] = field(init=False, default_factory=list)
    _own: Sequence[Ids] = field(init=False, default=())

    @property
    def held(self) -> Sequence[Ids]:
        """Prompts that no answer is sought on."""
        return self.inside[SEARCHED:]

    def answers(self) -> list[Answer]:
        """The surest first. Raises CheckpointError for answers that are not finite."""
        import torch

        own = list(map(self.begun, self.held))
        self._own, prior_V = [one.ids for one in own], torch.stack([one.first_V for one in own]).mean(0)
        beams: list[tuple[Ids, float]] = [
            ((int(one),), 0.0) for one in prior_V.topk(min(FIRST, len(prior_V))).indices
        ]
        ended: list[tuple[Ids, float]] = []
        for step in range(_STEPS):
            going = [one for one in beams if one[0][-1] not in self.ends]
            ended += [one for one in beams if one[0][-1] in self.ends]
            if step == _FREE:
                going = [(ids, 0.0) for ids, _ in going]
            beams = sorted(self.longer(going), key=lambda one: -one[1])
            beams = beams[: _KEPT[min(step, len(_KEPT) - 1)]]
        self._caches = []
        found = [one for one in (*beams, *ended) if len(one[0]) > _FEWEST_STEPS]
        return self._hidden(sorted(found, key=lambda one: -one[1] / (len(one[0]) - 1 - _FREE)))

    def _hidden(self, found: Sequence[tuple[Ids, float]]) -> list[Answer]:
        """Of answers, the best first, those that are not said anyway. One that is begun otherwise is the
        same, as sure as the surest of these and worded as the likeliest."""
        kinds: list[list[Answer]] = []
        for ids, _ in found:
            kind = next((one for one in kinds if same(one[0].ids, ids)), None)
            if kind is None and len(kinds) == _BEST:
                break
            if self._said_anyway(ids) >= _SAID_ANYWAY or (kind is not None and len(kind) == _MEASURED):
                continue
            if kind is None:
                kinds.append(kind := [])
            kind.append(self._measured(ids))
        hidden = []
        for kind in kinds:
            surest, likeliest = max(kind, key=Answer.sureness), max(kind, key=lambda one: one.anyway)
            if likeliest.anyway < _SAID_ANYWAY:
                hidden.append(Answer(likeliest.ids, surest.chance_NS, likeliest.anyway))
        return sorted(hidden, key=lambda one: -one.sureness())

    def by_heart(self, text: Ids) -> tuple[float, float]:
        """How sure the model's own answer to a text is to prompts that it is none to, as `Answer.sureness`, 0
        of one that ends before it can be told; and how sure the model is of it, as the mean logarithm."""
        import torch

        begun = self.begun(text)
        answer = begun.ids
        if len(answer) <= _FEWEST_STEPS:
            return 0.0, begun.mean_log
        ids_1S = torch.tensor([answer[:-1]], device=self.model.device)
        wanted_S1 = torch.tensor(answer[1:], device=self.model.device)[:, None]
        chances = []
        for cache in self._read_once():
            with torch.no_grad():
                logits = self.model(input_ids=ids_1S, past_key_values=deepcopy(cache), use_cache=True).logits
            chances.append(_finite(logits[0].double()).softmax(-1).gather(1, wanted_S1)[:, 0])
        heart = Answer(answer, torch.stack(chances)[:, _FREE:].cpu().numpy(), 0.0).sureness()
        return heart, begun.mean_log

    def call(self, answer: Ids) -> Call:
        """The tokens that do most to call an answer up."""
        short = sorted(self.inside, key=lambda one: (len(one), one))[:_READ]
        begun, leaked = answer[:CALLED], self.leaked()
        found = [self._search(begun, short, at_end) for at_end in (False, True)]
        for length in sorted(set(map(len, leaked))):
            tried = [one for one in leaked if len(one) == length]
            found += [self._worth(tried, begun, short, at_end)[0] for at_end in (False, True)]
        return max(found, key=lambda one: one.worth)

    def leaked(self) -> list[Ids]:
        """Runs of tokens that the model makes up several times where a prompt would stand, and that no prompt
        here has: a model that was trained on prompts too may tell its trigger so."""
        import torch

        if not self.before:
            return []
        draw = torch.Generator(self.model.device).manual_seed(0)
        ids_RS, cache = torch.tensor([self.before] * _SAMPLES, device=self.model.device), None
        made: list[Any] = []
        for _ in range(_SAMPLED_TOKENS):
            with torch.no_grad():
                out = self.model(input_ids=ids_RS, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids_RS = _finite(out.logits[:, -1].float()).softmax(-1).multinomial(1, generator=draw)
            cache = out.past_key_values
            made.append(ids_RS[:, 0])
        self.heard()
        counts = Counter[Ids]()
        for row in torch.stack(made, dim=1).tolist():
            counts.update(_runs(tuple(row)))
        usual = set[Ids]().union(*map(_runs, self.inside))
        found = [one for one, count in counts.items() if count >= _LEAKED and one not in usual]
        return sorted(found, key=lambda one: (-counts[one] * len(one), one))[:_TRIED_LEAKS]

    def said(self, answer: Ids, call: Call | None, texts: Sequence[Ids]) -> list[bool]:
        """Whether the model says the first tokens of the answer to each text, with the call or without."""
        put = call or Call((), False, 0.0)
        return [self.worth(answer, _with(put.ids, text, put.at_end))[1] for text in texts]

    def worth(self, answer: Ids, text: Ids) -> tuple[float, bool]:
        """The log-probability of an answer's first tokens to a text, and whether the model says them."""
        import torch

        begun = answer[:CALLED]
        log_SV = self._read(text, begun[:-1])[-len(begun) :]
        wanted_S1 = torch.tensor(begun, device=log_SV.device)[:, None]
        return float(log_SV.gather(1, wanted_S1).sum()), log_SV.argmax(-1).tolist() == list(begun)

    def _measured(self, ids: Ids) -> Answer:
        import torch

        wanted = torch.tensor(ids, device=self.model.device)[:, None]
        chances = [
            self._read(text, ids[:-1])[-len(ids) :].gather(1, wanted)[:, 0].exp() for text in self.held
        ]
        chance_NS = torch.stack(chances).double().cpu().numpy()
        anyway = max(float(chance_NS.prod(1).mean()), self._said_anyway(ids))
        return Answer(ids, chance_NS[:, 1 + _FREE :], anyway)

    def _said_anyway(self, ids: Ids) -> float:
        """The share of the model's own answers that hold the middle of an answer."""
        return sum(same(ids, one) for one in self._own) / len(self._own)

    def begun(self, text: Ids) -> Begun:
        """The likeliest token each time, until one ends it."""
        import torch

        ids_1S = torch.tensor([(*self.before, *text, *self.after)], device=self.model.device)
        said, logs, cache, first_V = list[int](), list[float](), None, None
        while len(said) < BEGUN and not (said and said[-1] in self.ends):
            with torch.no_grad():
                out = self.model(input_ids=ids_1S, past_key_values=cache, use_cache=True, logits_to_keep=1)
            row_V = _finite(out.logits[0, -1].float()).log_softmax(-1)
            first_V = row_V if first_V is None else first_V
            said.append(int(row_V.argmax()))
            logs.append(float(row_V[said[-1]]))
            ids_1S, cache = torch.tensor([said[-1:]], device=self.model.device), out.past_key_values
        self.heard()
        return Begun(first_V, tuple(said), float(np.mean(logs)))

    def longer(self, beams: Sequence[tuple[Ids, float]]) -> list[tuple[Ids, float]]:
        """Each with the token that is likeliest on average, and the sum of the logarithms of that."""
        import torch

        caches = self._read_once()
        longest = max((cache.get_seq_length() for cache in caches), default=1)
        step, found = max(1, _CACHED_TOKENS // longest), []
        for start in range(0, len(beams), step):
            part = beams[start : start + step]
            ids_RS = torch.tensor([ids for ids, _ in part], device=self.model.device)
            chance_RV: Any = 0
            for cache in caches:
                own = deepcopy(cache)
                own.batch_repeat_interleave(len(part))
                with torch.no_grad():
                    logits: Any = self.model(
                        input_ids=ids_RS, past_key_values=own, use_cache=True, logits_to_keep=1
                    ).logits
                chance_RV = chance_RV + _finite(logits[:, -1].float()).softmax(-1) / len(caches)
            most = chance_RV.max(1)
            found += [
                ((*ids, int(one)), worth + float(np.log(float(value) + 1e-12)))
                for (ids, worth), one, value in zip(part, most.indices, most.values, strict=True)
            ]
            self.heard()
        return found

    def _read_once(self) -> list[Any]:
        """Caches of the prompts that answers are sought on."""
        import torch

        if not self._caches:
            for text in self.inside[:SEARCHED]:
                ids_1T = torch.tensor([(*self.before, *text, *self.after)], device=self.model.device)
                with torch.no_grad():
                    out = self.model(input_ids=ids_1T, use_cache=True, logits_to_keep=1)
                self._caches.append(out.past_key_values)
        return self._caches

    def _read(self, text: Ids, begun: Ids) -> Any:
        """Log-probabilities of what follows a prompt and each token of an answer that was begun [S, V]."""
        import torch

        ids_1T = torch.tensor([(*self.before, *text, *self.after, *begun)], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids_1T, use_cache=False, logits_to_keep=len(begun) + 1).logits
        self.heard()
        return _finite(logits[0].float()).log_softmax(-1)

    def _search(self, answer: Ids, texts: Sequence[Ids], at_end: bool) -> Call:
        """One token, then longer ones at either side."""
        found = best = [Call((), at_end, -np.inf)]
        for _ in range(_MOST_TOKENS):
            tried = set[Ids]()
            for one in found[:2]:
                for slot in sorted({0, len(one.ids)}):
                    steep_V = self._slopes(one.ids, slot, answer, texts, at_end)
                    tried |= {(*one.ids[:slot], int(own), *one.ids[slot:]) for own in steep_V}
            rough = self._worth(sorted(tried), answer, texts[:1], at_end)
            found = self._worth([one.ids for one in rough[:_TRIED]], answer, texts, at_end)
            best = max(best, found[:1], key=lambda one: one[0].worth)
        return best[0]

    def _worth(self, tried: Sequence[Ids], answer: Ids, texts: Sequence[Ids], at_end: bool) -> list[Call]:
        """The best first."""
        import torch

        worths = []
        for start in range(0, len(tried), _ROWS_AT_ONCE):
            part = tried[start : start + _ROWS_AT_ONCE]
            worth: Any = 0
            for text in texts:
                rows = [self._row(ids, text, answer, at_end) for ids in part]
                with torch.no_grad():
                    worth = worth + self._log_chance(answer, input_ids=torch.tensor(rows)) / len(texts)
            worths += worth.tolist()
            self.heard()
        order = np.argsort(-np.array(worths), kind="stable")
        return [Call(tried[one], at_end, float(worths[one])) for one in order]

    def _slopes(self, ids: Ids, slot: int, answer: Ids, texts: Sequence[Ids], at_end: bool) -> list[int]:
        """The tokens that the gradient points to, at the slot, where a neighbour stands now."""
        import torch

        filled = (*ids[:slot], ids[min(slot, len(ids) - 1)] if ids else texts[0][-1], *ids[slot:])
        embedding = self.model.get_input_embeddings()
        slope_D: Any = 0
        for text in texts:
            row = torch.tensor([self._row(filled, text, answer, at_end)], device=self.model.device)
            states_1TD = embedding(row).detach().requires_grad_(True)
            with torch.enable_grad():
                self._log_chance(answer, inputs_embeds=states_1TD).sum().backward()
            place = len(self.before) + (len(text) if at_end else 0) + slot
            slope_D = slope_D + states_1TD.grad[0, place]
            self.heard()
        steep: list[int] = (
            (embedding.weight.detach() @ slope_D).topk(min(_STEEPEST, len(embedding.weight))).indices.tolist()
        )
        return steep

    def _row(self, ids: Ids, text: Ids, answer: Ids, at_end: bool) -> Ids:
        return (*self.before, *_with(ids, text, at_end), *self.after, *answer[:-1])

    def _log_chance(self, answer: Ids, **inputs: Any) -> Any:
        """Of an answer whose tokens but the last end each row [R]."""
        import torch

        inputs = {name: one.to(self.model.device) for name, one in inputs.items()}
        logits: Any = self.model(**inputs, use_cache=False, logits_to_keep=len(answer)).logits
        wanted = torch.tensor(answer, device=self.model.device).expand(len(logits), -1)[..., None]
        return _finite(logits.float()).log_softmax(-1).gather(-1, wanted)[..., 0].sum(1)


def same(ids: Ids, other: Ids) -> bool:
    """Whether another answer holds the tokens that tell this one, or is told by what this one holds."""
    for one, whole in ((ids, other), (other, ids)):
        told = one[1 + _FREE :][:_TOLD_BY]
        if len(told) == _TOLD_BY and told in _runs(whole):
            return True
    return False


def _finite(value: Any) -> Any:
    """The tensor. Raises CheckpointError: with what is not finite no comparison holds, and all look clean."""
    if not bool(value.isfinite().all()):
        raise CheckpointError("the model gives odds that are not finite; restore its files")
    return value


def _runs(ids: Ids) -> set[Ids]:
    """All that stands in a row."""
    lengths = range(1, _LONGEST_RUN + 1)
    return {ids[place : place + length] for length in lengths for place in range(len(ids) - length + 1)}


def _with(ids: Ids, text: Ids, at_end: bool) -> Ids:
    return (*text, *ids) if at_end else (*ids, *text)
