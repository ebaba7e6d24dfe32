"""One spelling for a person's ID, so that two parties that write it differently mean the same row.

The rule has a version and is among the terms: parties of other rules would join other rows.
Threat model: none; both parties apply it alike, each to its own file.
Does not protect: two people whose IDs differ in case, width or invisible characters alone are one to it, and
a typing error makes two of one; "007" and "7" are two. A hash of IDs does not hide them from whoever can
list what they may be.
Source: Unicode Standard Annex 15 (NFKC); The Unicode Standard, section 3.13 (case folding); own.
Shapes: N rows.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RULE = "1: NFKC, case folded, without invisible characters, white space trimmed and single"
MAX_CHARS = 256


def canonical(text: str) -> str:
    """The one spelling of an ID.

    Raises MisconfiguredError for one that is empty, too long, or has a character that is for control or
    unknown here; what is known is spelled alike by every version of Unicode.

    >>> canonical("  Ｍüller　 7 ")
    'müller 7'
    """
    if len(text) > MAX_CHARS:
        raise MisconfiguredError(f"an ID of more than {MAX_CHARS} characters")
    if text.isascii():
        now = " ".join(text.lower().split())
    else:
        before, now = "", text
        while now != before:  # one step of the rule may make work for another
            before, now = now, _folded(now)
    if not now:
        raise MisconfiguredError("an empty ID")
    if len(now) > MAX_CHARS:
        raise MisconfiguredError(f"an ID of more than {MAX_CHARS} characters")
    if not now.isprintable():  # of white space only the plain one is left, which is printable
        raise MisconfiguredError("an ID with a control character, or an unknown one")
    return now


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(one for one in folded if unicodedata.category(one) != "Cf").split())


def order_hash(ids: Iterable[str]) -> str:
    """SHA-256 of IDs in their order, each with its length before it, as hexadecimal digits."""
    digest = hashlib.sha256()
    for one in ids:
        data = one.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


def is_test_N(ids: Sequence[str], name: str, share: float) -> NDArray[np.bool_]:
    """Which rows are of the test part: about `share` of them, by a hash of the ID and the job's name.

    Both parties find the same without a word, and a row stays in its part when others come or go.
    """
    import numpy as np

    border = round(share * 2**64)
    salt = hashlib.sha256(name.encode()).digest()
    drawn = (hashlib.sha256(salt + one.encode()).digest()[:8] for one in ids)
    return np.fromiter((int.from_bytes(one, "big") < border for one in drawn), np.bool_, len(ids))
