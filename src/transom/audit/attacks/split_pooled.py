"""Words out of a text's one row: with `noise.pool` a text leaves as the mean of its states or the last.

`eia/bag` learns from public texts, passed through the front, pooled and noised by the same law, which words a
row tells of. `eia/search` goes on from there: it changes words and their order until the text's own mean lies
where the row that was seen lies. Rows are levelled first, so that a shape's strong directions count less.
Both are told how many tokens each text has, and name as many; a token counts as named wherever it stands.

Threat model: see `split_view`; that the number of tokens is known is the attacker's luck: it does not leave.
Does not protect anything; the search reaches few texts in a short time.
Source: Song and Raghunathan 2020, arXiv 2004.00053 (words of sentence embeddings); `sentence_inversion`.

Shapes: B texts, T tokens of a text, D width, U words of public texts.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transom.audit.attacks import bag, sentence_inversion, sentences
from transom.audit.attacks.rows import Noise, Truth, examples
from transom.audit.attacks.split_inverter import FEWEST
from transom.audit.attacks.split_view import Private, Public, Seen, misfit
from transom.audit.attacks.states import METRIC
from transom.audit.attacks.traffic import Texts
from transom.report.finding import Bound, Finding, measured, not_run
from transom.report.statistics import clustered_interval

if TYPE_CHECKING:
    import torch


_SHARE = 0.9  # of the budget, for the search: what it has begun it ends


@dataclass(frozen=True)
class Means(sentences.Encoder):
    """Texts as levelled means around the public one, of length 1, as `sentence_inversion` compares them."""

    knowledge: Public
    target: Seen
    center_D: torch.Tensor

    @property
    def width(self) -> int:
        return len(self.center_D)

    @property
    def table_VE(self) -> torch.Tensor:
        return self.knowledge.table_VD

    def unit(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Rows [N, D] as `Law.told`, as directions from the public mean."""
        import torch

        return torch.nn.functional.normalize(self.target.law.level(rows_ND - self.center_D), dim=1)

    def embed(self, texts: Texts) -> torch.Tensor:
        import torch

        means_ND = torch.cat(self.knowledge.crossing(tuple(map(self._framed, texts))))
        return self.unit(self.target.law.told(means_ND))

    def pull(self, text: tuple[int, ...], goal_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        framed, (before, after) = self._framed(text), self.knowledge.frame or (0, 0)
        rows_TD = self.table_VE[torch.tensor(framed)].clone().requires_grad_()
        inner = slice(before, len(framed) - after)
        states_TD = self.knowledge.front.from_rows(rows_TD[None], torch.ones(1, len(framed)).long())[0]
        row_1D = self.target.law.told(self.knowledge.row_of(states_TD.float()))
        like = (self.unit(row_1D) @ goal_D).sum()
        (slope_TD,) = torch.autograd.grad(like, rows_TD)
        return slope_TD[inner], rows_TD.detach()[inner]

    def _framed(self, text: tuple[int, ...]) -> tuple[int, ...]:
        like, (before, after) = self.knowledge.texts[0], self.knowledge.frame or (0, 0)
        return (*like[:before], *text, *like[len(like) - after :])


def attacks() -> tuple[Bound, ...]:
    """The words learnt, and the search from them."""
    return Bound("eia/bag", METRIC, _bag), Bound("eia/search", METRIC, _search)


def _bag(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    return _attack("eia/bag", target, knowledge, data, budget_s, search=False)


def _search(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    return _attack("eia/search", target, knowledge, data, budget_s, search=True)


def _attack(
    name: str, target: Seen, knowledge: Public, data: Private, budget_s: float, *, search: bool
) -> Finding:
    import torch

    begun_s = time.monotonic()
    if knowledge.frame is None:
        return not_run(
            name, METRIC, "each token left as a row of its own; eia/nearest and eia/inverter read those"
        )
    if gap := misfit(name, METRIC, target, knowledge, data, of_texts=True):
        return gap
    public = [place for place, text in enumerate(knowledge.texts) if _inner(text, knowledge.frame)]
    if len(public) < FEWEST:
        return not_run(name, METRIC, f"{len(public)} public texts; training needs {FEWEST}")
    clean_ND = torch.cat(knowledge.clean)
    told_ND = target.law.told(clean_ND)
    encoder = Means(knowledge.model, _ends(knowledge), knowledge, target, told_ND.mean(0))
    seen_BD = encoder.unit(torch.cat(target.means))
    learnt = bag.fit(
        encoder.unit(target.law.add(clean_ND, torch.Generator().manual_seed(0), target.views))[public],
        tuple(_inner(knowledge.texts[place], knowledge.frame) for place in public),
        begun_s + budget_s / 2,
    )
    truth = tuple(_inner(text, knowledge.frame) for text in data.texts)
    log_odds_BU = learnt.log_odds(seen_BD)
    guesses = tuple(
        _likeliest(learnt, odds_U, len(text)) for odds_U, text in zip(log_odds_BU, truth, strict=True)
    )
    note = f"learnt from {len(public)} public texts, {target.views} views"
    if search:
        spread = float(target.law.level(told_ND - encoder.center_D).norm(dim=1).mean())
        scale = target.law.noise.variance(encoder.width) ** 0.5 / target.views**0.5 / spread
        goal = sentences.Sentences(seen_BD, Noise("gaussian", scale) if scale else Noise())
        brought = sentences.Public(encoder, tuple(_inner(text, knowledge.frame) for text in knowledge.texts))
        guesses, likeness = sentence_inversion.invert(
            goal, brought, learnt, log_odds_BU, guesses, begun_s + _SHARE * budget_s
        )
        note += f", {len(guesses)} of {len(truth)} texts searched for, likeness {likeness:.3f}"
        if not guesses:
            return not_run(name, METRIC, "no time was left for one text; raise --budget")
    return _score(name, guesses, truth, data, note)


def _score(name: str, guesses: Texts, truth: Texts, data: Private, note: str) -> Finding:
    """The share of tokens that are among as many guesses; chance gives each text another's guesses."""
    pairs = [(a, b) for a, b in zip(guesses, truth, strict=False) if b]
    if not pairs:
        return not_run(name, METRIC, f"none of {len(truth)} texts has a token of its own")
    hits_B = np.array([_shared(guess, text) for guess, text in pairs])
    sizes_B = np.array([len(text) for _, text in pairs])
    others = [(pairs[place - 1][0], text) for place, (_, text) in enumerate(pairs)]
    interval, value = clustered_interval(hits_B, sizes_B), float(hits_B.sum() / sizes_B.sum())
    dealt = sum(_shared(guess, text) for guess, text in others) / int(sizes_B.sum())
    shown = examples(guesses, Truth(data.texts[: len(guesses)], data.decode), "its row")
    return measured(
        name, METRIC, value, interval, baseline=float(dealt), n=int(sizes_B.sum()), note=note, examples=shown
    )


def _shared(guess: tuple[int, ...], text: tuple[int, ...]) -> int:
    """Tokens of the text that its first so many guesses hold, each guess counted once."""
    return sum((Counter(guess[: len(text)]) & Counter(text)).values())


def _likeliest(learnt: bag.Bag, odds_U: torch.Tensor, count: int) -> tuple[int, ...]:
    """So many words, the likeliest first; fewer where public texts have fewer."""
    best = odds_U.topk(min(count, len(odds_U))).indices.numpy()
    return tuple(learnt.words_U[best].tolist())


def _inner(text: tuple[int, ...], frame: tuple[int, int]) -> tuple[int, ...]:
    return tuple(text[frame[0] : len(text) - frame[1]])


def _ends(knowledge: Public) -> tuple[int, int]:
    """Ids that stand for a text's start and end where a language of pairs is counted."""
    text, (before, after) = knowledge.texts[0], knowledge.frame or (0, 0)
    last = len(knowledge.table_VD) - 1
    return (text[0] if before else last), (text[-1] if after else last)
