"""Old names of options, and what to write instead; docs/cli.md has the new ones.

Threat model: none. Does not protect anything.
"""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, Mapping[str, str]] = {
    "gateway": {"--budget": "--cap", "--model": "--tokenizer", "--require-evidence": "--evidence-policy"},
    "engine": {"--model": "an argument: transom engine MODEL"},
    "chat": {"--ask": "an argument: transom chat QUESTION"},
    "obfuscate": {"--engine": "--for"},
    "broker": {"--policy": "--evidence-policy"},
    "attest serve": {"--tcti": "--tpm-tcti", "--pcrs": "--tpm-pcrs"},
    "words sanitize": {"--output": "--out", "-o": "--out", "--output-dir": "--out"},
    "audit words": {"--field": "--column"},
    "audit embeddings": {"--public-text": "--prior"},
}
