"""What the page says of each kind of audit: what was audited, what its chart shows, what it does not prove.

Threat model: none of its own. Does not cover: a kind without a row, whose page uses its name and the words
that fit most.
Source: own design.
"""

from __future__ import annotations

from dataclasses import dataclass

_LIMITS = (
    "A low figure says that these attacks failed within their budgets. A better one may exist, or be found.",
    "Intervals cover the chance in this sample. Texts of another kind may be easier to read than these.",
    "An attacker who knows more than was assumed reads more: the author, the topic, a copy of the text.",
    "What an attack that was not run would have found is unknown.",
)
_EPSILON_LIMITS = (
    "Only two inputs were tried. Another pair may break the claim.",
    "Samples certify no more than a lower bound: the true epsilon is at least that, and may be far above.",
    "Events that no learned score shows, and draws that share state between calls, go unseen.",
)


@dataclass(frozen=True)
class Kind:
    """`title` is what was audited; `chart` and `lead` stand over the chart, `limits` below it."""

    title: str
    chart: str = "What each attack recovers"
    lead: str = "Left is better: less is read."
    beside: str = "guessing"
    limits: tuple[str, ...] = _LIMITS


_TEXT_LIMITS = (
    "What is private is a second opinion of public lists, patterns and, where given, your own lists. A name "
    "in lower case that a dictionary holds is an ordinary word to it, and so is what words say together.",
    "Changed without need is by the dictionary: an ordinary word that names somebody was changed with need.",
    *_LIMITS,
)

_KINDS = {
    "text": Kind(
        "a text under presets",
        "What is left of the text",
        "Readable and read: left is better. Kept and alike: right is.",
        "open",
        _TEXT_LIMITS,
    ),
    "words": Kind("sanitised words"),
    "adapter": Kind("a fine-tuned adapter"),
    "checkpoint": Kind("an obfuscated checkpoint"),
    "split": Kind("a split tuning"),
    "vertical": Kind("a vertical training"),
    "tunnel": Kind("what leaves through a tunnel"),
    "traffic": Kind("traffic of obfuscated ids"),
    "epsilon": Kind(
        "a claim of epsilon",
        "Certified epsilon",
        "The true epsilon is at least the value.",
        "claimed",
        _EPSILON_LIMITS,
    ),
}


def kind_of(name: str) -> Kind:
    """The words for a report of kind `name`."""
    return _KINDS.get(name, Kind(name))
