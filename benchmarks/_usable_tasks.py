"""The tasks of `words_usable.py`: two classifications and a hundred instructions, on sanitised text.

Each task has texts to use, texts to attack (a part of the former), and text of the attacker's own: other text
of the same corpus, for instructions other instructions and news.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from _usable_ways import Sent, Way
from audit_utility import minilm
from transom.audit.attacks.sentences import computes_in_bfloat16
from transom.audit.utility.model import Answerer, load_answerer
from transom.audit.utility.tasks import fitted, rouge_l
from words_sst2 import data_folder, tokens_of

INSTRUCTIONS = Path(__file__).with_name("_instructions.txt")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """Training sentences a seed and the pool they come from; texts attacked; texts of the attacker's own."""

    train: int = 1_500
    pool: int = 2_000
    test: int = 1_000
    attacked: int = 40
    own: int = 3_000
    tokens: int = 48  # of an answer
    seeds: int = 3


QUICK = Sizes(train=120, pool=150, test=60, attacked=6, own=150, tokens=8, seeds=1)


@dataclass(frozen=True, eq=False)
class Task:
    """Texts to use, texts to attack, and text of the attacker's own."""

    name: str
    attacked: list[str] = field(repr=False)
    own: list[str] = field(repr=False)
    sizes: Sizes = field(repr=False)

    @property
    def floor(self) -> float:
        """What somebody scores who reads nothing."""
        raise NotImplementedError

    def scores(self, way: Way, seed: int) -> Scores:
        """The score [N] of each item."""
        raise NotImplementedError

    def counts(self) -> Counter[str]:
        """Unigrams of the attacker's text."""
        return Counter(token for text in self.own for token in tokens_of(text))


@dataclass(frozen=True, eq=False)
class Classify(Task):
    """Sentences with labels; a seed takes a part of the training pool and sanitises all anew."""

    train: list[tuple[str, int]] = field(default_factory=list, repr=False)
    test: list[tuple[str, int]] = field(default_factory=list, repr=False)

    @property
    def floor(self) -> float:
        return max(Counter(label for _, label in self.test).values()) / len(self.test)

    def scores(self, way: Way, seed: int) -> Scores:
        order = np.random.default_rng(seed).permutation(len(self.train))[: self.sizes.train]
        rows = [*(self.train[i] for i in order), *self.test]
        features = _features(tuple(sent.text for sent in way.send([text for text, _ in rows])))
        labels, cut = np.array([label for _, label in rows]), len(order)
        return np.asarray(
            fitted(features[:cut], labels[:cut])(features[cut:]) == labels[cut:], dtype=np.float64
        )


@dataclass(frozen=True, eq=False)
class Instruct(Task):
    """Instructions, and the model that answers them."""

    model: str = "smollm2"
    instructions: list[str] = field(default_factory=list, repr=False)

    @property
    def floor(self) -> float:
        """What the answer to another instruction scores."""
        pairs = zip(self.plain, (*self.plain[1:], self.plain[0]), strict=True)
        return float(np.mean([rouge_l(other, one) for one, other in pairs]))

    @cached_property
    def answerer(self) -> Answerer:
        return quick_answerer(self.model)

    @cached_property
    def plain(self) -> list[str]:
        """The model's own answers to the plain instructions."""
        return self.answerer.respond(self.instructions, self.sizes.tokens)

    def scores(self, way: Way, seed: int) -> Scores:
        answers = answered(self.answerer, way.send(self.instructions), self.sizes.tokens)
        return np.array([rouge_l(*pair) for pair in zip(answers, self.plain, strict=True)])


def quick_answerer(source: str) -> Answerer:
    """A model that answers, in bfloat16 where the processor computes in it."""
    made = load_answerer(source)
    if computes_in_bfloat16():
        import torch

        made.model.to(torch.bfloat16)
    return made


def answered(model: Answerer, sent: Sequence[Sent], tokens: int) -> list[str]:
    """The answer to each text, restored."""
    answers = model.respond([one.text for one in sent], tokens)
    return [one.restore(answer) for one, answer in zip(sent, answers, strict=True)]


_known: dict[str, NDArray[np.float64]] = {}


def _features(texts: Sequence[str]) -> NDArray[np.float64]:
    """MiniLM's embeddings; what was embedded before is remembered."""
    import torch

    new = sorted({text for text in texts if text not in _known}, key=len)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computes_in_bfloat16()):
        for start in range(0, len(new), 64):
            batch = new[start : start + 64]
            _known.update(zip(batch, minilm(batch), strict=True))
    return np.stack([_known[text] for text in texts])


def tasks(sizes: Sizes, quick: bool) -> list[Task]:
    """The three tasks; under --quick without the instructions, which ask a model for its answers."""

    def shuffled(rows: Sequence[Any]) -> list[Any]:
        return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]

    def classify(name: str, train: list[tuple[str, int]], test: list[tuple[str, int]]) -> Classify:
        pool, test = shuffled(train)[: sizes.pool], shuffled(test)[: sizes.test]
        own = [text for text, _ in shuffled(train)[-sizes.own :]]
        return Classify(name, [text for text, _ in test[: sizes.attacked]], own, sizes, pool, test)

    def rows(path: str, text: str, label: str) -> list[tuple[str, str]]:
        with (data_folder() / path).open(encoding="utf-8", newline="") as file:
            found = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [(row[text], row[label]) for row in found]

    sst2 = [
        [(text, int(label)) for text, label in rows(f"sst2/{part}.tsv", "sentence", "label")]
        for part in ("train", "dev")
    ]
    questions = [rows(f"trec/{part}.tsv", "question", "label") for part in ("train", "test")]
    types = sorted({label for _, label in questions[0]})
    trec = [[(text, types.index(label)) for text, label in part] for part in questions]
    made: list[Task] = [
        classify("sst2", [row for row in sst2[0] if len(row[0].split()) >= 6], sst2[1]),
        classify("trec", *trec),
    ]
    if not quick:
        lines = (data_folder() / "xsum" / "xsum-1000.jsonl").read_text(encoding="utf-8").splitlines()
        news = [line for row in lines for line in json.loads(row)["document"].split("\n") if line]
        mine = shuffled(instructions())
        own = [*mine[sizes.attacked :], *shuffled(news)[: sizes.own]]
        made.append(Instruct("instructions", mine[: sizes.attacked], own, sizes, instructions=instructions()))
    return made


def instructions() -> list[str]:
    """The instructions, in the file's order."""
    return INSTRUCTIONS.read_text(encoding="utf-8").strip().split("\n\n")
