"""Which inputs look as if they carried a trigger: with which the model does what it does with no trusted one
(`usual`).

Threat model: see the room. A flag is a suspicion; the word that heads agree on says what to look at.
Does not protect: inputs of fewer than three words are not scored, and said to be so; what stands beyond
`most_tokens` is not seen.
Source: `measures`, `normal`, `usual`, `answers`.

Shapes: N texts, L layers, M measures, K states of a text, D model width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from transom.checkpoint.observe import observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.backdoor.answers import BEGUN, SEARCHED, Speaker
from transom.trust.backdoor.measures import Seen, seen, seen_in
from transom.trust.backdoor.normal import FEWEST, Normal, fit
from transom.trust.backdoor.usual import Look, Usual, held_of, usual
from transom.trust.backdoor.words import Words, with_run, words_of
from transom.trust.prompt import PLAIN, Frame, generates, is_causal

MOST_TOKENS = 256
_SHOWN = 40  # characters of a word


@dataclass(frozen=True)
class Scanned:
    """One input by its number, from 1: its statistic, the share of trusted texts that reach it, whether it
    is flagged, and the word that most heads of the last layer look at. Of one that was not scored `reason`
    says why."""

    row: int
    statistic: float | None = None
    p_value: float | None = None
    flagged: bool = False
    word: str = ""
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Trusted:
    """What is usual, the prompts that answers are held against, and how many texts were read."""

    usual: Usual
    speaker: Speaker | None
    texts: int


@dataclass(frozen=True)
class Scanner:
    """Scans texts for a model, each in `frame`. `heard` is called after each text that was read."""

    model: Any
    tokenizer: TokenizerFiles
    frame: Frame = PLAIN
    heard: Callable[[], None] = bool  # type: ignore[assignment]

    def normal(self, trusted: Sequence[str]) -> Normal:
        """What is usual of heads; a text that stands there again counts once. Raises MisconfiguredError for
        too few texts of three words and more."""
        words = self.distinct(trusted)
        measures_NLM = np.array([one.measures_LM for one in self._seen(words)])
        return fit(measures_NLM, [len(one.ids) for one in words])

    def trust(self, trusted: Sequence[str]) -> Trusted:
        """What is usual of all that is looked at, as `normal`."""
        words, speaker = self.distinct(trusted), None
        count = len(words)
        if generates(self.model):
            if count < FEWEST + SEARCHED:
                raise MisconfiguredError(
                    f"{count} trusted texts are too few to say what is usual; give {FEWEST + SEARCHED} or "
                    "more, of which answers are held against some"
                )
            prompts = sorted(words, key=lambda one: len(one.ids))[:SEARCHED]
            words = [one for one in words if one not in prompts]
            ends = frozenset(self.tokenizer.eos_ids)
            speaker = Speaker(self.model, (), [one.ids for one in prompts], (), ends)
        look, _ = self._looked(words, speaker)
        disturbed, _ = self._looked(self._disturbed(words), speaker)
        return Trusted(usual(look, disturbed), speaker, count)

    def _disturbed(self, words: Sequence[Words]) -> list[Words]:
        """Held-out texts with words of others, where they have room."""
        draw = random.Random(0)
        held = [words[place] for place in held_of(len(words))]
        made = [with_run(one, draw.choice(words), draw) for one in held]
        return [
            new if len(new.ids) <= self._most_tokens else old for old, new in zip(held, made, strict=True)
        ]

    def distinct(self, texts: Sequence[str]) -> list[Words]:
        """Texts of three words and more, each once."""
        return list({one.ids: one for one in map(self._words, texts) if isinstance(one, Words)}.values())

    def scan(self, trusted: Trusted, texts: Sequence[str], rate: float) -> list[Scanned]:
        """Each text in order; one is flagged where at most the share `rate` of trusted texts is as far."""
        least = 1 / (1 + len(trusted.usual.held[0]))
        if not least <= rate < 1:
            raise MisconfiguredError(
                f"a false-positive rate of {rate:g} cannot be told by {len(trusted.usual.held[0])} held-out "
                f"texts; give more trusted texts, or a rate of at least {least:.2g}"
            )
        return [self._scanned(trusted, row, text, rate) for row, text in enumerate(texts, 1)]

    def _scanned(self, trusted: Trusted, row: int, text: str, rate: float) -> Scanned:
        words = self._words(text)
        if isinstance(words, str):
            return Scanned(row, reason=words)
        try:
            look, (agreed_L,) = self._looked([words], trusted.speaker)
        except CheckpointError as error:  # of this text; trusted ones were read
            return Scanned(row, reason=str(error))
        (statistic,) = trusted.usual.statistics(look)
        (p_value,) = trusted.usual.p_values(np.array([statistic]))
        word = words.words[agreed_L[-1]][:_SHOWN]
        return Scanned(row, float(statistic), float(p_value), bool(p_value <= rate), word)

    def _words(self, text: str) -> Words | str:
        """Its words, or why it has too few."""
        try:
            return words_of(
                self.tokenizer, text,
                causal=is_causal(self.model), most_tokens=self._most_tokens, frame=self.frame,
            )  # fmt: skip
        except MisconfiguredError as error:
            return str(error)

    @property
    def _most_tokens(self) -> int:
        context = getattr(self.model.config, "max_position_embeddings", MOST_TOKENS)
        return min(MOST_TOKENS, context - generates(self.model) * BEGUN)

    def _seen(self, words: Sequence[Words]) -> Iterator[Seen]:
        for one in seen(self.model, words):
            yield one
            self.heard()

    def _looked(self, words: Sequence[Words], speaker: Speaker | None) -> tuple[Look, list[tuple[int, ...]]]:
        """What is seen of texts, and the words that heads agree on."""
        all_seen, states, answers = [], [], []
        for text in words:
            one, states_KD, sureness = self._look_at(text)
            if not all(np.isfinite(part).all() for part in (one.measures_LM, states_KD, sureness)):
                raise CheckpointError(
                    f"the model gives numbers that are not finite on a text of {len(text.ids)} tokens"
                )
            all_seen.append(one)
            states.append(states_KD)
            answers.append([sureness, *(speaker.by_heart(text.ids) if speaker else ())])
            self.heard()
        look = Look(
            np.array([one.measures_LM for one in all_seen]), np.array(states), np.array(answers),
            [len(one.ids) for one in words],
        )  # fmt: skip
        return look, [one.agreed_L for one in all_seen]

    def _look_at(self, text: Words) -> tuple[Seen, list[Any], float]:
        """What heads do, states of the token that is read and of the words, and sureness, of one pass."""
        import torch

        count = self.model.config.num_hidden_layers
        layers = sorted({max(round(2 * count / 3) - 1, 0), max(count - 2, 0)})
        read = len(text.ids) - 1 if is_causal(self.model) else 0
        content = torch.tensor([word >= 0 for word in text.word_T])

        def reduce(_kind: Any, _layer: int, state_BTD: Any) -> Any:
            state_TD = state_BTD[0].detach().double().cpu()
            return state_TD[read].numpy(), state_TD[content].mean(0).numpy()

        ids_1T = torch.tensor([text.ids], device=self.model.device)
        forward = partial(self.model, input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        with torch.no_grad(), observing(self.model, layers, ["hidden"], reduce) as kept:
            answer, one = seen_in(self.model, forward, lambda: text)
        if one is None:
            raise MisconfiguredError("the model ran no block of its own on a text; nothing was seen")
        parts = [kept["hidden", layer][0] for layer in layers]
        return one, [part[kind] for kind in (0, 1) for part in parts], _sureness(answer, read)


def _sureness(answer: Any, read: int) -> float:
    """The log-odds of the likeliest class, or next token; 0 of a model without a head or of one number."""
    logits = getattr(answer, "logits", None)
    if logits is None:
        return 0.0
    row_V = (logits[0] if logits.dim() == 2 else logits[0, read]).double()
    if len(row_V) == 1:  # a number, of which nothing is the likeliest
        return 0.0
    most = int(row_V.argmax())
    others = row_V.clone()
    others[most] = -math.inf
    return float(row_V[most] - others.logsumexp(0))
