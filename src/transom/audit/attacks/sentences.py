"""Sentence embeddings: a public encoder, what a host or a vector store sees, and how a reading is scored.

An embedding is the mean of a BERT's last states, of length 1, as the sentence-transformers library makes it;
what is seen may be that plus noise. A reading is scored by the words that it shares with the sentence, each
counted once, as Song and Raghunathan do: precision and recall over all sentences, and their harmonic mean.

Threat model: the attacker has the embeddings, the public encoder, and text of its own that is like the
sentences. Does not protect anything.
Source: Song and Raghunathan 2020, arXiv 2004.00053, section 3; Reimers and Gurevych 2019, arXiv 1908.10084.

Shapes: N sentences, B texts, T tokens, D width, E width of the encoder's table, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.rows import NO_NOISE, Noise, Truth, examples
from transom.audit.attacks.traffic import Texts
from transom.audit.batches import by_length, padded
from transom.checkpoint.walk import walk
from transom.errors import MisconfiguredError, extra
from transom.report.finding import Finding, measured, not_run
from transom.report.statistics import Ints, clustered_interval

if TYPE_CHECKING:
    import torch

    from transom.checkpoint import Checkpoint

METRIC = "token F1"
_BATCH = 64


@dataclass(frozen=True)
class Encoder:
    """A BERT and the ids that it stands before and after every text."""

    model: Any
    ends: tuple[int, int]

    @property
    def width(self) -> int:
        """D, of an embedding."""
        return int(self.model.config.hidden_size)

    @property
    def table_VE(self) -> torch.Tensor:
        """The encoder's own embedding of tokens."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight
        return weight.detach()

    def embed(self, texts: Texts) -> torch.Tensor:
        """[B, D], of length 1, float32."""
        import torch

        made_BD = torch.empty(len(texts), self.width)
        before, after = self.ends
        for numbers in by_length(texts, _BATCH):
            ids_BT, seen_BT = padded([(before, *texts[number], after) for number in numbers])
            with torch.inference_mode():
                states_BTD = self.model(input_ids=ids_BT, attention_mask=seen_BT)[0].float()
            sums_BD = (states_BTD * seen_BT[..., None]).sum(1)
            made_BD[numbers] = torch.nn.functional.normalize(sums_BD, dim=1)
        return made_BD

    def pull(self, text: tuple[int, ...], goal_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How the likeness to `goal_D` moves with each token's embedding [T, E], and those embeddings."""
        import torch

        before, after = self.ends
        rows_TE = self.table_VE[torch.tensor([before, *text, after])].requires_grad_(True)
        states_TD = self.model(inputs_embeds=rows_TE[None])[0][0].float()
        like = torch.nn.functional.normalize(states_TD.mean(0), dim=0) @ goal_D
        (slope_TE,) = torch.autograd.grad(like, rows_TE)
        return slope_TE[1:-1].float(), rows_TE[1:-1].detach().float()


def encoder_of(checkpoint: Checkpoint) -> Encoder:
    """The encoder in a loaded checkpoint. Raises MisconfiguredError unless it is a BERT with a tokenizer."""
    ends = [] if checkpoint.tokenizer is None else checkpoint.tokenizer.tokenizer.encode("").ids
    if checkpoint.model.config.model_type != "bert" or len(ends) != 2:
        kind = checkpoint.model.config.model_type
        raise MisconfiguredError(f"{checkpoint.source.name} ({kind}) is no sentence encoder; give a BERT's")
    return Encoder(walk(checkpoint.model).trunk, (ends[0], ends[1]))


@dataclass(frozen=True)
class Sentences:
    """The target: embeddings [N, D], and the noise in them as far as it is known."""

    values_ND: torch.Tensor
    noise: Noise = NO_NOISE


@dataclass(frozen=True)
class Public:
    """What the attacker brings: the encoder, and ids of its own texts."""

    encoder: Encoder
    texts: Texts


def misfit(name: str, target: Sentences, knowledge: Public, data: Truth) -> Finding | None:
    """A finding "not run" where embeddings, encoder, texts and truth do not belong together."""
    values, width = target.values_ND, knowledge.encoder.width
    if values.ndim != 2 or values.shape[1] != width:
        return not_run(name, METRIC, f"embeddings are {tuple(values.shape)}, the encoder makes [N, {width}]")
    if not len(values) or len(values) != len(data.texts) or not all(data.texts):
        return not_run(name, METRIC, f"{len(values)} embeddings, {len(data.texts)} sentences of truth")
    if not bool(values.isfinite().all()):
        return not_run(name, METRIC, "some embeddings are not finite")
    if len(knowledge.texts) < 2:
        return not_run(name, METRIC, "no text to learn words from; give the attacker text of its own")
    return None


def overlap(guesses: Texts, plain: Texts) -> Ints:
    """[N, 3]: words shared, words guessed, words there; each word of a sentence counted once."""
    pairs = ((set(guess), set(text)) for guess, text in zip(guesses, plain, strict=True))
    return np.array([(len(a & b), len(a), len(b)) for a, b in pairs], dtype=np.int64)


def f1(counts_N3: Ints) -> float:
    """The harmonic mean of precision and recall over all sentences."""
    shared, guessed, there = counts_N3.sum(axis=0)
    return float(2 * shared / (guessed + there))


def score(name: str, guesses: Texts, data: Truth, *, note: str) -> Finding:
    """F1 of the words named, interval over sentences; chance deals the same guesses out at random."""
    counts_N3 = overlap(guesses, data.texts)
    shared, guessed, there = counts_N3.sum(axis=0)
    return measured(
        name,
        METRIC,
        f1(counts_N3),
        clustered_interval(2 * counts_N3[:, 0], counts_N3[:, 1] + counts_N3[:, 2]),
        baseline=_dealt(guesses, data.texts),
        n=len(guesses),
        note=f"{note}; precision {shared / max(1, guessed):.2f}, recall {shared / there:.2f}",
        examples=examples(guesses, data, "an embedding"),
    )


def _dealt(guesses: Texts, plain: Texts) -> float:
    """F1 over all pairs of a guess and a sentence."""
    size = max(max(text, default=0) for text in (*guesses, *plain)) + 1
    guess_V, plain_V = np.zeros(size), np.zeros(size)
    for counts_V, texts in ((guess_V, guesses), (plain_V, plain)):
        for text in texts:
            counts_V[list(set(text))] += 1
    return float(2 * guess_V @ plain_V / len(plain) / (guess_V.sum() + plain_V.sum()))


def computes_in_bfloat16() -> bool:
    """Whether this processor does, several times faster than in float32. Raises MissingExtraError."""
    with extra("models", "torch"):
        import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.7
    return bool(capabilities is not None and capabilities().get("avx512_bf16"))


def faster(encoder: Encoder) -> Encoder:
    """The encoder in bfloat16, where this processor computes in it; a search ranks texts just as well."""
    import torch

    if not computes_in_bfloat16():
        return encoder
    return Encoder(copy.deepcopy(encoder.model).to(torch.bfloat16), encoder.ends)
