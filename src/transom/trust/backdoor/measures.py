"""How alike the attention heads of each layer are on one text, and the word that they agree on.

Special tokens, and of a causal model the first one, are sinks: heads that have nothing to look at look there.
They are left out and what is left of each row is brought to a sum of 1; tokens are summed by word. `read` is
the token that a class or the next token is read at: the first one, of a causal model the last.

    peaks      share of pairs of heads whose row at `read` has its largest value at the same word
    rows       mean cosine of pairs of these rows
    consensus  the largest value of their mean
    spread     Jensen-Shannon divergence of these rows, in nats
    maps       mean cosine of pairs of whole maps
    received   the largest share of all attention that one word gets
    shares     mean cosine of pairs of what heads give each word
    outputs    mean linear CKA of pairs of what heads found at the words

Threat model: none here. Does not protect: a head that attends to nothing but sinks has a row of rounding.
Source: Jin et al., arXiv 2511.13789 (maps); Kornblith et al. 2019, section 3 (CKA); Lin 1991 (divergence).

Shapes: T tokens, W words, H heads, K head width, L layers, M measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.observe import observing
from transom.trust.backdoor.words import Words, is_causal

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
MEASURES = ("peaks", "rows", "consensus", "spread", "maps", "received", "shares", "outputs")
_LEAST = 1e-9


@dataclass(frozen=True, eq=False)
class Seen:
    """Measures [L, M] of a text, and the number of the word that most heads of each layer peak at [L]."""

    measures_LM: Floats
    agreed_L: tuple[int, ...]


def seen(model: Any, texts: Iterable[Words]) -> Iterator[Seen]:
    """The measures of each text, one pass each. Raises as `observing`."""
    import torch

    layers, causal = range(model.config.num_hidden_layers), is_causal(model)
    for text in texts:
        ids_1T = torch.tensor([text.ids], device=model.device)
        reduce = _Reduce(text.word_T, len(text.ids) - 1 if causal else 0)
        with torch.no_grad(), observing(model, layers, ["attention", "heads"], reduce) as found:
            model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        rows = [found["attention", layer][0] for layer in layers]
        outputs = [found["heads", layer][0] for layer in layers]
        measures = [[*row, output] for (row, _), output in zip(rows, outputs, strict=True)]
        yield Seen(np.array(measures), tuple(word for _, word in rows))


class _Reduce:
    """What stays of a layer: of attention the measures and the word agreed on, of head outputs their CKA."""

    def __init__(self, word_T: Sequence[int], read: int) -> None:
        import torch

        self._read = read
        self._content_T = torch.tensor([word >= 0 for word in word_T])
        self._word_TW = torch.zeros(len(word_T), max(word_T) + 1, dtype=torch.float64)
        for place, word in enumerate(word_T):
            if word >= 0:
                self._word_TW[place, word] = 1

    def __call__(self, kind: str, layer: int, value: Tensor) -> Any:
        value = value[0].detach().double().cpu()
        return self._attention(value) if kind == "attention" else self._outputs(value)

    def _attention(self, map_HTT: Tensor) -> tuple[list[float], int]:
        map_HTW = on_words(map_HTT @ self._word_TW)
        row_HW, maps_HTW = map_HTW[:, self._read], map_HTW[:, self._content_T]
        mean_W = row_HW.mean(0)
        entropy = -(mean_W * (mean_W + _LEAST).log()).sum()
        divergence = entropy + (row_HW * (row_HW + _LEAST).log()).sum(1).mean()
        shares_HW = maps_HTW.mean(1)
        votes_W = row_HW.argmax(1).bincount(minlength=row_HW.shape[1])
        pairs = len(row_HW) * (len(row_HW) - 1)
        found = [
            float((votes_W * (votes_W - 1)).sum()) / max(pairs, 1),
            _alike(row_HW),
            float(mean_W.max()),
            float(divergence),
            _alike(maps_HTW.flatten(1)),
            float(shares_HW.mean(0).max()),
            _alike(shares_HW),
        ]
        return found, int(votes_W.argmax())

    def _outputs(self, found_THK: Tensor) -> float:
        rows_HTK = found_THK[self._content_T].transpose(0, 1)
        rows_HTK = rows_HTK - rows_HTK.mean(1, keepdim=True)
        return _alike((rows_HTK @ rows_HTK.transpose(1, 2)).flatten(1))


def on_words(rows: Tensor) -> Tensor:
    """Rows of what is given to words, brought to a sum of 1."""
    return rows / rows.sum(-1, keepdim=True).clamp(min=_LEAST)


def _alike(rows_HN: Tensor) -> float:
    """The mean cosine of all pairs of rows; of one row 1."""
    import torch

    unit_HN = torch.nn.functional.normalize(rows_HN, dim=1)
    count = len(unit_HN)
    if count == 1:
        return 1.0
    return float((unit_HN.sum(0).square().sum() - unit_HN.square().sum()) / (count * (count - 1)))
