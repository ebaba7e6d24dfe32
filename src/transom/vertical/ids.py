"""One spelling for a person's ID, so that two parties that write it differently mean the same row.

The rule is versioned and among the terms: parties of other rules would join other rows.
Threat model: none; both parties apply it alike, each to its own file.
Does not protect: two people whose IDs differ in case or width alone are one to it, and a typing error makes
two of one. A hash of IDs does not hide them: whoever can list the IDs finds them.
Source: Unicode Standard Annex 15 (NFKC), Unicode 15 section 3.13 (case folding); own. Shapes: N rows.
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

RULE = "1: NFKC, case folded, white space trimmed and single"
MAX_CHARS = 256


def canonical(text: str) -> str:
    """The one spelling of an ID. Raises MisconfiguredError for one that is empty, or too long.

    >>> canonical("  Ｍüller　 7 ")
    'müller 7'
    """
    if len(text) > MAX_CHARS:
        raise MisconfiguredError(f"an ID has {len(text)} characters, and {MAX_CHARS} are the most")
    before, now = "", text
    while now != before:  # folding may undo the normal form, and the other way round
        before, now = now, unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", now).casefold())
    now = " ".join(now.split())
    if not now:
        raise MisconfiguredError("an ID is empty; every row needs one, or leave the row out")
    return now


def order_hash(ids: Iterable[str]) -> str:
    """SHA-256 of IDs in their order, each with its length before it, as hexadecimal digits."""
    digest = hashlib.sha256()
    for one in ids:
        data = one.encode()
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()


def is_test_N(ids: Sequence[str], name: str, share: float) -> NDArray[np.bool_]:
    """Which rows are of the test part: about `share` of them, by a hash of the ID and the job's name.

    Both parties find the same without a word, and a row stays where it is when others come or go.
    """
    import numpy as np

    border = round(share * 2**64)
    salt = hashlib.sha256(name.encode()).digest()
    drawn = (hashlib.sha256(salt + one.encode()).digest()[:8] for one in ids)
    return np.fromiter((int.from_bytes(one, "big") < border for one in drawn), np.bool_, len(ids))
