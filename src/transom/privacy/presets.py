"""Presets: what to protect, in one word.

- `entities`: names, numbers, identifiers and whatever no public list knows become typed placeholders;
  ordinary words pass. Nothing is drawn, so epsilon is 0, and the guarantee says what is disclosed.
- `sensitive`: besides, words of sensitive fields become placeholders of their field, and words outside the
  most frequent ones are drawn; frequent ordinary words pass.
- `words`: every word of the vocabulary is drawn, as the policy file says; only pass words, instruction words
  (unless the file has a rule for them) and punctuation pass.

Threat model: that of `transom.privacy.sanitize`. Does not protect: what a preset lets pass, and so what
ordinary words say together: a letter that names nobody may still be about one person alone.
Source: own; the adaptive allocation that Yu et al. 2025 (arXiv 2509.09091) name as future work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from transom.errors import PolicyError
from transom.privacy.kinds import FIELDS, KINDS, Rule, unknown
from transom.privacy.policy import Policy

Preset = Literal["entities", "sensitive", "words"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
DEFAULT_PRESET: Preset = "entities"
UNCOMMON_EPSILON = 4.0

_HIDDEN: dict[str, Rule] = {**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "instruction": "pass"}
_RULES: dict[str, dict[str, Rule]] = {
    "entities": {**_HIDDEN, "word": "pass", "dictionary": "pass"},
    "sensitive": {
        **_HIDDEN,
        "word": "pass",
        "uncommon": UNCOMMON_EPSILON,
        "part": "placeholder",
        **dict.fromkeys(FIELDS, "placeholder"),
    },
}


def with_preset(policy: Policy, preset: str) -> Policy:
    """`policy` under a preset's rules; those of `words` are the policy file's.

    Raises PolicyError for a preset that is not known.
    """
    if preset not in PRESETS:
        raise PolicyError(unknown("preset", preset, PRESETS))
    rules = _RULES.get(preset, {"instruction": "pass", **policy.rules})
    return replace(policy, rules=rules, preset=preset)
