"""Checkpoints: models on disk and in memory. Load them, walk their layers and heads, cut them in two.

Importing this room loads no model library.
"""

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.source import DEFAULT_MODEL, Source, find, packaged_minilm, packaged_smollm2
from transom.checkpoint.tokenizer import TokenizerFiles, export_tokenizer

__all__ = [
    "DEFAULT_MODEL",
    "Checkpoint",
    "Source",
    "TokenizerFiles",
    "export_tokenizer",
    "find",
    "load",
    "packaged_minilm",
    "packaged_smollm2",
]
