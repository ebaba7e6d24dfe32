"""A language model as its client uses it: text in, answers and likelihoods out, through a token map or plain.

Threat model: none of its own; the map is what the modes obfuscated and words+obfuscated put between client
and host. Does not measure an engine's own arithmetic: the model runs here, in one process.
Source: own design; the obfuscated copy is that of Lin et al., arXiv 2603.01499, made in memory.

Legend: B batch, T tokens, V vocabulary, K choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks import own_keys
from transom.audit.batches import by_length, padded
from transom.checkpoint.answers import answers_of
from transom.errors import MisconfiguredError
from transom.obfuscation.calibrate import TEXT
from transom.obfuscation.keys import Settings
from transom.obfuscation.plan import loadable_h
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

_BATCH = 24  # prompts answered together


@dataclass(frozen=True, eq=False)
class Answerer:
    """A causal model of transformers, its tokenizer, and `hidden_V`: the model's id of each plain id."""

    model: Any = field(repr=False)
    tokenizer: ChatTokenizer = field(repr=False)
    hidden_V: NDArray[np.int64] = field(repr=False)

    def next_log_probabilities(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """log P [B, V] of the token after each prompt, by plain id."""
        rows = [self.tokenizer.encode_text(prompt).ids for prompt in prompts]
        found_BV = np.empty((len(rows), len(self.hidden_V)), dtype=np.float32)
        for batch in by_length(rows, _BATCH):
            last = [len(rows[i]) - 1 for i in batch]
            # Padding on the right is never attended to by what stands before it.
            state_BTD = self._trunk([rows[i] for i in batch]).last_hidden_state
            log_p_BV = self._log_probabilities(state_BTD[range(len(batch)), last])
            found_BV[batch] = log_p_BV.cpu().numpy()[:, self.hidden_V]
        return found_BV

    def log_likelihoods(self, prompt: str, choices: Sequence[str]) -> NDArray[np.float64]:
        """log P [K] of each choice as the continuation of the prompt, up to a constant common to all.

        What all choices begin with is read once. Raises MisconfiguredError for an empty prompt or choice.
        """
        rows = [self.tokenizer.encode_text(prompt + choice).ids for choice in choices]
        columns = enumerate(zip(*rows, strict=False))
        alike = next((place for place, column in columns if len(set(column)) > 1), min(map(len, rows)))
        shared = min(alike, min(map(len, rows)) - 1)
        if shared < 1:
            raise MisconfiguredError(f"need a prompt and choices that are not empty, got {len(rows)} choices")
        read = self._trunk([rows[0][:shared]], use_cache=True)
        first_V = self._log_probabilities(read.last_hidden_state[0, -1])
        scores_K: NDArray[np.float64] = (
            first_V[self.hidden_V[[row[shared] for row in rows]]].double().cpu().numpy()
        )
        longer = [k for k, row in enumerate(rows) if len(row) > shared + 1]
        if longer:
            read.past_key_values.batch_repeat_interleave(len(longer))
            scores_K[longer] += self._tail_scores([rows[k][shared:] for k in longer], read.past_key_values)
        return scores_K

    def respond(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """The greedy answer to each prompt, as one message of a chat where the model has a template."""
        encoded = [self._encode_message(prompt) for prompt in prompts]
        answers = [""] * len(encoded)
        for batch in by_length(encoded, _BATCH):
            for i, answer in zip(batch, self._generate([encoded[i] for i in batch], max_tokens), strict=True):
                answers[i] = answer
        return answers

    def _encode_message(self, prompt: str) -> tuple[int, ...]:
        if self.tokenizer.has_template:
            return self.tokenizer.encode_chat([("user", prompt)]).ids
        return self.tokenizer.encode_text(prompt).ids

    def _generate(self, rows: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        stops = [int(self.hidden_V[i]) for i in self.tokenizer.eos_ids]
        hidden = [tuple(self.hidden_V[list(row)].tolist()) for row in rows]
        plain_V = np.argsort(self.hidden_V)
        answers = answers_of(self.model, hidden, stops, most_tokens=max_tokens, at_once=_BATCH)
        return [self._decode(plain_V[list(row)]) for row in answers]

    def _decode(self, ids_T: NDArray[np.int64]) -> str:
        ids = ids_T.tolist()
        end = min((ids.index(stop) for stop in self.tokenizer.eos_ids if stop in ids), default=len(ids))
        decoder = self.tokenizer.detokenizer()
        return decoder.feed(ids[:end]) + decoder.close()

    def _tail_scores(self, tails: Sequence[Sequence[int]], cache: Any) -> NDArray[np.float64]:
        """log P [K] of each tail after its first id, given the cache and that id."""
        state_KTD = self._trunk([row[:-1] for row in tails], past_key_values=cache).last_hidden_state
        scores_K = np.empty(len(tails))
        for k, (row, state_TD) in enumerate(zip(tails, state_KTD, strict=True)):
            log_p_TV = self._log_probabilities(state_TD[: len(row) - 1])
            scores_K[k] = float(log_p_TV[range(len(row) - 1), self.hidden_V[list(row[1:])]].double().sum())
        return scores_K

    def _trunk(self, rows: Sequence[Sequence[int]], **options: Any) -> Any:
        """The model below its head, on rows of plain ids, padded on the right."""
        import torch

        with torch.inference_mode():
            return self.model.base_model(input_ids=self._tensor(padded(rows)[0]), **options)

    def _log_probabilities(self, state_D: Any) -> Any:
        """log P [..., V] by the model's own ids after states [..., D]."""
        import torch

        with torch.inference_mode():
            return self.model.get_output_embeddings()(state_D).log_softmax(-1)

    def _tensor(self, plain_BT: Any) -> Any:
        import torch

        return torch.from_numpy(self.hidden_V[plain_BT.numpy()]).to(self.model.device)


def load_answerer(source: str | Path, *, device: str = "cpu") -> Answerer:
    """A model with its tokenizer from wherever checkpoints are found, in float32.

    Raises CheckpointError, NotYetError, MissingExtraError.
    """
    from transom.checkpoint.load import load

    model = load(source, device=device).model
    return Answerer(model, load_tokenizer(source), np.arange(model.config.vocab_size))


def obfuscated(plain: Answerer, secret: bytes, settings: Settings) -> Answerer:
    """An obfuscated copy behind its token map; `settings.h` becomes the nearest that can be loaded.

    Raises NotYetError for an architecture that has no plan.
    """
    config = plain.model.config.to_dict() | {"architectures": [type(plain.model).__name__]}
    settings = replace(settings, h=loadable_h(config, settings.h, "transformers"))
    ids_T = np.array(plain.tokenizer.encode_text(TEXT).ids)
    wide, hidden_V = own_keys.obfuscated(plain.model, settings, secret, ids_T)
    return Answerer(wide.requires_grad_(False), plain.tokenizer, hidden_V)
