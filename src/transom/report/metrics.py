"""What each metric says: one row a metric, read by the page, the charts, SARIF, the gate and the runner.

A metric that is not in the table, as of a user's own attack, is a share of what an attacker wants, and gated.

Threat model: none of its own. Does not protect against: a figure that is called by another metric's name.
Source: each metric's own in the attack that reports it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

EPSILON_METRIC = "epsilon lower bound"
READABLE, READ, KEPT, LIKENESS = (
    "still readable",
    "text read",
    "ordinary words kept",
    "likeness of content words",
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure between `least` and `most` that the `better` side wants high.

    `meaning` explains it above a table, `outcome` goes on after "30 %" in a headline. `gated`: a gate
    compares it. `family`: the row is that of every name that begins so. `certified`: a number with a lower
    end alone, beside the claim that it may refute; others are shares beside what guessing reaches.
    """

    name: str
    meaning: str = ""
    outcome: str = ""
    least: float = 0.0
    most: float = 1.0
    better: Literal["attacker", "user"] = "attacker"
    gated: bool = True
    family: bool = False
    certified: bool = False

    @property
    def beside(self) -> str:
        """What a finding's baseline is."""
        return "claimed" if self.certified else "guessing"

    @property
    def unit(self) -> str:
        """What its figures are."""
        return "numbers" if self.certified else "shares"


METRICS = (
    Metric(
        name="token recovery",
        meaning="the share of replaced words whose original is named",
        outcome="of the replaced words can be read back",
    ),
    Metric(
        name="ttrsr",
        meaning="the share of tokens named rightly (text token recovery success rate)",
        outcome="of the tokens can be named",
    ),
    Metric(
        name="token F1",
        meaning="how far the named tokens are those of the text: of precision and recall, the harmonic mean",
        outcome="of the words can be read back (F1)",
    ),
    Metric(name="recovery of tokens", outcome="of the tokens can be read"),
    Metric(name="recovery of types", outcome="of the different tokens can be named"),
    Metric(name="BLEU-4", meaning="likeness to the original text, by runs of up to four tokens"),
    Metric(name="top-10 ", gated=False, family=True),  # a list of guesses is no reading
    Metric(name="top-100 ", gated=False, family=True),
    Metric(
        name="cosine",
        meaning="likeness to the original embedding",
        least=-math.inf,  # a user's own may be a distance
        most=math.inf,
        gated=False,
        family=True,
    ),
    Metric(
        name="attributes",
        meaning="the share of texts whose attribute, such as a sentiment, is named",
        outcome="of the texts' attributes can be named",
    ),
    Metric(
        name="labels",
        meaning="the share of texts or rows whose label is named",
        outcome="of the labels can be named",
    ),
    Metric(
        name="values named",
        meaning="the share of private values that are named within a tenth of the deviation of their column",
        outcome="of the private values can be named",
    ),
    Metric(
        name="variance explained",
        meaning="how much of what differs between rows is read, by squared error; guessing the mean gives "
        "none",
        outcome="of the variance of what is private can be explained",
    ),
    Metric(
        name="label AUC",
        meaning="how often a row of one class looks more like it than one of the other does; guessing gives "
        "one half",
        gated=False,
    ),
    Metric(
        name="property AUC",
        meaning="how often a row that has the property looks more like it than one that has not; guessing "
        "gives one half",
        gated=False,
    ),
    Metric(
        name="SSIM",
        meaning="likeness of images by brightness, contrast and structure, 1 for equal ones; guessing is the "
        "mean image",
        outcome="of an image can be rebuilt, by structural likeness (SSIM)",
        least=-1.0,
    ),
    Metric(
        name="members found at 1 % false alarms",
        meaning="the share of training texts recognised when one other text in a hundred is taken for one",
        outcome="of the training texts can be recognised at 1 % false alarms",
    ),
    Metric(
        name="AUC",
        meaning="how often a training text looks more like one than another text does; guessing gives one "
        "half",
        gated=False,
        family=True,
    ),
    Metric(
        name=EPSILON_METRIC,
        meaning="what the samples certify, with the confidence that the note states",
        most=math.inf,
        certified=True,
    ),
    Metric(
        name=READABLE,
        meaning="the share of what a second opinion takes for private that passes as it is",
        outcome="of what a second opinion takes for private can be read as it stands",
    ),
    Metric(
        name=READ,
        meaning="the share of all tokens, weighted by how rare each is, that pass or are named rightly; "
        "guessing is what passes",
        gated=False,  # of a text whose ordinary words pass by choice
    ),
    Metric(
        name=KEPT,
        meaning="the share of ordinary words that stand there as they did",
        better="user",
        gated=False,
    ),
    Metric(
        name=LIKENESS,
        meaning="cosine of the content words before and after, by rarity: a hint of use, no task",
        better="user",
        gated=False,
    ),
    Metric(name="utility", better="user", gated=False),
)


def metric(name: str) -> Metric:
    """The row of `name`; the one best guess is not told apart from a reading."""
    plain = name.removeprefix("top-1 ")
    rows = (row for row in METRICS if plain == row.name or (row.family and plain.startswith(row.name)))
    return next(rows, Metric(name=name))


def figure(name: str, value: float) -> str:
    """A value of metric `name` as people read it: a share in percent, an epsilon as a number."""
    if metric(name).certified:
        return f"{value:.2f}"
    percent = 100 * value
    digits = "0" if not percent else f"{percent:.1g}" if percent < 0.1 else f"{percent:.2f}"
    return f"{digits if percent < 1 else f'{percent:.1f}'} %"
