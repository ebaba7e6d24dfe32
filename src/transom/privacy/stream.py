"""One secret, many labelled streams of randomness: what was drawn once can be derived again.

A stream is AES-256 in counter mode under HKDF-SHA256(secret, label). Whoever holds the secret derives the
same matrix or noise in any process, in any order: workers need not talk, a resumed run continues where it
stopped, and a message that is sent again carries the noise of the first time, so it tells nothing new.

Threat model: the peer sees what was made with the randomness, and not the secret.
Does not protect a secret that is used for two things under one label: labels name the use. Noise for two
different values under one label cancels out in their difference. Normals are float64, not exact.
Source: RFC 5869 (HKDF), NIST SP 800-38A (CTR); Mironov 2012 on the bits of floating-point noise.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError, extra

SECRET_BYTES = 32
_CHUNK = 2**16  # numbers made at once: they and what they are made from stay in the processor's cache
_BELOW_ONE = 1.0 - 2.0**-53
_DOMAIN = b"transom/obfuscation/1/"  # of the first user: another one would change the matrices of every key

Direction = Literal["forward", "backward"]


def step_label(
    run: str, epoch: int, batch: int, direction: Direction, *, topic: str = "train", attempt: int = 0
) -> str:
    """The label of one step's noise. No two steps of any runs share one. Raises MisconfiguredError.

    `topic` is what the step is for, and `attempt` counts the times that its batch was given out again.
    """
    for name, what in ((run, "run"), (topic, "topic")):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
            raise MisconfiguredError(
                f"a {what}'s name is 1 to 100 letters, digits, dots and dashes, got {len(name)} characters"
            )
    if min(epoch, batch, attempt) < 0 or direction not in ("forward", "backward"):
        raise MisconfiguredError(
            f"a step counts epoch, batch and attempt from 0 and goes forward or backward, got {epoch}, "
            f"{batch}, {attempt}, {direction!s:.20}"
        )
    label = f"noise/{run}/{epoch:d}/{batch:d}/{direction}"
    return label if (topic, attempt) == ("train", 0) else f"{label}/{topic}/{attempt:d}"


class Stream:
    """The randomness of one label. Each call continues where the last one ended.

    Raises MisconfiguredError for a secret that is not 32 bytes, MissingExtraError without `cryptography`.
    """

    def __init__(self, secret: bytes, label: str) -> None:
        if len(secret) != SECRET_BYTES:
            raise MisconfiguredError(f"the secret has {len(secret)} bytes; it must have {SECRET_BYTES}")
        self._encryptor = _encryptor(secret, label)

    def bytes(self, n: int) -> bytes:
        """The next `n` bytes."""
        output: bytes = self._encryptor.update(bytes(n))
        return output

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next `n` 64-bit integers."""
        return np.frombuffer(self.bytes(8 * n), "<u8").astype(np.uint64, copy=False)

    def uniform(self, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        """float64 in the open interval (0, 1)."""
        made = np.empty(int(np.prod(shape)))
        for start in range(0, len(made), _CHUNK):
            piece = made[start : start + _CHUNK]
            piece[:] = ((self.words(len(piece)) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
            np.minimum(piece, _BELOW_ONE, out=piece)  # the largest word of all is rounded up to 1
        return made.reshape(shape)

    def normal(self, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        """float64 from N(0, 1), by Box and Muller's formula, in the place of the uniforms."""
        n = int(np.prod(shape))
        pairs = self.uniform((2, (n + 1) // 2))
        for start in range(0, pairs.shape[1], _CHUNK):
            piece = pairs[:, start : start + _CHUNK]
            radius, turn = np.sqrt(-2.0 * np.log(piece[0])), 2.0 * np.pi * piece[1]
            piece[0], piece[1] = radius * np.cos(turn), radius * np.sin(turn)
        return pairs.reshape(-1)[:n].reshape(shape)

    def normal32(self, shape: int | tuple[int, ...]) -> NDArray[np.float32]:
        """float32 from N(0, 1) at a quarter of the cost of `normal`; for noise, tails end at 6.7."""
        n = int(np.prod(shape))
        words = np.frombuffer(self.bytes(8 * ((n + 1) // 2)), "<u4").reshape(2, -1)
        pairs = np.empty(words.shape, np.float32)
        for start in range(0, words.shape[1], _CHUNK):
            piece, made = words[:, start : start + _CHUNK], pairs[:, start : start + _CHUNK]
            radius = np.sqrt(-2.0 * np.log((piece[0] + 0.5).astype(np.float32) * np.float32(2.0**-32)))
            turn = piece[1].astype(np.float32) * np.float32(2.0**-31 * np.pi)
            made[0], made[1] = radius * np.cos(turn), radius * np.sin(turn)
        return pairs.reshape(-1)[:n].reshape(shape)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """A permutation of 0..n-1: the order of n random words (a tie has probability n^2 / 2^65)."""
        return np.argsort(self.words(n), kind="stable").astype(np.int64)

    def signs(self, n: int) -> NDArray[np.float64]:
        """`n` values, each -1.0 or 1.0."""
        return (self.words(n) & np.uint64(1)).astype(np.float64) * 2.0 - 1.0

    def orthogonal(self, d: int) -> NDArray[np.float64]:
        """A d x d orthogonal matrix from Haar's measure: QR of a Gaussian, with the signs of R moved to Q."""
        import torch  # its QR keeps to torch's number of threads, and numpy's may fight the other workers'

        q, r = torch.linalg.qr(torch.from_numpy(self.normal((d, d))))
        return np.asarray(q.mul_(torch.where(r.diagonal() < 0, -1.0, 1.0)).numpy())


def _encryptor(secret: bytes, label: str) -> Any:
    with extra("enclave", "cryptography"):
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    key = HKDF(SHA256(), length=32, salt=None, info=_DOMAIN + label.encode()).derive(secret)
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
