"""Torch's randomness in a block is its seed's, whatever other threads do, and outside what it was."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch

from transom.checkpoint.seeded import seeded
from transom.checkpoint.tiny import tiny_bert


def drawn(seed: int, count: int = 6) -> list[float]:
    found = []
    with seeded(seed):
        for _ in range(count):
            found.append(float(torch.rand(())))
            time.sleep(0.002)  # for another thread to draw, or to seed, in between
    return found


def test_blocks_of_several_threads_draw_each_its_own() -> None:
    wanted, got = {seed: drawn(seed) for seed in range(4)}, dict[int, list[float]]()
    threads = [
        threading.Thread(target=lambda seed=seed: got.update({seed: drawn(seed)})) for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted
    assert len({tuple(one) for one in wanted.values()}) == 4


def test_a_seed_is_what_torch_calls_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        wanted = torch.rand(5)
    with seeded(11):
        assert torch.equal(torch.rand(5), wanted)


def test_outside_the_randomness_goes_on_as_it_was(tmp_path: Path) -> None:
    with seeded(7):
        straight = [float(torch.rand(())) for _ in range(3)]
    with seeded(7):
        first = float(torch.rand(()))
        with seeded(8):  # within one thread blocks nest
            torch.rand(5)
        tiny_bert(tmp_path / "model")
        assert [first, *(float(torch.rand(())) for _ in range(2))] == straight
