"""Transom: use models you do not control on data you may not share, and measure what leaked.

The public interface is flat: `from transom import Sanitizer, load_policy`. The stub beside this file says
which names there are and from which room each comes; a name is imported when it is first used, so
`import transom` is quick and needs no torch. Threat model and limits: see each name's module.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


@cache
def _homes() -> dict[str, tuple[str, str]]:
    """Each public name's room, and its name in there."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8"))
    return {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@cache
def _renamed() -> dict[str, str]:
    """The public name of what is called otherwise in its room."""
    return {own: public for public, (_, own) in _homes().items() if own not in _homes()}


def __getattr__(name: str) -> Any:
    """Import a public name from its room."""
    if name == "__all__":
        return sorted(_homes())
    if name in _renamed():  # no AttributeError: `from transom import` would drop its message
        raise ImportError(f"transom.{name} is transom.{_renamed()[name]} now")
    if name.startswith("_") or name not in _homes():
        raise AttributeError(f"module 'transom' has no attribute {name!r}")
    room, own = _homes()[name]
    return getattr(import_module(room), own)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(_homes())
