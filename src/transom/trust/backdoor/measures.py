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

Shapes: T tokens, C of them of words, W words, H heads, K head width, L layers, M measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.observe import observing
from transom.trust.backdoor.words import Words
from transom.trust.prompt import is_causal

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
MEASURES = ("peaks", "rows", "consensus", "spread", "maps", "received", "shares", "outputs")
_LEAST = 1e-9
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, eq=False)
class Seen:
    """Measures [L, M] of a text, and the number of the word that most heads of each layer peak at [L]."""

    measures_LM: Floats
    agreed_L: tuple[int, ...]


def seen(model: Any, texts: Iterable[Words]) -> Iterator[Seen]:
    """The measures of each text, one pass each. Raises as `observing`."""
    import torch

    def one(text: Words) -> Seen | None:
        ids_1T = torch.tensor([text.ids], device=model.device)
        forward = partial(model, input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        with torch.no_grad():
            return seen_in(model, forward, lambda: text)[1]

    return filter(None, map(one, texts))


def seen_in(
    model: Any, forward: Callable[[], _Answer], text: Callable[[], Words | None]
) -> tuple[_Answer, Seen | None]:
    """What one pass over one text returns, and the text's measures. `text` is asked in the first block, when
    ids have been looked up, and None leaves it unmeasured. Raises as `observing`."""
    layers, causal = range(model.config.num_hidden_layers), is_causal(model)
    asked: list[_Reduce | None] = []

    def reduce(kind: str, layer: int, value: Tensor) -> Any:
        if not asked:
            words = text()
            read = 0 if words is None or not causal else len(words.ids) - 1
            asked.append(None if words is None else _Reduce(words.word_T, read))
        return None if asked[0] is None else asked[0](kind, layer, value)

    with observing(model, layers, ["attention", "heads"], reduce) as found:
        answer = forward()
    if not found:
        return answer, None
    rows = [found["attention", layer][0] for layer in layers]
    outputs = [found["heads", layer][0] for layer in layers]
    measures = [[*row, output] for (row, _), output in zip(rows, outputs, strict=True)]
    return answer, Seen(np.array(measures), tuple(word for _, word in rows))


class _Reduce:
    """What stays of a layer: of attention the measures and the word agreed on, of head outputs their CKA."""

    def __init__(self, word_T: Sequence[int], read: int) -> None:
        import torch

        self._read = read
        self._content_T = torch.tensor([word >= 0 for word in word_T])
        self._word_C = torch.tensor([word for word in word_T if word >= 0])
        self._words = max(word_T) + 1

    def __call__(self, kind: str, layer: int, value: Tensor) -> Any:
        value = value[0].detach().double().cpu()
        return self._attention(value) if kind == "attention" else self._outputs(value)

    def _attention(self, map_HTT: Tensor) -> tuple[list[float], int]:
        found_HTC = map_HTT[:, :, self._content_T]
        map_HTW = on_words(
            found_HTC.new_zeros(*found_HTC.shape[:2], self._words).index_add_(2, self._word_C, found_HTC)
        )
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
    count = len(rows_HN)
    if count == 1:
        return 1.0
    products_HH = rows_HN @ rows_HN.T
    sizes_H = products_HH.diagonal().sqrt().clamp(min=1e-12)
    cosines_HH = products_HH / (sizes_H[:, None] * sizes_H)
    return float((cosines_HH.sum() - cosines_HH.trace()) / (count * (count - 1)))
