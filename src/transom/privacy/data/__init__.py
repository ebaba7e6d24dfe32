"""The policies that ship with Transom, pinned by hash: a changed file is refused.

Threat model: the file may be exchanged on disk, the code may not. Does not protect against both being
changed.
Source: built by `transom.privacy.build` from public resources; the licence notices travel inside the file.
"""

from __future__ import annotations

from pathlib import Path

ENGLISH_PATH = Path(__file__).parent / "english.safetensors"
ENGLISH_SHA256 = "3607c9152d257e3219a5e505e28532d4ebe04e34128d636690f251a08ee2bea7"
