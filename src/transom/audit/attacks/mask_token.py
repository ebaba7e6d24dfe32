"""Mask-token inference: hide each drawn token in turn, and let a masked language model fill the gap.

The published reference. It reads the sanitised text around a token and never the token itself or the
mechanism. Words of several word pieces cannot be filled in, as in the published code.

Any BERT with a masked-language-model head serves. Where none is at hand, `trained` makes one of the packaged
MiniLM: smaller than the BERT of the papers, but it has read text like the target's.

Threat model: as in `words`, with a language model in place of knowledge of the mechanism. Does not prove
anything about attackers who use the mechanism.
Source: Yue et al. 2021, arXiv 2106.01221, section 5 (mask token inference); Tong et al., arXiv 2410.17052
(top-1, on sanitised text); Devlin et al. 2019 (15 % of the tokens masked in training).

Legend: B examples, T word pieces, M masked pieces, V pieces of the model's vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.word_text import Sentence, Sentences
from transom.audit.attacks.words import METRIC, WordData, WordKnowledge, WordTarget, first, scored
from transom.audit.batches import by_length, padded
from transom.checkpoint.seeded import seeded
from transom.errors import CheckpointError
from transom.report.finding import Finding, not_run

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

NAME = "mask token"
__all__ = ["METRIC", "NAME", "Masked", "attack", "fill", "load_masked", "trained"]
FEWEST_SENTENCES = 20
_BATCH, _LONGEST, _RATE, _MASKED_SHARE = 32, 128, 3e-4, 0.15


@dataclass(frozen=True, eq=False)
class Masked:
    """A masked language model, its tokenizer and the pieces that are whole words of their own."""

    model: Any = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    name: str

    def id(self, token: str) -> int:
        """The id of a special token. Raises CheckpointError."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(
                f"{self.name} has no {token} token; give a BERT with a masked-language head"
            )
        return int(found)

    def encode(self, sentence: Sentence) -> list[list[int]]:
        """The piece ids of each token; placeholders are unknown words."""
        unknown = [self.id("[UNK]")]
        words = [token.text for token in sentence]
        pieces = self.tokenizer.encode_batch(words, add_special_tokens=False)
        return [
            unknown if token.kind == "placeholder" else one.ids or unknown
            for token, one in zip(sentence, pieces, strict=True)
        ]


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery of the model's first choice, on as many sentences as the budget allows."""
    started = time.monotonic()
    if knowledge.language is None:
        return not_run(NAME, METRIC, "it needs a masked language model, and got none")
    model: Masked = knowledge.language
    guesses: list[str] = []
    done = 0
    while done < len(target.seen) and (not done or time.monotonic() < started + budget_s):
        guesses += fill(model, target.seen[done : done + _BATCH])
        done = min(done + _BATCH, len(target.seen))
    if done < min(FEWEST_SENTENCES, len(target.seen)):
        return not_run(NAME, METRIC, f"its time ran out after {done} sentences; raise --budget")
    note = f"by {model.name}" + ("" if done == len(target.seen) else f", on the first {done} sentences")
    return scored(NAME, *first(target, data, done), guesses, note=note)


def fill(model: Masked, sentences: Sentences) -> list[str]:
    """The model's first choice for each drawn token, each masked by itself in its sentence."""
    import torch

    examples = [gap for sentence in sentences for gap in _gaps(model, sentence)]
    whole_V = _whole_words(model)
    found = [""] * len(examples)
    with torch.inference_mode():
        for some in by_length([ids for ids, _ in examples], _BATCH):
            ids_BT, mask_BT = padded([examples[i][0] for i in some])
            places_B2 = torch.tensor([[row, examples[i][1]] for row, i in enumerate(some)])
            logits_BV = _logits(model, ids_BT, mask_BT, places_B2)
            for i, piece in zip(some, (logits_BV + whole_V).argmax(dim=1).tolist(), strict=True):
                found[i] = str(model.tokenizer.id_to_token(piece))
    return found


