"""The attacks on sentence embeddings of Song and Raghunathan 2020, arXiv 2004.00053, as their code sets them.

Settings are those of the authors' published code (github.com/google/embedding-tests, inversion_bert.py and
invert/models.py): Adam at 1e-3, kernels shrunk by 1e-4 a step, dropout 0.25, batches of 32, 30 epochs,
margins off; a word is there when its classifier says more than one half (MLC); 16 words named one after
another by an LSTM of 512 units, which learns from its own choices (MSP); a least-squares map from the
embedding to the mean of the words' own embeddings, and then 16 relaxed words, a softmax at temperature 0.01
over the whole vocabulary, moved for 1,000 steps until that mean is met (white box).

Two liberties, both to their advantage: embeddings of length 1 are scaled to coordinates of variance about 1,
as the BERT states are for which those settings were chosen; MLC and MSP choose among the words of the
training texts only.

Shapes: N texts, B a batch, D width, U words of the training texts and one that ends, E width of the
encoder's table, V vocabulary, T places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from transom.audit.attacks.sentences import Encoder

Texts = tuple[tuple[int, ...], ...]
Words = NDArray[np.int64]

SCALE = 20.0
EPOCHS, ITERATIONS = 30, 1000
_STEPS, _UNITS, _BATCH = 16, 512, 32
_LEARNING_RATE, _SHRINK, _DROPOUT = 1e-3, 1e-4, 0.25
_TEMPERATURE = 1e-2


def multi_label(train: Texts, made_ND: torch.Tensor, goal_ND: torch.Tensor, epochs: int) -> Texts:
    """MLC: a linear classifier for each word."""
    torch.manual_seed(0)
    words_U = _words(train)
    linear = torch.nn.Linear(made_ND.shape[1], len(words_U))
    torch.nn.init.xavier_uniform_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimiser = torch.optim.Adam(linear.parameters(), lr=_LEARNING_RATE)
    for values_BD, there_BU in _batches(train, made_ND, words_U, epochs):
        logits_BU = linear(torch.nn.functional.dropout(values_BD, _DROPOUT))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_BU, there_BU, reduction="sum")
        _step(optimiser, loss / len(values_BD), [linear.weight])
    with torch.inference_mode():
        named_NU = linear(goal_ND * SCALE) > 0
    return tuple(tuple(words_U[row.numpy()].tolist()) for row in named_NU)


def multi_set(train: Texts, made_ND: torch.Tensor, goal_ND: torch.Tensor, epochs: int) -> Texts:
    """MSP: a recurrent network names words; the loss at each step is that of all words not named yet."""
    torch.manual_seed(0)
    words_U = np.concatenate([[0], _words(train)])  # its first word ends a set
    net = _Namer(made_ND.shape[1], len(words_U))
    optimiser = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
    for values_BD, left_BU in _batches(train, made_ND, words_U, epochs):
        losses = []
        for logits_BU, named_B in net.steps(values_BD, _DROPOUT):
            left_BU = left_BU.scatter(1, named_B[:, None], 0.0)
            losses.append(-(logits_BU.log_softmax(1) * left_BU).sum(1).mean())
        _step(
            optimiser, torch.stack(losses).mean(), [net.first.weight, net.cell.weight_ih, net.cell.weight_hh]
        )
    with torch.inference_mode():
        named_NT = torch.stack([named_N for _, named_N in net.steps(goal_ND * SCALE, 0.0)], 1)
    return tuple(_until_end(row, words_U) for row in named_NT.tolist())


class _Namer(torch.nn.Module):
    """From embeddings [B, D] to a word a step."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(width, _UNITS, bias=False)
        self.cell = torch.nn.LSTMCell(_UNITS, _UNITS)
        self.table_UH = torch.nn.Parameter(torch.empty(words, _UNITS).uniform_(-0.1, 0.1))
        for weight in (self.first.weight, self.cell.weight_ih):
            torch.nn.init.xavier_uniform_(weight)
        torch.nn.init.orthogonal_(self.cell.weight_hh)
        torch.nn.init.zeros_(self.cell.bias_hh)
        torch.nn.init.zeros_(self.cell.bias_ih)
        self.cell.bias_ih.data[_UNITS : 2 * _UNITS] = 1.0  # remember, at first

    def steps(self, values_BD: torch.Tensor, dropout: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits [B, U] and the word chosen [B], at each step."""
        seen_BH, state = self.first(values_BD), None
        for _ in range(_STEPS):
            state = self.cell(torch.nn.functional.dropout(seen_BH, dropout, training=dropout > 0), state)
            logits_BU = state[0] @ self.table_UH.T
            named_B = logits_BU.argmax(1)
            yield logits_BU, named_B
            seen_BH = self.table_UH[named_B]


def white_box(
    encoder: Encoder,
    train: Texts,
    made_ND: torch.Tensor,
    goal_ND: torch.Tensor,
    iterations: int,
) -> Texts:
    """The words whose mean embedding is what the embedding is mapped to."""
    table_VE = encoder.table_VE.float()
    before, after = encoder.ends
    means_NE = torch.stack([table_VE[torch.tensor([before, *text, after])].mean(0) for text in train])
    bare_ND = torch.cat([made_ND, torch.ones(len(made_ND), 1)], 1)
    mapping_DE = torch.linalg.lstsq(bare_ND, means_NE).solution
    mapped_NE = torch.cat([goal_ND, torch.ones(len(goal_ND), 1)], 1) @ mapping_DE
    parts = mapped_NE.split(_BATCH)
    ends = torch.tensor(encoder.ends)
    return tuple(text for goal_BE in parts for text in _relaxed(goal_BE, table_VE, ends, iterations))


def _relaxed(goal_BE: torch.Tensor, table_VE: torch.Tensor, ends: torch.Tensor, iterations: int) -> Texts:
    draw = torch.Generator().manual_seed(0)
    logits_BTV = torch.empty(len(goal_BE), _STEPS, len(table_VE)).uniform_(-0.1, 0.1, generator=draw)
    logits_BTV[..., ends] = -1e9
    logits_BTV.requires_grad_(True)
    optimiser = torch.optim.Adam([logits_BTV], lr=_LEARNING_RATE)
    frame_E = table_VE[ends].sum(0)
    before = float("inf")
    for number in range(1, iterations + 1):
        words_BTE = (logits_BTV / _TEMPERATURE).softmax(-1) @ table_VE
        loss = ((words_BTE.sum(1) + frame_E) / (_STEPS + 2) - goal_BE).square().sum()
        _step(optimiser, loss, [])
        if number % (iterations // 10) == 0 and loss.item() > before:
            break
        before = loss.item()
    return tuple(map(tuple, logits_BTV.detach().argmax(-1).tolist()))


def _words(texts: Texts) -> Words:
    return np.unique([token for text in texts for token in text])


def _batches(
    texts: Texts, made_ND: torch.Tensor, words_U: Words, epochs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scaled embeddings [B, D] and the words there [B, U], in a new order each epoch."""
    draw = np.random.default_rng(0)
    places = [torch.from_numpy(np.searchsorted(words_U, sorted(set(text)))) for text in texts]
    for _ in range(epochs):
        order = draw.permutation(len(texts))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            there_BU = torch.zeros(len(rows), len(words_U))
            for there_U, row in zip(there_BU, rows, strict=True):
                there_U[places[row]] = 1.0
            yield made_ND[torch.from_numpy(rows)] * SCALE, there_BU


def _step(
    optimiser: torch.optim.Optimizer, loss: torch.Tensor, kernels: Sequence[torch.nn.Parameter]
) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    for kernel in kernels:
        kernel.data.mul_(1 - _SHRINK)


def _until_end(row: Sequence[int], words_U: Words) -> tuple[int, ...]:
    """The words of one set, up to the one that ends it."""
    kept = row[: row.index(0)] if 0 in row else row
    return tuple(int(words_U[number]) for number in dict.fromkeys(kept))
