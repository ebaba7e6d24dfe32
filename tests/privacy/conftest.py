"""A tiny policy: a group of animals, a group of colours, a few pass words, placeholders for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from transom.privacy.kinds import KINDS
from transom.privacy.policy import Policy, write_policy

TinyArguments = Callable[..., dict[str, Any]]


def flat_scores(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A group's score table, flat: 1 for the word itself, falling with distance."""
    distance_KK = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    return (255 - 60 * distance_KK).astype(np.uint8).ravel()


@pytest.fixture(scope="session")
def tiny_arguments() -> TinyArguments:
    """Arguments of `write_policy`, with changes by name."""

    def arguments(**changes: Any) -> dict[str, Any]:
        return {
            "words": ("cat", "dog", "cow", "horse", "red", "blue", "green"),
            "starts_G1": np.array([0, 4, 7], dtype=np.int32),
            "scores_S": np.concatenate([flat_scores(4), flat_scores(3)]),
            "prior_V": np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=np.float32),
            "pass_words": ("the", "a", "i", "is", "and", "can", "it", "us", "will", "my"),
            "kinds": {**dict.fromkeys(KINDS, "placeholder"), "stop": "pass", "word": 1.0},
            "name": "tiny",
            "language": "en",
            "mechanism": "rnm",
            "licence_notices": ["made up"],
            "sources": ["nowhere"],
            "pass_share": 0.4,
            **changes,
        }

    return arguments


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory, tiny_arguments: TinyArguments) -> Policy:
    return write_policy(tmp_path_factory.mktemp("policy") / "tiny.safetensors", **tiny_arguments())
