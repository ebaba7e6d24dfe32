"""Files of text that audits read: one text a line, empty lines left out.

Threat model: broken files. Errors name the file and no text.
"""

from __future__ import annotations

from tokenizers import Tokenizer


def token_ids(
    texts: tuple[str, ...], tokenizer: Tokenizer, longest: int, *, ends: bool = False
) -> tuple[tuple[int, ...], ...]:
    """The first `longest` ids of each text, with the tokenizer's own tokens around it if `ends`."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=ends)
    return tuple(tuple(one.ids[:longest]) for one in encoded)
