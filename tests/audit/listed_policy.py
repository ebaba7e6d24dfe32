"""A tiny policy with public lists, for texts whose every word is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transom.privacy.kinds import KINDS
from transom.privacy.policy import Policy, write_policy

WORDS = ("cat", "dog", "cow", "horse", "red", "blue", "green", "rose", "flu", "rash", "cold", "cough")
LISTED = {
    "flu": "health",
    "rash": "health",
    "gout": "health",  # in no group
    "rose": "namesake",
    "jane": "person",
    "write": "instruction",
    "parochial": "dictionary",
}
PASSING = ("the", "is", "a", "has", "and", "owes", "to", "my")


def listed_policy(folder: Path) -> Policy:
    scores_KK = (255 - 60 * np.abs(np.subtract.outer(range(4), range(4)))).astype(np.uint8)
    return write_policy(
        folder / "listed.safetensors",
        words=WORDS,
        starts_G1=np.arange(0, 13, 4, dtype=np.int32),
        scores_S=np.tile(scores_KK.ravel(), 3),
        prior_V=np.full(12, 1 / 12, dtype=np.float32),
        pass_words=PASSING,
        kinds={**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 2.0},
        name="listed",
        language="en",
        mechanism="rnm",
        licence_notices=["made up"],
        sources=["nowhere"],
        pass_share=0.5,
        listed=LISTED,
    )
