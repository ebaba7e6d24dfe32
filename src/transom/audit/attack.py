"""The one seam of the audit: what an attack is, and how a user's own is found.

An attack is anything with a name, a metric and one call: each module of `transom.audit.attacks`, an `Attack`
that binds a function to what it needs, or an object of a user's own, given as `module:object`.

Threat model: a user's object is the user's own code and runs with all the rights of the audit. Does not
protect against: an object that lies about what it found.
Source: own design.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from transom.errors import MisconfiguredError
from transom.report.finding import Attack


def choose(builtin: Sequence[Attack], wanted: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks in `wanted`: names of built-in ones choose among them, `module:object` adds a user's own.

    With no name in `wanted` every built-in one is chosen. Raises MisconfiguredError.
    """
    names = {name.lower() for name in wanted if ":" not in name}
    known = {attack.NAME.lower(): attack.NAME for attack in builtin}
    if unknown := sorted(names - set(known)):
        listed = ", ".join(known.values())
        raise MisconfiguredError(f"unknown attack {unknown[0]!r}; known: {listed}, or module:object")
    chosen = [attack for attack in builtin if not names or attack.NAME.lower() in names]
    return (*chosen, *(require_attack(load_object(place), place) for place in wanted if ":" in place))


def require_attack(found: Any, place: str) -> Attack:
    """`found`, which was given as `place`, if it is an attack. Raises MisconfiguredError."""
    if isinstance(found, type):
        raise MisconfiguredError(f"{place} is a class; name an object made of it")
    named = all(isinstance(getattr(found, name, None), str) for name in ("NAME", "METRIC"))
    if not named or not callable(getattr(found, "attack", None)):
        raise MisconfiguredError(
            f"{place} is a {type(found).__name__} without NAME, METRIC and attack(target, knowledge, data, "
            "budget_s); an attack needs all three"
        )
    attack: Attack = found
    return attack


def load_object(place: str) -> Any:
    """The object at `module:object`, looked for in the working directory first. Raises MisconfiguredError."""
    module_name, _, path = place.partition(":")
    if not module_name or not path:
        raise MisconfiguredError(f"{place!r} is not module:object; write for instance my_attacks:Guess")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with redirect_stdout(sys.stderr):  # standard output is the report's
            found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # a user's module may raise anything; its text may hold anything
        raise MisconfiguredError(
            f"{place} cannot be imported ({type(error).__name__}); is it in this folder or installed?"
        ) from None
    return found
