"""The policies that ship with Transom, pinned by hash: a changed file is refused.

Threat model: the file may be exchanged on disk, the code may not. Does not protect against both being
changed.
Source: built by `transom.privacy.build` from public resources; the licence notices travel inside the file.
"""

from __future__ import annotations

from pathlib import Path

ENGLISH_PATH = Path(__file__).parent / "english.safetensors"
ENGLISH_SHA256 = "d5dff2b9e6604a6c8c877755cdc5b8ed6d73c4fe20c53659e14cb5c68c0ff299"
