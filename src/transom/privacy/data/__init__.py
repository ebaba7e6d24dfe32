"""The policies that ship with Transom, pinned by hash: a changed file is refused.

Threat model: the file may be exchanged on disk, the code may not. Does not protect against both being
changed.
Source: built by `transom.privacy.build` from public resources; the licence notices travel inside the file.
"""

from __future__ import annotations

from pathlib import Path

ENGLISH_PATH = Path(__file__).parent / "english.safetensors"
ENGLISH_SHA256 = "0113c7df63b3383f68e53312949120ab06e75b22bb696f6a8ed96410f597c59d"
