"""Two other ways for `split_privacy.py`: SANTEXT+ changes the words, DP-SGD (Opacus) noises the gradients.

SANTEXT+ draws in place of each token a sensitive one, y with a probability as exp(-epsilon d(x, y) / 2), d
the distance of the model's own embeddings. Sensitive are the nine tenths of the vocabulary that are rarest
in public texts; the others are kept in seven of ten places. The vendor gets the embeddings of what was drawn.
The attacker knows the law and how often tokens come in public texts, and names the likeliest.
DP-SGD promises (epsilon, 1e-5) of one row to who sees the adapter; who trains has the texts themselves.
Source: Yue et al. 2021, arXiv 2106.01221; Abadi et al. 2016, arXiv 1607.00133.

Shapes: B texts, T tokens, V vocabulary, S sensitive tokens, C candidates, U different tokens, D width.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from transom.split.rows import Rows, padded

SENSITIVE, REPLACED = 0.9, 0.3
_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Santext:
    """SANTEXT+ over the rows of an embedding table."""

    table_VD: torch.Tensor
    public: Rows
    epsilon: float

    @cached_property
    def counts_V(self) -> torch.Tensor:
        counts_V = torch.zeros(len(self.table_VD))
        for token, count in Counter(token for text in self.public.ids for token in text).items():
            counts_V[token] = count
        return counts_V

    @cached_property
    def sensitive_V(self) -> torch.Tensor:
        """Whether a token is among the rarest."""
        rarest = self.counts_V.argsort(stable=True)[: int(SENSITIVE * len(self.counts_V))]
        found_V = torch.zeros(len(self.counts_V), dtype=torch.bool)
        found_V[rarest] = True
        return found_V

    def log_law(self, ids_U: torch.Tensor) -> torch.Tensor:
        """[U, S]: of the sensitive tokens in the place of these."""
        away_US = torch.cdist(self.table_VD[ids_U], self.table_VD[self.sensitive_V])
        return torch.log_softmax(-self.epsilon / 2 * away_US, 1)

    def changed(self, rows: Rows, seed: int) -> Rows:
        """The rows with what was drawn; the tokenizer's own stay."""
        drawn = torch.Generator().manual_seed(seed)
        sensitive_S = self.sensitive_V.nonzero()[:, 0]
        places: dict[int, list[tuple[int, int]]] = {}
        texts = [list(text) for text in rows.ids]
        for row, text in enumerate(texts):
            for place, token in enumerate(text):
                often = 1.0 if self.sensitive_V[token] else REPLACED
                if token not in rows.specials and float(torch.rand(1, generator=drawn)) < often:
                    places.setdefault(token, []).append((row, place))
        for some in torch.tensor(sorted(places)).split(_AT_ONCE):
            for token, law_S in zip(some.tolist(), self.log_law(some).exp(), strict=True):
                picks = torch.multinomial(law_S, len(places[token]), replacement=True, generator=drawn)
                for (row, place), pick in zip(places[token], sensitive_S[picks].tolist(), strict=True):
                    texts[row][place] = pick
        return replace(rows, ids=tuple(map(tuple, texts)))

    def hidden(self, plain: Rows, seen: Rows) -> float:
        """The share of tokens that the likeliest one, given what was drawn, is not."""
        pairs = [
            (token, other)
            for text, drawn in zip(plain.ids, seen.ids, strict=True)
            for token, other in zip(text, drawn, strict=True)
            if token not in plain.specials
        ]
        observed = torch.tensor(sorted({other for _, other in pairs}))
        guesses = dict(zip(observed.tolist(), self._likeliest(observed).tolist(), strict=True))
        return sum(guesses[other] != token for token, other in pairs) / len(pairs)

    def _likeliest(self, observed_U: torch.Tensor) -> torch.Tensor:
        """[U], among the tokens of public texts and the one that is seen."""
        column_V = self.sensitive_V.cumsum(0) - 1
        best_U = torch.full((len(observed_U),), -torch.inf)
        guess_U = observed_U.clone()
        can_be_U = self.sensitive_V[observed_U]
        for some_C in (self.counts_V > 0).nonzero()[:, 0].split(_AT_ONCE):
            often_C1 = torch.where(self.sensitive_V[some_C], 1.0, REPLACED)[:, None]
            law_CU = self.log_law(some_C).exp()[:, column_V[observed_U].clamp_min(0)] * can_be_U * often_C1
            law_CU += (some_C[:, None] == observed_U) * (1 - often_C1)
            score_U, place_U = (law_CU.log() + self.counts_V[some_C][:, None].log()).max(0)
            better_U = score_U > best_U
            best_U = torch.where(better_U, score_U, best_U)
            guess_U = torch.where(better_U, some_C[place_U], guess_U)
        return guess_U


def dp_sgd(model: Any, trained: Sequence[Any], train: Rows, dev: Rows, of: Any, epsilon: float) -> float:
    """Accuracy on the dev rows of a whole model, whose `trained` parameters learn by DP-SGD.

    `of` is the job's `Train`. Exits without Opacus.
    """
    try:
        from opacus import PrivacyEngine
    except ImportError:
        sys.exit("method opacus-lora needs Opacus; run: pip install --no-deps opacus==1.6.0 opt_einsum")
    torch.manual_seed(of.seed)
    optimiser: Any = torch.optim.AdamW(trained, of.learning_rate, weight_decay=of.weight_decay)
    loader: Any = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(len(train))),
        of.batch_rows,  # type: ignore[arg-type]
    )
    model.train()
    model, optimiser, loader = PrivacyEngine().make_private_with_epsilon(
        module=model, optimizer=optimiser, data_loader=loader, epochs=of.epochs, target_epsilon=epsilon,
        target_delta=1e-5, max_grad_norm=1.0,
    )  # fmt: skip
    for _ in range(of.epochs):
        for (numbers,) in loader:
            if len(numbers):
                optimiser.zero_grad()
                model(**_batch(train, numbers.tolist())).loss.backward()
                optimiser.step()
    model.eval()
    right = 0
    with torch.no_grad():
        for numbers in torch.arange(len(dev)).split(64):
            batch = _batch(dev, numbers.tolist())
            right += int((model(**batch).logits.argmax(1) == batch["labels"]).sum())
    return right / len(dev)


def _batch(rows: Rows, numbers: list[int]) -> dict[str, torch.Tensor]:
    ids_BT, mask_BT, labels = padded(rows, numbers, 0)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels}
