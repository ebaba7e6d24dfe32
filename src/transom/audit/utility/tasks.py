"""Three kinds of task, each a score in [0, 1] per item: classify, summarise, answer by likelihood.

A task names the texts that are protected before they leave; `scores` gets them protected and asks the model.
Everything else of a prompt (an instruction, the choices) is public. `floor` is what somebody reaches who
answers without reading the text.

Threat model: none of its own. Does not measure quality in the eyes of people: a summary is compared with the
model's own summary of the plain text, and a likely answer is not a written one.
Source: ROUGE-L: Lin 2004, section 3 (F1, no stemming); multiple choice by likelihood: Lin et al. 2022,
arXiv 2109.07958, MC1.

Legend: N items, M texts, F features, C classes, V vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from transom.audit.utility.protect import Protected
from transom.errors import MisconfiguredError
from transom.report.statistics import Floats

if TYPE_CHECKING:
    from transom.audit.utility.model import Answerer

_RIDGE = 1.0  # weight of the classifier's squared norm, in sentences
_MOST_FEATURES = 512


class Task(Protocol):
    """A name, the texts to protect, what guessing scores, and the score of each item."""

    @property
    def name(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...]: ...
    @property
    def floor(self) -> float: ...
    def scores(self, protected: Sequence[Protected], model: Answerer) -> Floats:
        """Scores [N] in [0, 1], given `texts` protected, in their order."""


@dataclass(frozen=True)
class Classify:
    """Accuracy of a linear classifier, trained and tested on protected sentences.

    `features` turns sentences into [M, F]; without it they are the model's next-token log-probabilities
    after `prompt`, at the ids that are likeliest over the training sentences.
    """

    train: tuple[tuple[str, int], ...] = field(repr=False)
    test: tuple[tuple[str, int], ...] = field(repr=False)
    name: str = "classify"
    prompt: str = "{}\nIn one word, this is"
    features: Callable[[Sequence[str]], Floats] | None = field(default=None, repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """Training sentences, then test sentences."""
        return tuple(text for text, _ in (*self.train, *self.test))

    @property
    def floor(self) -> float:
        """The share of the test sentences' most frequent class."""
        return max(Counter(label for _, label in self.test).values()) / len(self.test)

    def scores(self, protected: Sequence[Protected], model: Answerer) -> Floats:
        """1 for each test sentence that is classified rightly."""
        sentences, cut = [one.text for one in protected], len(self.train)
        if self.features is not None:
            found_MF = self.features(sentences)
        else:
            log_p_MV = model.next_log_probabilities([self.prompt.format(text) for text in sentences])
            likeliest = np.argsort(-np.exp(log_p_MV[:cut]).mean(axis=0), kind="stable")[:_MOST_FEATURES]
            found_MF = log_p_MV[:, likeliest].astype(np.float64)
        labels_N = np.array([label for _, label in self.train])
        guess_N = fitted(found_MF[:cut], labels_N)(found_MF[cut:])
        return np.asarray(guess_N == [label for _, label in self.test], dtype=np.float64)


@dataclass(frozen=True)
class Summarise:
    """ROUGE-L of a restored summary against the plain model's own summary of the plain document.

    `reference` answers the plain documents; by construction it scores 1 without protection.
    """

    documents: tuple[str, ...] = field(repr=False)
    reference: Answerer = field(repr=False)
    name: str = "summarise"
    prompt: str = "Summarize this article in one sentence.\n\n{}"
    max_tokens: int = 48

    @property
    def texts(self) -> tuple[str, ...]:
        """The documents."""
        return self.documents

    @property
    def floor(self) -> float:
        """What the summary of another document scores."""
        own = self.own
        return float(np.mean([rouge_l(other, one) for one, other in pairwise((*own, own[0]))]))

    @cached_property
    def own(self) -> list[str]:
        """The reference's summaries of the plain documents."""
        return self._answer(self.reference, self.documents)

    def scores(self, protected: Sequence[Protected], model: Answerer) -> Floats:
        """ROUGE-L of each document's summary, its placeholders restored."""
        answers = self._answer(model, [one.text for one in protected])
        restored = (one.restore(answer) for one, answer in zip(protected, answers, strict=True))
        return np.array([rouge_l(*pair) for pair in zip(restored, self.own, strict=True)])

    def _answer(self, model: Answerer, documents: Sequence[str]) -> list[str]:
        return model.respond([self.prompt.format(text) for text in documents], self.max_tokens)


