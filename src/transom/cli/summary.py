"""What `transom words sanitize` says when it is done: which preset ran, what was replaced, what passes.

Threat model: the summary holds kinds and numbers, no content. Does not protect anything.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transom.cli.resumable import Summary
from transom.privacy.kinds import CLAIMED, KINDS, SUBKINDS, base_of
from transom.privacy.sanitize import Sanitizer

ANOTHER_LANGUAGE = 0.25  # share of unknown words from which a text reads like another language
_FEWEST_WORDS = 20
_UNKNOWN = ("rare", "foreign")
_WORDS = ("stop", "word", "rare", "foreign")  # base kinds of what any text is made of; names say nothing


def record_of(sanitizer: Sanitizer, total: Summary) -> dict[str, Any]:
    """The summary, JSON-ready."""
    policy = sanitizer.policy
    return {
        "texts": total.texts,
        "draws": total.draws,
        "counts": dict(total.counts),
        "replaced": dict(total.replaced),
        "unknown_share": unknown_share(total.counts),
        "epsilon_per_word": sanitizer.word_epsilon,
        "epsilon_largest_text": total.largest_epsilon,
        "epsilon_total": total.epsilon,
        "preset": policy.preset,
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "mechanism": sanitizer.mechanism.name if sanitizer.mechanism else None,
        "guarantee": sanitizer.guarantee().to_dict(),
    }


def text_of(sanitizer: Sanitizer, total: Summary) -> str:
    """The summary in a line, and one more where the text reads like another language."""
    policy = sanitizer.policy
    drawn = {kind for kind in (*KINDS, *SUBKINDS) if not isinstance(policy.rule(kind), str)}
    passed = {
        kind: count - total.replaced.get(kind, 0)
        for kind, count in total.counts.items()
        if kind not in drawn and count > total.replaced.get(kind, 0)
    }
    said = [f"preset {policy.preset}, {total.texts} texts: replaced {_listed(total.replaced)}"]
    if drawn:
        said.append(
            f"drew {total.draws} words, epsilon {sanitizer.word_epsilon:g} each at most, "
            f"{total.largest_epsilon:g} a text at most, {total.epsilon:g} in all"
        )
    said.append(f"passed {_listed(passed)}")
    lines = ["; ".join(said)]
    if (unknown := unknown_share(total.counts)) >= ANOTHER_LANGUAGE:
        lines.append(
            f"note: {unknown:.0%} of the words are unknown, so this reads like another language than the "
            f"policy's ({policy.language}); unknown words became placeholders, what looks known did not"
        )
    return "\n".join(lines)


def unknown_share(counts: Mapping[str, int]) -> float:
    """The share of words that no list knows; 0 of a few."""
    words = sum(count for kind, count in counts.items() if kind not in CLAIMED and base_of(kind) in _WORDS)
    return sum(counts.get(kind, 0) for kind in _UNKNOWN) / words if words >= _FEWEST_WORDS else 0.0


def _listed(counts: Mapping[str, int]) -> str:
    shown: Iterable[str] = (f"{count} {kind}" for kind, count in counts.items() if count)
    return ", ".join(shown) or "nothing"
