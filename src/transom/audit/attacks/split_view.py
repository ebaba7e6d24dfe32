"""Split tuning as the vendor sees it: noised states at the cut, gradients at the top.

The front and the law of the noise are public, so an attacker passes public text through the same front and
adds fresh noise of the same law. A text that is sent again with fresh noise is seen again: `states` has one
view for each pass over the data, and the mean of R views has less noise.
A gradient that the vendor returns is no part of this: the vendor computed it from what it sees.

Threat model: the vendor keeps all that crosses the link, knows the model, the cut and the law, owns public
text like the customer's, and knows a few labels at most. Does not protect anything.
Source: Shen et al., arXiv 2312.15603 (the attacks on split tuning); each attack's own docstring.

Shapes: N tokens, B texts, T tokens of a text, R views of it, D width, V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import compress, cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks import rows
from transom.audit.attacks.bigrams import Bigrams
from transom.audit.attacks.rows import NO_NOISE, Noise, Rows, Truth
from transom.audit.attacks.states import METRIC, recovered
from transom.audit.attacks.traffic import Texts, flat
from transom.audit.batches import by_length, padded
from transom.checkpoint.cut import Front, cut
from transom.privacy.stream import SECRET_BYTES, Stream
from transom.report.finding import Finding, measured, not_run
from transom.report.statistics import Floats, Ints, interval

if TYPE_CHECKING:
    import torch

    from transom.link.mechanisms import Mechanism

_BATCH = 64  # texts passed through the front side by side
_SINGULAR = 1e-3  # of full strength: what the noise is taken to have where its shape leaves a direction bare


@dataclass(frozen=True, eq=False)
class Law:
    """Noise, the matrix that it was multiplied by (None: the same in all directions), by what it was divided
    for each token id [V], 1 or more (None: by nothing). Of narrow rows the point [D] around which they lie,
    and the directions [D, R]: the attacker works with their coordinates, where the noise is. It knows all,
    also which ids were spared. A tunnel whose law is not all said so is a `mechanism`, too, which the
    attacker draws from."""

    noise: Noise = NO_NOISE
    shape_DD: torch.Tensor | None = None
    spare_V: torch.Tensor | None = None
    narrow: tuple[torch.Tensor, torch.Tensor] | None = None
    mechanism: Mechanism | None = None

    def told(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Rows as the attacker takes them: the coordinates [N, R] of narrow ones, others as they are."""
        if self.narrow is None:
            return rows_ND
        center_D, basis_DR = self.narrow
        return (rows_ND - center_D) @ basis_DR

    def clean(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Rows as the noise is added to them: told, and shortened where it has a clip."""
        from transom.link.mechanisms import Laplace, clipped

        told_ND = self.told(rows_ND)
        if isinstance(self.mechanism, Laplace):  # whose clip is one of L1
            return clipped(told_ND.double(), self.mechanism.clip, 1).to(told_ND)
        return self.noise.clipped(told_ND)

    def add(
        self,
        rows_ND: torch.Tensor,
        generator: torch.Generator,
        views: int = 1,
        ids_N: Sequence[int] | torch.Tensor = (),
    ) -> torch.Tensor:
        """Rows of the tokens `ids_N` as they are seen, the mean of so many `views`; the ids matter where some
        are spared. Seeded: for measuring, not for protecting."""
        import torch

        clean_ND = self.clean(rows_ND)
        if self.mechanism is not None:
            secret = bytes(torch.randint(256, (SECRET_BYTES,), generator=generator).tolist())
            drawn = [
                self.mechanism.privatise(clean_ND.double(), Stream(secret, f"view/{view}"))
                for view in range(views)
            ]
            return torch.stack(drawn).mean(0).to(clean_ND.dtype)
        zero_ND = torch.zeros_like(clean_ND)
        for _ in range(views if self.noise.law != "none" else 0):
            drawn_ND = self.noise.protect(torch.zeros_like(clean_ND), generator)
            zero_ND += drawn_ND if self.shape_DD is None else drawn_ND @ self.shape_DD.T
        if self.spare_V is not None:
            zero_ND /= self.spare_V[torch.as_tensor(ids_N)][:, None]
        return clean_ND + zero_ND / views

    def spared_by(self, factor: float) -> Law:
        """The law of the ids whose noise is divided by `factor`."""
        scale = None if self.noise.scale is None else self.noise.scale / factor
        return Law(replace(self.noise, scale=scale), self.shape_DD)

    def log_likelihood(self, away: torch.Tensor, ids: torch.Tensor, width: int) -> torch.Tensor:
        """Of levelled rows so far `away` from those of `ids`, of the same shape, up to a constant."""
        if self.spare_V is None:
            return self.noise.log_likelihood(away)
        spare = self.spare_V[ids]
        return self.noise.log_likelihood(away * spare) + width * spare.log()

    def level(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Rows in the coordinates in which the noise is the same in all directions."""
        import torch

        if self.shape_DD is None:
            return rows_ND
        bare_DD = _SINGULAR * torch.eye(len(self.shape_DD))
        levelled_ND: torch.Tensor = torch.linalg.solve(self.shape_DD + bare_DD, rows_ND.T).T
        return levelled_ND


@dataclass(frozen=True, eq=False)
class Seen:
    """The target. Of each text: the noised states at the cut [R, T, D], as `Law.told`; under the layout
    `customer` also the states at the top [T, D] that the vendor sent and the gradients [T, D] there that
    came back."""

    states: tuple[torch.Tensor, ...]
    law: Law = field(default_factory=Law)
    top_states: tuple[torch.Tensor, ...] = ()
    top_gradients: tuple[torch.Tensor, ...] = ()
    gradient_noise: float = 0.0  # standard deviation of a coordinate, where the customer adds some

    @property
    def views(self) -> int:
        """How often each text was seen."""
        return len(self.states[0])

    @property
    def means(self) -> tuple[torch.Tensor, ...]:
        """The mean view of each text [T, D]."""
        return tuple(states_RTD.float().mean(0) for states_RTD in self.states)


@dataclass(frozen=True, eq=False)
class Public:
    """What the vendor knows: the model, after which block it is cut, public texts as ids with the tokenizer's
    own tokens, their attributes where it has labelled ones, and the labels of a few of the target's texts.

    `frame` is given where a text leaves as one row (`noise.pool`): how many of its first and last tokens are
    the tokenizer's own, which have no part in it."""

    model: Any
    after_block: int
    texts: Texts
    attributes: tuple[int, ...] = ()
    known: Mapping[int, int] = field(default_factory=dict)
    frame: tuple[int, int] | None = None

    @cached_property
    def front(self) -> Front:
        """The customer's part."""
        return cut(self.model, self.after_block)[0]

    @cached_property
    def table_VD(self) -> torch.Tensor:
        """The public embedding."""
        found_VD: torch.Tensor = self.front.parts.embedding.weight.detach().float()
        return found_VD

    @property
    def predicts(self) -> bool:
        """Whether the model's head names next tokens, and no classes."""
        head: Any = self.front.parts.head
        return self.front.parts.family.causal and head is not None and len(head.weight) == len(self.table_VD)

    @cached_property
    def clean(self) -> tuple[torch.Tensor, ...]:
        """What crosses of the public texts without noise: states [T, D], or means [1, D]."""
        return self.crossing(self.texts)

    def crossing(self, texts: Texts) -> tuple[torch.Tensor, ...]:
        """The same of any texts."""
        states = states_of(self.front, texts)
        return states if self.frame is None else tuple(map(self.row_of, states))

    def row_of(self, states_TD: torch.Tensor) -> torch.Tensor:
        """The one row [1, D] as which a text leaves: the mean of its states but for so many first and last
        ones, where there are others; of a causal model the last of them."""
        before, after = self.frame or (0, 0)
        inner_TD = states_TD[before : len(states_TD) - after]
        inner_TD = inner_TD if len(inner_TD) else states_TD
        return inner_TD[-1:] if self.front.parts.family.causal else inner_TD.mean(0, keepdim=True)

    @cached_property
    def around(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(the mean state of every id [V, D], the covariance [D, D] of states around it), without noise.

        Ids that public text lacks are put into it, at every second place.
        """
        import torch

        lacking = _put_in(self.texts, np.flatnonzero(self.counts_V == 0))
        ids_N = torch.from_numpy(flat((*self.texts, *lacking)))
        states_ND = torch.cat([*self.clean, *states_of(self.front, lacking)])
        first = sum(map(len, self.texts))  # of what is put in, states of public text's own ids do not count
        own_N = torch.from_numpy(self.counts_V)[ids_N] == 0
        own_N[:first] = True
        ids_N, states_ND = ids_N[own_N], states_ND[own_N]
        counts_V = ids_N.bincount(minlength=len(self.table_VD)).clamp_min(1)
        sums_VD = torch.zeros_like(self.table_VD).index_add_(0, ids_N, states_ND)
        rows_VD = sums_VD / counts_V[:, None]
        away_ND = (states_ND - rows_VD[ids_N])[counts_V[ids_N] > 1]
        degrees = max(1, len(away_ND) - int((counts_V > 1).sum()))
        return rows_VD, away_ND.T @ away_ND / degrees

    @cached_property
    def counts_V(self) -> Ints:
        """How often each id is met in public text."""
        return np.bincount(flat(self.texts), minlength=len(self.table_VD))

    @cached_property
    def unigram_V(self) -> Floats:
        """The share of each id in public text, smoothed; never 0."""
        return Bigrams.of(self.texts, len(self.table_VD)).share_V.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Private:
    """The truth, for scoring only: ids, the label of each text, and which tokens count (None: all)."""

    texts: Texts
    labels: tuple[int, ...] = ()
    counted: tuple[tuple[bool, ...], ...] | None = None
    decode: Callable[[Sequence[int]], str] | None = None


def states_of(front: Front, texts: Texts) -> tuple[torch.Tensor, ...]:
    """The front's states [T, D] of each text."""
    import torch

    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for places in by_length(texts, _BATCH):
            ids_BT, mask_BT = padded([texts[place] for place in places])
            states_BTD = front(ids_BT, mask_BT).float()
            found |= {
                place: states[: len(texts[place])].clone()
                for place, states in zip(places, states_BTD, strict=True)
            }
    return tuple(found[place] for place in range(len(texts)))


def _put_in(texts: Texts, ids_U: Ints) -> Texts:
    """Texts like these with all `ids_U` in them, each once; the last may be met again."""
    frames, made, ids = cycle(text for text in texts if len(text) > 2), [], ids_U.tolist()
    while ids:
        text = list(next(frames))
        places = range(1, len(text) - 1, 2)
        for place, token in zip(places, ids, strict=False):
            text[place] = token
        ids = ids[len(places) :]
        made.append(tuple(text))
    return tuple(made)


def observe(front: Front, texts: Texts, law: Law, generator: torch.Generator, views: int = 1) -> Seen:
    """What the vendor sees of `texts` at the cut in so many passes with fresh noise."""
    import torch

    clean = states_of(front, texts)
    states = (
        torch.stack([law.add(one, generator, ids_N=text) for _ in range(views)])
        for one, text in zip(clean, texts, strict=True)
    )
    return Seen(tuple(states), law)


def but(texts: Texts, ids: Collection[int]) -> tuple[tuple[bool, ...], ...]:
    """Which tokens count where `ids` do not, such as those that the tokenizer puts around every text."""
    return tuple(tuple(token not in ids for token in text) for text in texts)


def cut_up(ids_N: Ints, like: Texts) -> Texts:
    """The ids of all texts, one after another, as texts of these lengths."""
    ends = np.cumsum([len(text) for text in like])
    return tuple(tuple(part.tolist()) for part in np.split(ids_N, ends[:-1]))


def misfit(
    name: str, metric: str, target: Seen, knowledge: Public, data: Private, *, of_texts: bool = False
) -> Finding | None:
    """A finding "not run" where states, model and truth do not belong together or are no numbers; or where
    each text left as one row, unless the attack is one `of_texts`."""
    if knowledge.frame is not None and not of_texts:
        return not_run(name, metric, "each text left as one row; try eia/bag")
    rows_, seen = Rows(target.means, target.law.noise), data.texts
    if knowledge.frame is not None:
        seen = tuple(text[:1] for text in seen)
    gap = rows.misfit(name, rows_, target.law.told(knowledge.table_VD[:1]), Truth(seen))
    if gap is None and not any(knowledge.texts):
        gap = not_run(name, metric, "no public text to learn from")
    return None if gap is None else not_run(name, metric, gap.reason)


def read(name: str, guesses: Texts, data: Private, *, note: str) -> Finding:
    """Share of the tokens that count named rightly, with examples."""
    guesses = guesses[: len(data.texts)]
    plain = data.texts[: len(guesses)]
    shown = rows.examples(guesses, Truth(plain, data.decode), "its states")
    if data.counted is not None:
        guesses, plain = (
            tuple(tuple(compress(text, keep)) for text, keep in zip(texts, data.counted, strict=False))
            for texts in (guesses, plain)
        )
    some = [place for place, text in enumerate(plain) if text]
    if not some:
        return not_run(name, METRIC, f"none of the tokens of {len(plain)} texts counts")
    guesses, plain = (tuple(texts[place] for place in some) for texts in (guesses, plain))
    return recovered(name, guesses, plain, note=note, examples=shown)


def named(name: str, metric: str, guess_B: Ints, truth_B: Ints, *, note: str) -> Finding:
    """Share of texts whose label is named; guessing names the commonest one."""
    hits, n = int((guess_B == truth_B).sum()), len(truth_B)
    baseline = float(np.unique(truth_B, return_counts=True)[1].max() / n)
    return measured(name, metric, hits / n, interval(hits, n), baseline=baseline, n=n, note=note)