@dataclass(frozen=True)
class Question:
    """A private text, public choices, and the index of the right one."""

    text: str = field(repr=False)
    choices: tuple[str, ...] = field(repr=False)
    answer: int


@dataclass(frozen=True)
class Answers:
    """Share of questions whose right choice is likelier than every other.

    With a `reference`, the right choice is what it chooses given the plain text: by construction 1 without
    protection, which is the scale for a model that knows little. With `calibrated`, likelier means the larger
    gain over the same prompt with an empty text, so that a choice that is likely anyway is not preferred.
    """

    questions: tuple[Question, ...] = field(repr=False)
    name: str = "answers"
    prompt: str = "Q: {}\nA:"
    calibrated: bool = False
    reference: Answerer | None = field(default=None, repr=False)

    @property
    def texts(self) -> tuple[str, ...]:
        """The questions' texts."""
        return tuple(question.text for question in self.questions)

    @property
    def floor(self) -> float:
        """What picking a choice at random scores."""
        return float(np.mean([1 / len(question.choices) for question in self.questions]))

    @cached_property
    def right(self) -> list[int]:
        """The index of each question's right choice."""
        if self.reference is None:
            return [question.answer for question in self.questions]
        pairs = [(question, Protected(question.text)) for question in self.questions]
        return [int(self._gains(*pair, self.reference).argmax()) for pair in pairs]

    def scores(self, protected: Sequence[Protected], model: Answerer) -> Floats:
        """1 for each question that is answered rightly."""
        found = []
        for question, one, right in zip(self.questions, protected, self.right, strict=True):
            gain_K = self._gains(question, one, model)
            found.append(float(np.all(gain_K[right] > np.delete(gain_K, right))))
        return np.array(found)

    def _gains(self, question: Question, protected: Protected, model: Answerer) -> Floats:
        choices = [" " + protected.hide(choice) for choice in question.choices]
        gain_K = model.log_likelihoods(self.prompt.format(protected.text), choices)
        if self.calibrated:
            gain_K = gain_K - model.log_likelihoods(self.prompt.format(""), choices)
        return gain_K


def rouge_l(candidate: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-case words; 0 when either has none.

    >>> round(rouge_l("The police killed the gunman.", "police kill the gunman"), 3)
    0.667
    """
    a, b = (re.findall(r"\w+", text.lower()) for text in (candidate, reference))
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for i, other in enumerate(b):
            row.append(above[i] + 1 if word == other else max(above[i + 1], row[i]))
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


def fitted(found_NF: Floats, labels_N: NDArray[np.int64]) -> Callable[[Floats], NDArray[np.int64]]:
    """A ridge-penalised logistic classifier on standardised features; what it returns names classes [N].

    Raises MisconfiguredError for fewer than two classes.
    """
    from scipy.optimize import minimize

    classes = np.unique(labels_N)
    if len(classes) < 2:
        raise MisconfiguredError(f"need training sentences of two classes or more, got {len(classes)}")
    mean_F, deviation_F = found_NF.mean(axis=0), found_NF.std(axis=0) + 1e-9

    def design(features_NF: Floats) -> Floats:
        scaled = (features_NF - mean_F) / deviation_F / np.sqrt(len(mean_F))
        return np.hstack([scaled, np.ones((len(scaled), 1))])

    x_NG, y_NC = design(found_NF), (labels_N[:, None] == classes).astype(np.float64)

    def loss(flat: Floats) -> tuple[float, Floats]:
        w_GC = flat.reshape(x_NG.shape[1], len(classes))
        logits_NC = x_NG @ w_GC
        log_p_NC = logits_NC - np.logaddexp.reduce(logits_NC, axis=1, keepdims=True)
        gradient_GC = x_NG.T @ (np.exp(log_p_NC) - y_NC) + _RIDGE * w_GC
        return float(-(y_NC * log_p_NC).sum() + _RIDGE * (w_GC**2).sum() / 2), gradient_GC.ravel()

    start = np.zeros(x_NG.shape[1] * len(classes))
    w_GC = minimize(loss, start, jac=True, method="L-BFGS-B").x.reshape(-1, len(classes))
    return lambda features_NF: np.asarray(classes[(design(features_NF) @ w_GC).argmax(axis=1)])
