"""A small language to sanitise: two kinds of sentence, words in groups of five, and marks that pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from transom.audit.attacks.word_text import Sentences, Token, drawn, sanitised
from transom.audit.attacks.words import WordData, WordKnowledge, WordTarget, mounted
from transom.privacy.mechanisms import build
from transom.privacy.partition import Partition, WordMechanism

GROUPS, SIZE = 4, 5
WORDS = tuple(f"{'bdfg'[g]}{'aeiou'[k]}" for g in range(GROUPS) for k in range(SIZE))
SENTENCE_WORDS = 10
PLACES = np.array([0.3, 0.25, 0.2, 0.15, 0.1])


@dataclass(frozen=True)
class World:
    """Groups of WORDS, the attacker's sentences, and what each attack takes."""

    partition: Partition
    own: Sentences
    words: tuple[str, ...] = WORDS

    def sentences(self, count: int, seed: int, context: bool = True) -> Sentences:
        """Walks over the groups; with `context` each word's place in its group follows the one before."""
        rng = np.random.default_rng(seed)
        return tuple(tuple(self._sentence(rng, context)) for _ in range(count))

    def _sentence(self, rng: np.random.Generator, context: bool) -> list[Token]:
        place, tokens = int(rng.choice(SIZE, p=PLACES)), []
        for number in range(SENTENCE_WORDS):
            word = int(rng.integers(GROUPS)) * SIZE + place
            tokens.append(Token("drawn", WORDS[word], word))
            if number % 4 == 3:
                tokens.append(Token("passed", ","))
            stays = context and rng.random() < 0.9
            place = place if stays else int(rng.choice(SIZE, p=PLACES))
        return tokens

    def mechanism(self, name: str, epsilon: float) -> WordMechanism:
        return build(name, self.partition, epsilon)

    def attacked(
        self, mechanism: WordMechanism, plain: Sentences, repeats: int = 0
    ) -> tuple[WordTarget, WordKnowledge, WordData]:
        """What an attack takes, for `plain` sanitised by `mechanism` once and `repeats` times more."""
        words_N = np.array([token.word for token in drawn(plain)])
        repeats_RN = np.stack([mechanism.sample(words_N) for _ in range(repeats)]) if repeats else None
        seen = sanitised(plain, mechanism, WORDS)
        return mounted(
            WORDS, mechanism, seen, plain, self.own, np.ones(len(WORDS)), epsilon=1.0, repeats_RN=repeats_RN
        )


@pytest.fixture(scope="session")
def world() -> World:
    starts_G1 = np.arange(0, GROUPS * SIZE + 1, SIZE, dtype=np.int32)
    scores_KK = (255 - 60 * np.abs(np.subtract.outer(range(SIZE), range(SIZE)))).astype(np.uint8)
    empty = World(Partition(starts_G1, np.tile(scores_KK.ravel(), GROUPS)), ())
    return World(empty.partition, empty.sentences(600, seed=1))
