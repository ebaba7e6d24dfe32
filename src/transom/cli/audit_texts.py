"""Files of text that audits read: one text a line, empty lines left out.

Threat model: broken files. Errors name the file and no text.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from transom.errors import MisconfiguredError


def read_texts(path: Path) -> tuple[str, ...]:
    """The lines of `path` that hold something. Raises MisconfiguredError."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path} cannot be read as UTF-8 text ({type(error).__name__})") from None
    return tuple(line.strip() for line in lines if line.strip())


def token_ids(
    texts: tuple[str, ...], tokenizer: Tokenizer, longest: int, *, ends: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The first `longest` ids of each text, with the tokenizer's own tokens around it if `ends`."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=ends)
    return tuple(tuple(one.ids[:longest]) for one in encoded)
