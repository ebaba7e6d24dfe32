"""Keys in audits of obfuscation: the truth that guesses are scored against, and what a template gives away.

Threat model: the key stays with the auditor; attacks see none of it.
Does not protect anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from transom.errors import RefusedError
from transom.obfuscation.keyfile import KeyFile, load_key, read_passphrase
from transom.obfuscation.keys import token_map
from transom.report.statistics import Ints
from transom.serving.tokenizer import ChatTokenizer

KeyOption = Annotated[Path | None, "Key file: the truth that guesses are scored against."]
PassphraseOption = Annotated[Path | None, "File whose first line opens a sealed key file."]


def read_key(key: Path, passphrase_file: Path | None) -> KeyFile:
    """The key file, opened. Raises MisconfiguredError."""
    return load_key(key, read_passphrase(passphrase_file) if passphrase_file else None)


def secret_map(key: KeyFile | None, vocabulary: int, *, permute: bool = True) -> Ints:
    """tau [V] of a key; without one a fresh permutation, or none."""
    if key is None:
        return np.random.default_rng(0).permutation(vocabulary) if permute else np.arange(vocabulary)
    return token_map(key.secret, vocabulary)


def template_ids(tokenizer: ChatTokenizer) -> list[int]:
    """Ids that the chat template puts into every conversation; none where there is no template."""
    if not tokenizer.has_template:
        return []
    try:
        return sorted(set(tokenizer.encode_chat([("user", "")]).ids))
    except RefusedError:
        return []
