"""The policies that ship with Transom, pinned by hash: a changed file is refused.

Threat model: the file may be exchanged on disk, the code may not. Does not protect against both being
changed.
Source: built by `transom.privacy.build` from public resources; the licence notices travel inside the file.
"""

from __future__ import annotations

from pathlib import Path

ENGLISH_PATH = Path(__file__).parent / "english.safetensors"
ENGLISH_SHA256 = "939e2fca1d1d8defe3cf45cc8d079d81ab9919326b50e0b4221758be2b2a174e"
