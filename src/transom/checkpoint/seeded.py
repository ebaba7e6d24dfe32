"""Torch's own randomness from a seed, for a block: of fresh weights, of dropout, of what a library draws.

Threat model: none here. Does not protect anything: what is private draws from the operating system.
Source: torch's default generator, of which there is one for the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_RANDOMNESS = threading.RLock()


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Torch's randomness within the block is that of the seed, and outside what it was, on the processor.
    Blocks of other threads wait: of two that only fork it, one would draw what the other has seeded."""
    import torch

    generator = torch.default_generator  # `torch.manual_seed` notes its caller for devices that are not there
    with _RANDOMNESS:
        before = generator.get_state()
        generator.manual_seed(seed)
        if device != "cpu":
            torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            generator.set_state(before)
