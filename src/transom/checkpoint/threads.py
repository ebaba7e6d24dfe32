"""How many threads torch computes with.

Threat model: none. Does not protect anything. Source: own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, and times of one core: torch's result may depend on its number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class QuickestThreads:
    """One of torch's threads or all of them, whichever took least when it was tried: a small product is done
    before a second thread is awake, and a large one gains by it. Each `work`, such as a number of rows, has
    figures of its own, which are forgotten after a while, as the machine may have been busy."""

    tried: int = 3  # times each
    kept: int = 500  # uses
    _uses: Counter[object] = field(default_factory=Counter)
    _seconds: dict[object, dict[int, list[float]]] = field(default_factory=dict)

    @contextmanager
    def used_for(self, work: object) -> Iterator[None]:
        """While the block runs."""
        import torch

        before = torch.get_num_threads()
        self._uses[work] += 1
        if self._uses[work] % self.kept == 0:
            self._seconds.pop(work, None)
        seconds = self._seconds.setdefault(work, {one: [] for one in sorted({1, before})})
        untried = [one for one, taken in seconds.items() if len(taken) < self.tried]
        chosen = untried[0] if untried else min(seconds, key=lambda one: min(seconds[one]))
        torch.set_num_threads(chosen)
        started_s = time.perf_counter()
        try:
            yield
        finally:
            torch.set_num_threads(before)
        if untried:
            seconds[chosen].append(time.perf_counter() - started_s)