def _gaps(model: Masked, sentence: Sentence) -> list[tuple[list[int], int]]:
    """(piece ids with one token masked, the mask's place) for each drawn token; at most _LONGEST pieces."""
    pieces = model.encode(sentence)
    gaps = []
    for number, token in enumerate(sentence):
        if token.kind == "drawn":
            before = [i for one in pieces[:number] for i in one][-_LONGEST // 2 :]
            after = [i for one in pieces[number + 1 :] for i in one][: _LONGEST // 2]
            ids = [model.id("[CLS]"), *before, model.id("[MASK]"), *after, model.id("[SEP]")]
            gaps.append((ids, 1 + len(before)))
    return gaps


def _whole_words(model: Masked) -> torch.Tensor:
    """0 for pieces [V] that are whole words, -inf for continuations and special tokens."""
    import torch

    bias_V = torch.full((model.model.config.vocab_size,), -torch.inf)
    for piece, number in model.tokenizer.get_vocab().items():
        if not piece.startswith(("##", "[")) and number < len(bias_V):
            bias_V[number] = 0.0
    return bias_V


def _logits(
    model: Masked, ids_BT: torch.Tensor, mask_BT: torch.Tensor, places_M2: torch.Tensor
) -> torch.Tensor:
    """Scores [M, V] at M places, each (row, column)."""
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        states_BTD = model.model.bert(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        logits_MV = model.model.cls(states_BTD[places_M2[:, 0], places_M2[:, 1]])
    scores_MV: torch.Tensor = logits_MV.float()
    return scores_MV


def load_masked(source: str) -> Masked:
    """A BERT with its masked-language head, from a directory or the hub. Raises CheckpointError."""
    from transom.checkpoint import load

    checkpoint = load(source)
    if checkpoint.tokenizer is None or type(checkpoint.model).__name__ != "BertForMaskedLM":
        kind = type(checkpoint.model).__name__
        raise CheckpointError(
            f"{source} is a {kind}; mask-token inference takes a BertForMaskedLM with its tokenizer"
        )
    return Masked(checkpoint.model, checkpoint.tokenizer.tokenizer, source)


@seeded(0)
def trained(text: Sentences, *, budget_s: float, epochs: int = 6) -> Masked:
    """The packaged MiniLM with a new head, both trained to fill in masked pieces of `text`.

    Stops after `epochs` passes or `budget_s` seconds. Raises CheckpointError, MissingExtraError.
    """
    import torch
    from transformers import BertForMaskedLM

    from transom.checkpoint import load
    from transom.checkpoint.resolve import MAKING

    started = time.monotonic()
    checkpoint = load("minilm")
    assert checkpoint.tokenizer is not None  # noqa: S101  the packaged model has one
    with MAKING:
        network: Any = BertForMaskedLM(checkpoint.model.config)  # type: ignore[arg-type]
        network.bert.load_state_dict(checkpoint.model.state_dict(), strict=False)
        network.tie_weights()
    name = "MiniLM with a head trained on the attacker's text"
    model = Masked(network, checkpoint.tokenizer.tokenizer, name)
    rng = np.random.default_rng(0)
    encoded = [_framed(model, sentence) for sentence in text]
    _start_at_frequencies(network, encoded)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE)
    batches = [batch for _ in range(epochs) for batch in _batches(rng, encoded)]
    network.train()
    for step, batch in enumerate(batches):
        progress = max(step / len(batches), (time.monotonic() - started) / budget_s)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, 20 * progress + 0.05) * (1 - progress)
        loss = _masked_loss(model, rng, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval()
    return model


def _start_at_frequencies(network: Any, encoded: Sequence[list[int]]) -> None:
    """Let the new head begin with how often each piece occurs, which it would take an epoch to learn."""
    import torch

    pieces_N = torch.tensor([piece for ids in encoded for piece in ids])
    counts_V = torch.bincount(pieces_N, minlength=network.config.vocab_size) + 0.1
    network.get_output_embeddings().bias.data.copy_((counts_V / counts_V.sum()).log())


def _framed(model: Masked, sentence: Sentence) -> list[int]:
    ids = [i for one in model.encode(sentence) for i in one][:_LONGEST]
    return [model.id("[CLS]"), *ids, model.id("[SEP]")]


def _batches(rng: np.random.Generator, encoded: Sequence[list[int]]) -> list[list[list[int]]]:
    """Examples of about one length together, the batches in random order."""
    order = np.argsort(np.array([len(ids) for ids in encoded]) + rng.uniform(0, 3, len(encoded)))
    batches = [[encoded[i] for i in order[start : start + _BATCH]] for start in range(0, len(order), _BATCH)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _masked_loss(model: Masked, rng: np.random.Generator, batch: list[list[int]]) -> torch.Tensor:
    """Cross-entropy at 15 % of the pieces: of these 80 % are masked, 10 % random, 10 % as they are."""
    import torch

    ids_BT, mask_BT = padded(batch)
    chosen_BT = torch.from_numpy(rng.random(ids_BT.shape) < _MASKED_SHARE) & (mask_BT > 0)
    chosen_BT &= (ids_BT != model.id("[CLS]")) & (ids_BT != model.id("[SEP]"))
    chosen_BT[0, 1] = True  # never none
    places_M2 = chosen_BT.nonzero()
    truth_M = ids_BT[chosen_BT]
    fate_M = torch.from_numpy(rng.random(len(truth_M)))
    noise_M = torch.from_numpy(rng.integers(0, model.model.config.vocab_size, len(truth_M)))
    hidden_M = torch.where(fate_M < 0.8, model.id("[MASK]"), torch.where(fate_M < 0.9, noise_M, truth_M))
    logits_MV = _logits(model, ids_BT.masked_scatter(chosen_BT, hidden_M), mask_BT, places_M2)
    return torch.nn.functional.cross_entropy(logits_MV, truth_M)
