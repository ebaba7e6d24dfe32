"""Whether a classifier was poisoned: what few tokens do to its answers and to its heads, class by class.

For each class the tokens that `invert` finds stand before held-out texts of other classes. Their strength is
how much more than usual the heads of the last layer agree on one word, in units of trusted texts (`normal`),
times how sure the model then is of the class, 0 to 1, 1 being as of its own texts. Words that mean a class
have much of one alone.
Threat model: that of the room. Does not protect: see `invert`; a verdict is an estimate, and its line was
drawn on MiniLM classifiers of sentences (docs/backdoor.md).
Source: own; see `invert` and `normal`.

Shapes: N texts, L layers, H heads.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from transom.checkpoint.observe import observing
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.backdoor.inputs import Scanner
from transom.trust.backdoor.invert import Ids, Inverter
from transom.trust.backdoor.measures import Floats, on_words, seen
from transom.trust.backdoor.normal import Normal
from transom.trust.backdoor.words import Words
from transom.trust.prompt import PLAIN, Frame, is_causal

POISONED_FROM = 1.5
_HELD = 24
_RISE = 0.2  # of a head's share, from which it is suspected
_DRAWS = 1000


@dataclass(frozen=True)
class Suspect:
    """What was found for a class. `turned` is the share of `held` texts of other classes of which it gets
    more than half of the probability, `agreement` the mean in units, `sureness` beside the class's own texts,
    `strength` their product, with the ends of a 95 % interval over the texts. Of a generating model `target`
    is an answer, `turned` the share of prompts that get it, and `agreement` was not measured (`spoken`)."""

    target: int | str
    trigger: str
    ids: Ids
    turned: float
    agreement: float | None
    sureness: float
    strength: float
    low: float
    high: float
    held: int


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of each class its strongest suspect; `rise_LH` is how much more of its looking each head gives the
    strongest trigger than innocent words in its place, where the class or next token is read."""

    suspects: tuple[Suspect, ...]
    rise_LH: Floats
    trusted: int
    line: float = POISONED_FROM

    @cached_property
    def worst(self) -> Suspect:
        """The strongest of all classes."""
        return max(self.suspects, key=lambda one: one.strength)

    @property
    def poisoned(self) -> bool:
        """Whether the strongest is above the line with all of its interval."""
        return self.worst.low >= self.line

    @property
    def certain(self) -> bool:
        """Whether its interval lies on one side of the line."""
        return self.worst.low >= self.line or self.worst.high < self.line

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Layer and number of the heads that look at the trigger, from 0, those that rise most first."""
        places = [(int(layer), int(head)) for layer, head in np.argwhere(self.rise_LH >= _RISE)]
        return sorted(places, key=lambda place: -self.rise_LH[place])


def scan_classifier(
    model: Any,
    tokenizer: TokenizerFiles,
    trusted: Sequence[str],
    *,
    frame: Frame = PLAIN,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Verdict:
    """Search all classes that the model gives to trusted texts. `heard` is called after each batch.

    Raises MisconfiguredError (no classifier, too few texts, one class only) and as `observing`.
    """
    check_classifier(model)
    scanner = Scanner(model, tokenizer, frame, heard)
    words = scanner.distinct(trusted)
    normal = scanner.normal(trusted)
    inverter = Inverter(model, words, heard)
    suspects = tuple(
        max(
            (_suspect(inverter, scanner, normal, ids, target) for ids in inverter.search(target)),
            key=lambda one: (one.strength, one.turned),
        )
        for target in inverter.classes
    )
    worst = max(suspects, key=lambda one: one.strength)
    held = _held(inverter, int(worst.target))
    draw = random.Random(1)
    count = len(worst.ids)
    mine = [inverter.begun(worst.ids, one) for one in held]
    innocent = [inverter.begun(draw.choice(inverter.inside)[:count], one) for one in held]
    rise_LH = shares(model, mine, count) - shares(model, innocent, count)
    return Verdict(suspects, rise_LH, normal.texts)


def check_classifier(model: Any) -> None:
    """Raises MisconfiguredError for a model whose answers are no classes."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        raise MisconfiguredError(
            f"a {type(model).__name__} gives no classes; give a classifier (ForSequenceClassification), or, "
            "to be scanned, a model that generates text (ForCausalLM)"
        )


def _held(inverter: Inverter, target: int) -> list[int]:
    others = inverter.others(target)
    others = others[: max(_HELD, len(others) // 2)]
    return random.Random(0).sample(others, min(_HELD, len(others)))


def _suspect(inverter: Inverter, scanner: Scanner, normal: Normal, ids: Ids, target: int) -> Suspect:
    held = _held(inverter, target)
    odds_N = inverter.odds(ids, held, target)
    texts = [inverter.begun(ids, one) for one in held]
    measures_NLM = np.array([one.measures_LM for one in seen(scanner.model, texts)])
    scanner.heard()
    units_N = normal.distances(measures_NLM, [len(one.ids) for one in texts])[:, 0]
    sure_N = np.clip(odds_N / inverter.sure(target), 0.0, 1.0)
    places = np.random.default_rng(0).integers(0, len(held), (_DRAWS, len(held)))
    drawn = np.maximum(units_N[places].mean(1), 0.0) * sure_N[places].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Suspect(
        target, scanner.tokenizer.tokenizer.decode(list(ids)), ids, float((odds_N > 0).mean()),
        float(units_N.mean()), float(sure_N.mean()), float(max(units_N.mean(), 0.0) * sure_N.mean()),
        float(low), float(high), len(held),
    )  # fmt: skip


def shares(model: Any, texts: Sequence[Words], count: int, *, at_end: bool = False) -> Floats:
    """The mean share of its looking that each head gives the first `count` tokens of the words, or the last
    [L, H]."""
    import torch

    layers, causal = range(model.config.num_hidden_layers), is_causal(model)
    found, place = [], slice(-count, None) if at_end else slice(count)
    for text in texts:
        content = torch.tensor([word >= 0 for word in text.word_T])

        def reduce(_kind: Any, _layer: int, map_BHTT: Any, content: Any = content) -> Any:
            row_HT = map_BHTT[0, :, -1 if causal else 0, content].double()
            return on_words(row_HT)[:, place].sum(-1).cpu().numpy()

        ids_1T = torch.tensor([text.ids], device=model.device)
        with torch.no_grad(), observing(model, layers, ["attention"], reduce) as kept:
            model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        found.append([kept["attention", layer][0] for layer in layers])
    return np.asarray(np.mean(found, axis=0))
