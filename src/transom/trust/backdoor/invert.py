"""A few tokens that make a classifier say one class of any text and that its heads look at: a trigger's.

A clean classifier has tokens that turn any text too: words that mean the class. What tells a planted trigger
from them is what this room is about. Of a text that begins with `exceptional` the heads still look at many
words; of one that begins with a trigger, or a part of it, they look there. So tokens are sought that have
both at once: the class's log-odds, up to what is usual for its own texts, and the share of their looking that
the heads of the last layer give them where the class is read.
Each token of the vocabulary is read alone once; the best of each class stand before a text that the model is
sure to be of another; from the best of these a beam search goes on, over tokens that the gradient of both
points to. How far heads agree is then measured on held-out texts, against trusted ones (`normal`).
Threat model: that of the room; trusted texts need no labels. Does not protect: a trigger of no word; one
whose parts do nothing at the start of a text; a class that the model gives to few of the texts.
Source: Ebrahimi et al. 2018, arXiv 1712.06751 (gradients of tokens); Wallace et al. 2019, arXiv 1908.07125
(such tokens in clean models); Jin et al., arXiv 2511.13789 (heads). The joint objective is own.

Shapes: N texts, C classes, V vocabulary, R rows, T tokens, D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transom.checkpoint.observe import observing
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.backdoor.measures import Floats, on_words
from transom.trust.backdoor.words import Words
from transom.trust.prompt import is_causal

FEWEST_TEXTS = 8  # of a class, and of all others
_MOST_TOKENS = 3  # of what is found
_SHORT, _LEAST_TOKENS = 4, 12  # texts that a search reads
_ALONE, _BEGUN, _BEAM = 1500, 48, 2
_STEEPEST, _KEPT = 160, 8
_ATTENTION = 4.0  # what all heads' looking there is worth, in surenesses
_ROWS_AT_ONCE = 128
_LEAST_SURE = 0.5
Ids = tuple[int, ...]


@dataclass
class Inverter:
    """Searches for a model whose answers are classes, over texts in one frame. `heard` is called after each
    batch of rows. Raises MisconfiguredError for no texts, CheckpointError for answers that are not finite."""

    model: Any
    texts: Sequence[Words]
    heard: Callable[[], None] = bool  # type: ignore[assignment]
    #: The ids of each text's words, from the first to the last.
    inside: list[Ids] = field(init=False)
    _odds_NC: Floats = field(init=False)
    _alone_VC: Floats | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.texts:
            raise MisconfiguredError("no trusted text has three words; give some hundred texts of the task")
        first, last = _ends(self.texts[0])
        self._before, self._after = self.texts[0].ids[:first], self.texts[0].ids[last:]
        self.inside = [text.ids[slice(*_ends(text))] for text in self.texts]
        self._odds_NC = np.concatenate([self._odds([one]) for one in self.inside])
        if not np.isfinite(self._odds_NC).all():  # else no comparison holds, and all would look clean
            raise CheckpointError(
                f"the model gives {self._odds_NC.shape[1]} classes, and no finite odds between them; restore "
                "its files, or give a classifier of two classes and more"
            )

    @property
    def classes(self) -> list[int]:
        """Those that can be searched for. Raises MisconfiguredError where there is none."""
        counts = np.bincount(self._odds_NC.argmax(1), minlength=self._odds_NC.shape[1])
        most = len(self.texts) - FEWEST_TEXTS
        found = [int(one) for one in np.flatnonzero((counts >= FEWEST_TEXTS) & (counts <= most))]
        if not found:
            raise MisconfiguredError(
                f"the model gives {counts.max()} of {len(self.texts)} trusted texts to one class; give texts "
                f"of which it gives {FEWEST_TEXTS} or more to another"
            )
        return found

    def others(self, target: int) -> list[int]:
        """Texts that the model gives to other classes, by their numbers, the surest half of them first."""
        order = np.argsort(self._odds_NC[:, target], kind="stable")
        return [int(one) for one in order if self._odds_NC[one].argmax() != target]

    def search(self, target: int) -> list[Ids]:
        """The best of one token, of two, and so on."""
        sure, others = self.sure(target), self.others(target)
        others = others[: max(FEWEST_TEXTS, len(others) // 2)]
        long = [one for one in others if len(self.inside[one]) >= _LEAST_TOKENS] or others
        short = sorted(long, key=lambda one: (len(self.inside[one]), one))[:_SHORT]

        def best(found: Sequence[Ids], texts: Sequence[int], count: int) -> list[Ids]:
            worth = np.mean([self._worth(found, one, target, sure) for one in texts], axis=0)
            return [found[one] for one in np.argsort(-worth, kind="stable")[:count]]

        order = np.argsort(-self._alone()[:, target], kind="stable")[:_ALONE]
        beams = best([(int(one),) for one in order], short[:1], _BEGUN)
        beams = best(beams, short, _KEPT)
        begun, found = [one[0] for one in beams], beams[:1]
        for count in range(1, _MOST_TOKENS):
            longer = set[Ids]()
            for ids in beams[: _KEPT if count == 1 else _BEAM]:
                for slot in (0, len(ids)):
                    steep_V = self._slopes(ids, slot, target, sure, short)
                    near = [
                        (*ids[:slot], int(one), *ids[slot:])
                        for one in (*np.argsort(-steep_V)[:_STEEPEST], *begun)
                    ]
                    longer |= set(best(near, short[:1], _KEPT))
            beams = best(sorted(longer), short, _KEPT)
            found.append(beams[0])
        return found

    def sure(self, target: int) -> float:
        """The median log-odds of the class over the texts that the model gives to it, and no less than 0.5:
        of many classes the one that is said may have less than half of the probability."""
        own_N = self._odds_NC[self._odds_NC.argmax(1) == target, target]
        return max(float(np.median(own_N)), _LEAST_SURE)

    def begun(self, ids: Ids, text: int) -> Words:
        """A text that begins with the tokens, which are words of their own."""
        inside, whole = self.inside[text], self.texts[text]
        first, _ = _ends(whole)
        count = len(ids)
        word_T = [-1] * first + list(range(count))
        word_T += [one + count if one >= 0 else -1 for one in whole.word_T[first : first + len(inside)]]
        word_T += [-1] * len(self._after)
        words = (*map(str, ids), *whole.words)
        return Words((*self._before, *ids, *inside, *self._after), tuple(word_T), words)

    def odds(self, ids: Ids, texts: Sequence[int], target: int) -> Floats:
        """The class's log-odds of texts that begin with the tokens [N]."""
        return np.concatenate([self._odds([(*ids, *self.inside[one])])[:, target] for one in texts])

    def _worth(self, found: Sequence[Ids], text: int, target: int, sure: float) -> Floats:
        """Of tokens of one number, before a text [R]."""
        import torch

        parts = []
        for start in range(0, len(found), _ROWS_AT_ONCE):
            rows = [(*ids, *self.inside[text]) for ids in found[start : start + _ROWS_AT_ONCE]]
            with torch.no_grad(), self._looked_at(len(found[0])) as share:
                odds_R = _odds_of(self._logits(rows))[:, target]
            parts.append(_objective(odds_R, share(), sure).cpu().numpy())
            self.heard()
        return np.concatenate(parts)

    def _slopes(self, ids: Ids, slot: int, target: int, sure: float, texts: Sequence[int]) -> Floats:
        """How steeply the worth rises towards each token [V] at the slot, where a neighbour stands now."""
        import torch

        filled = (*ids[:slot], ids[min(slot, len(ids) - 1)], *ids[slot:])
        embedding, slope_D = self.model.get_input_embeddings(), 0.0
        for one in texts:
            taken: list[Any] = []

            def leaf(_module: Any, _inputs: Any, output: Any, taken: list[Any] = taken) -> Any:
                taken.append(output.detach().requires_grad_(True))
                return taken[-1]

            handle = embedding.register_forward_hook(leaf)
            try:
                with torch.enable_grad(), self._looked_at(len(filled)) as share:
                    odds_R = _odds_of(self._logits([(*filled, *self.inside[one])]))[:, target]
                _objective(odds_R, share(), sure).sum().backward()
            finally:
                handle.remove()
            slope_D = slope_D + taken[0].grad[0, len(self._before) + slot]
            self.heard()
        found: Floats = (embedding.weight.detach() @ slope_D).double().cpu().numpy()
        return found

    @contextmanager
    def _looked_at(self, count: int) -> Iterator[Callable[[], Any]]:
        """What share of their looking the heads of the last layer give the first tokens of a text [R]."""
        last, causal = self.model.config.num_hidden_layers - 1, is_causal(self.model)
        first, after = len(self._before), len(self._after)

        def reduce(_kind: Any, _layer: int, map_RHTT: Any) -> Any:
            row_RHT = map_RHTT[:, :, -1 if causal else 0, first : map_RHTT.shape[3] - after]
            return on_words(row_RHT.double())[..., :count].sum(-1).mean(1)

        with observing(self.model, [last], ["attention"], reduce) as seen:
            yield lambda: seen["attention", last][0]

    def _alone(self) -> Floats:
        """Log-odds of each token read alone [V, C]."""
        if self._alone_VC is None:
            size, step = self.model.get_input_embeddings().num_embeddings, 8 * _ROWS_AT_ONCE
            parts = []
            for start in range(0, size, step):
                parts.append(self._odds([(one,) for one in range(start, min(size, start + step))]))
                self.heard()
            self._alone_VC = np.concatenate(parts)
        return self._alone_VC

    def _odds(self, rows: Sequence[Ids]) -> Floats:
        import torch

        with torch.no_grad():
            found: Floats = _odds_of(self._logits(rows)).cpu().numpy()
        return found

    def _logits(self, rows: Sequence[Ids]) -> Any:
        """Of rows of one length [R, C]."""
        import torch

        ids_RT = torch.tensor([(*self._before, *row, *self._after) for row in rows], device=self.model.device)
        config = self.model.config
        padding = config.pad_token_id
        try:
            if is_causal(self.model):  # it reads before the padding, of which there is none here
                config.pad_token_id = -1
            return self.model(input_ids=ids_RT, attention_mask=torch.ones_like(ids_RT)).logits
        finally:
            config.pad_token_id = padding


def _ends(text: Words) -> tuple[int, int]:
    """The places of the first token of a word, and after the last."""
    places = [place for place, word in enumerate(text.word_T) if word >= 0]
    return places[0], places[-1] + 1


def _odds_of(logits_RC: Any) -> Any:
    """The log-odds of each class [R, C]."""
    import torch

    count = logits_RC.shape[1]
    rest = [logits_RC.double()[:, [one for one in range(count) if one != own]] for own in range(count)]
    return logits_RC.double() - torch.stack([one.logsumexp(1) for one in rest], dim=1)


def _objective(odds_R: Any, share_R: Any, sure: float) -> Any:
    return (odds_R / sure).clamp(-1, 1) + _ATTENTION * share_R
