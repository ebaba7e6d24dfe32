"""The policies that ship with Transom, pinned by hash: a changed file is refused.

Threat model: the file may be exchanged on disk, the code may not. Does not protect against both being
changed.
Source: built by `transom.privacy.build` from public resources; the licence notices travel inside the file.
"""

from __future__ import annotations

from pathlib import Path

ENGLISH_PATH = Path(__file__).parent / "english.safetensors"
ENGLISH_SHA256 = "0331b8627a5a49c5635018f828cdf6f98bbdbe390a1bc5e172f14953829a1811"
