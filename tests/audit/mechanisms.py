"""Mechanisms that misbehave, by name, for the tests that draw from them in a process of their own."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from typing import Any

NOT_CALLABLE = "a string"
CLAIM = 1.0
CALLS = 0


def coin(value: str) -> str:
    """Randomised response between two words, at epsilon ln 3."""
    return value if random.random() < 0.75 else {"a": "b", "b": "a"}[value]


def deaf(_: object) -> int:
    return random.randrange(4)


def vector(value: list[float]) -> list[float]:
    return [x + random.gauss(0, 1) for x in value]


def vector_of_one(value: str) -> list[float]:
    return vector([float(value == "b")])


def array(value: list[float]) -> Any:
    import numpy as np

    return np.array(value, dtype=np.float32)[None]


def token_ids(value: list[int]) -> list[int]:
    return [x + random.randrange(2) for x in value]


def changes_its_input(value: list[int]) -> int:
    value.append(0)
    return len(value)


def prints(value: str) -> str:
    print("much text " * 5000)
    os.write(1, b"more\n")
    return coin(value)


def raises(_: object) -> int:
    raise KeyError("text that nobody may see")


def raises_later(_: object) -> int:
    global CALLS
    CALLS += 1
    return 1 // (CALLS < 100)


def leaves(_: object) -> int:
    sys.exit("goodbye")


def hangs(_: object) -> int:
    time.sleep(1000)
    return 1


def hangs_later(value: str) -> str:
    global CALLS
    CALLS += 1
    if CALLS > 4000:
        time.sleep(1000)
    return coin(value)


def ends(_: object) -> int:
    os._exit(3)


def killed(_: object) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


def interrupts(_: object) -> int:
    raise KeyboardInterrupt("text that nobody may see")


class OwnExit(BaseException):
    pass


def raises_its_own(_: object) -> int:
    raise OwnExit("text that nobody may see")


class Odd:
    """An output whose own methods raise."""

    def __init__(self, **methods: BaseException) -> None:
        self.methods = methods

    def __hash__(self) -> int:
        return self._say("hash")

    def __eq__(self, other: object) -> bool:
        return bool(self._say("eq"))

    def _say(self, method: str) -> int:
        if method in self.methods:
            raise self.methods[method]
        return 0


class OddArray:
    def __array__(self, *_: object) -> Any:
        raise KeyboardInterrupt("text that nobody may see")


def odd_hash(_: object) -> Odd:
    return Odd(hash=ValueError("text that nobody may see"))


def odd_equality(_: object) -> Odd:
    return Odd(eq=KeyboardInterrupt("text that nobody may see"))


def odd_array(_: object) -> OddArray:
    return OddArray()


def holds_itself(_: object) -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def writes_everywhere(value: str) -> str:
    for number in range(3, 1024):
        with suppress(OSError):
            os.write(number, b"text that nobody may see\n")
    return coin(value)


def closes_everything(value: str) -> str:
    os.closerange(3, 1024)
    time.sleep(1000)
    return coin(value)


def suppresses(value: str) -> str | None:
    return random.choice([None, value])


def suppresses_inside(value: str) -> tuple[str | None, int]:
    return suppresses(value), 1


def a_dict(_: object) -> dict[str, int]:
    return {}


def an_object(_: object) -> object:
    return object()


def an_object_inside(_: object) -> tuple[object]:
    return (object(),)


def a_set_inside(_: object) -> tuple[set[int]]:
    return ({1},)


def ragged(_: object) -> list[float]:
    return [1.0] * random.randrange(1, 3)


def now_a_word(_: object) -> Any:
    return random.choice([1.0, "word"])


def never_twice(value: str) -> str:
    return f"{value}{random.getrandbits(64)}"
