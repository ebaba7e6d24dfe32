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

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.families import family_of
from transom.checkpoint.observe import observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError, NotYetError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from torch import Tensor

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
MEASURES = ("peaks", "rows", "consensus", "spread", "maps", "received", "shares", "outputs")
_LEAST = 1e-9
_FEWEST_WORDS = 3  # with fewer, heads can hardly disagree


@dataclass(frozen=True, eq=False)
class Words:
    """A text as the model reads it: ids, the number of the word of each token (-1: none), and the words."""

    ids: tuple[int, ...]
    word_T: tuple[int, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """Measures [L, M] of a text, and the number of the word that most heads of each layer peak at [L]."""

    measures_LM: Floats
    agreed_L: tuple[int, ...]


def words_of(tokenizer: TokenizerFiles, text: str, *, causal: bool, most_tokens: int) -> Words:
    """The words of a text, those beyond `most_tokens` tokens left out. Raises MisconfiguredError for one of
    fewer than three words."""
    found = tokenizer.tokenizer.encode(text)
    word_T: list[int] = []
    words: dict[int, str] = {}
    numbered = zip(_numbers(found, text), found.offsets, found.special_tokens_mask, strict=True)
    for place, (word, (start, end), special) in enumerate(numbered):
        sink = word is None or word < 0 or special or (causal and place == 0)
        word_T.append(-1 if sink or word is None else word)
        if not sink and word is not None:
            words[word] = words.get(word, "") + text[start:end]
    ids = found.ids
    if len(ids) > most_tokens:  # the last ones stay where they are special, as [SEP] is
        after = sum(one == -1 for one in reversed(word_T[-1:]))
        ids = ids[: most_tokens - after] + ids[len(ids) - after :]
        word_T = word_T[: most_tokens - after] + word_T[len(word_T) - after :]
    kept = sorted({word for word in word_T if word >= 0})
    if len(kept) < _FEWEST_WORDS:
        raise MisconfiguredError(
            f"a text has {len(kept)} words; heads are compared on {_FEWEST_WORDS} or more"
        )
    number = {word: place for place, word in enumerate(kept)}
    return Words(
        tuple(ids),
        tuple(number.get(word, -1) for word in word_T),
        tuple(words[word].strip() for word in kept),
    )


def _numbers(found: Encoding, text: str) -> list[int | None]:
    """The number of each token's word. A tokenizer that does not divide a text first, as SentencePiece's,
    takes it all for one word: then words are what stands between spaces."""
    if len({one for one in found.word_ids if one is not None}) > 1:
        return list(found.word_ids)
    starts = [one.start() for one in re.finditer(r"\S+", text)]
    return [
        None if special else bisect_left(starts, end) - 1
        for (_, end), special in zip(found.offsets, found.special_tokens_mask, strict=True)
    ]


def is_causal(model: Any) -> bool:
    """Whether it reads at the last token. Raises NotYetError for an architecture that is not known."""
    family = family_of({"model_type": model.config.model_type})
    if family is None:
        raise NotYetError(f"the heads of a {model.config.model_type!r} model are not known")
    return family.causal


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
        map_HTW = _shares(map_HTT @ self._word_TW)
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


def _shares(rows: Tensor) -> Tensor:
    return rows / rows.sum(-1, keepdim=True).clamp(min=_LEAST)


def _alike(rows_HN: Tensor) -> float:
    """The mean cosine of all pairs of rows; of one row 1."""
    import torch

    unit_HN = torch.nn.functional.normalize(rows_HN, dim=1)
    count = len(unit_HN)
    if count == 1:
        return 1.0
    return float((unit_HN.sum(0).square().sum() - unit_HN.square().sum()) / (count * (count - 1)))
