"""Places are given in the order of arrival, within the budget, and come back whatever happens."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from transom.errors import RefusedError
from transom.serving.engines import admission
from transom.serving.engines.admission import Admission


def widest(tokens: list[int]) -> int:
    return len(tokens) * max(tokens)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_places_are_given_in_order_within_the_budget() -> None:
    places, order = Admission(3, 100, sum, 5), []
    ends = {name: asyncio.Event() for name in "abcde"}

    async def job(name: str, tokens: int) -> None:
        async with places.place(tokens):
            order.append(name)
            await ends[name].wait()

    async with asyncio.TaskGroup() as tasks:
        for name, tokens in (("a", 60), ("b", 30), ("c", 50), ("d", 5), ("e", 5)):
            tasks.create_task(job(name, tokens))
        await settle()
        assert order == ["a", "b"]  # c does not fit, and d behind it waits though it would
        ends["b"].set()
        await settle()
        assert order == ["a", "b"]
        ends["a"].set()
        await settle()
        assert order == ["a", "b", "c", "d", "e"]
        for one in ends.values():
            one.set()


@pytest.mark.parametrize("seed", range(5))
async def test_the_budget_holds_and_all_come_through(seed: int) -> None:
    draw, running = random.Random(seed), list[int]()
    places, done, withdrawn = Admission(4, 64, widest, 30), 0, 0

    async def job(tokens: int) -> None:
        nonlocal done
        async with places.place(tokens):
            running.append(tokens)
            assert len(running) <= 4
            assert widest(running) <= 64
            try:
                await asyncio.sleep(draw.random() * 0.003)
            finally:
                running.remove(tokens)
        done += 1

    jobs = [asyncio.create_task(job(draw.randint(1, 64))) for _ in range(60)]
    for one in jobs:
        if draw.random() < 0.2:
            await asyncio.sleep(0.001)
            one.cancel()
    for one in await asyncio.gather(*jobs, return_exceptions=True):
        withdrawn += isinstance(one, asyncio.CancelledError)
    assert done + withdrawn == 60
    async with places.place(64):  # nobody holds a place any more
        assert not running


async def test_who_waits_too_long_is_sent_away_and_holds_nobody_up() -> None:
    places = Admission(1, 10, sum, 0.05)
    async with places.place(1):
        with pytest.raises(RefusedError, match="no place") as caught:
            async with places.place(1):
                raise AssertionError
        assert caught.value.status == 503
    async with places.place(1):
        pass


async def test_too_many_and_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_MOST_WAITING", 2)
    places = Admission(1, 10, sum, 5)
    with pytest.raises(RefusedError, match="budget of 10"):
        async with places.place(11):
            raise AssertionError

    async def wait() -> None:
        async with places.place(1):
            pass

    async with places.place(1):
        waiting = [asyncio.create_task(wait()) for _ in range(2)]
        await settle()
        with pytest.raises(RefusedError, match="too many") as caught:
            await wait()
        assert caught.value.status == 429
    await asyncio.gather(*waiting)


def test_several_event_loops_share_the_places() -> None:
    places, most, lock = Admission(2, 100, sum, 20), [0, 0], threading.Lock()

    async def job() -> None:
        async with places.place(1):
            with lock:
                most[0] += 1
                most[1] = max(most)
            await asyncio.sleep(0.001)
            with lock:
                most[0] -= 1

    async def several() -> None:
        await asyncio.gather(*(job() for _ in range(20)))

    threads = [threading.Thread(target=asyncio.run, args=(several(),)) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
        assert not one.is_alive()
    assert most == [0, 2]
