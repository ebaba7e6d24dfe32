"""What is released of a conversation that grows and is sent again: each token's state once, with its noise.

A chat is sent whole with every turn, and its states are the same each time: with fresh noise they would
average out (see `noise`). So what is released of a token is drawn once for the text up to it, and kept.
At the embedding a token's row is the same to the bit whenever it is looked up: there noise can come from a
lasting secret and a label of all ids so far, and is the same for ever. After a block it must not: a state
that is computed along another way differs in its last bits, by which a guess of the text could be tested
once the same noise is on both. There what was forgotten, or another process has, is drawn anew.
Threat model: the receiver keeps all it gets, knows the table and the noise's law, and may have texts sent
again.
Does not protect: that two texts begin alike shows. Behind a place that changed all is drawn anew, and so is
an answer whose text is not tokenised as it was generated: each is another release of those tokens.
Source: own.

Shapes: N rows (tokens), D width.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from transom.privacy.stream import SECRET_BYTES, Stream

Rows = NDArray[np.float32]
Noising = Callable[[Stream, NDArray[np.int64], Rows], Rows]
_DIGEST_BYTES = 16


class Releases:
    """The releases of all conversations of one sender. Threads may share it.

    `noising` adds noise to rows [N, D] of tokens of these ids [N], and None adds none. `secret`, 32 bytes, is
    for one table, whose rows are the same to the bit whenever they are looked up, and one law: noise of the
    same direction and another length would cancel out. None for all others. `remembered_bytes` bounds the
    rows that are kept, of which the oldest go first.
    """

    def __init__(
        self, noising: Noising | None, *, secret: bytes | None = None, remembered_bytes: int = 2**28
    ) -> None:
        self._noising, self._secret = noising, secret
        self._remembered_bytes, self._held_bytes = remembered_bytes, 0
        self._rows: OrderedDict[bytes, Rows] = OrderedDict()
        self._lock = threading.Lock()
        self.start = self._digest(b"")

    def extend(self, before: bytes, ids: Sequence[int], rows_ND: Rows) -> tuple[bytes, Rows]:
        """What is released of the next tokens of a text, and what to pass as `before` for those after them.

        `before` is `start`, or what the call for the tokens before gave. Rows are float32 [N, D].
        """
        if self._noising is None:
            return before, rows_ND
        released = np.empty_like(rows_ND)
        for place, (token, row_D) in enumerate(zip(ids, rows_ND, strict=True)):
            before = self._digest(before + token.to_bytes(8, "big"))
            released[place] = self._once(self._noising, before, token, row_D)
        return before, released

    def _once(self, noising: Noising, text: bytes, token: int, row_D: Rows) -> Rows:
        with self._lock:
            if (known_D := self._rows.get(text)) is not None:
                self._rows.move_to_end(text)
                return known_D
        stream = Stream(self._secret or os.urandom(SECRET_BYTES), f"serve/{text.hex()}")
        drawn_D = noising(stream, np.array([token]), row_D[None])[0]
        with self._lock:
            kept_D = self._rows.setdefault(text, drawn_D)  # the first of two that draw at once
            self._held_bytes += drawn_D.nbytes if kept_D is drawn_D else 0
            while self._held_bytes > self._remembered_bytes and len(self._rows) > 1:
                self._held_bytes -= self._rows.popitem(last=False)[1].nbytes
        return kept_D

    @property
    def lasting(self) -> bool:
        """Whether a text has the same noise for ever."""
        return self._secret is not None

    def _digest(self, text: bytes) -> bytes:
        return hashlib.blake2b(text, key=self._secret or b"", digest_size=_DIGEST_BYTES).digest()
