"""The flat public interface: complete, typed, equal to `__all__`, and free until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import transom

HOUSE = Path(transom.__file__).parent
MODULES = {path.relative_to(HOUSE).as_posix(): path.read_text() for path in HOUSE.rglob("*.py")}
MOST_LINES, MOST_FUNCTION_LINES = 400, 80


STUB = ast.parse(HOUSE.joinpath("__init__.pyi").read_text())
HOMES = transom._homes()


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    listed = next(node.value for node in STUB.body if isinstance(node, ast.Assign))
    assert ast.literal_eval(listed) == transom.__all__ == dir(transom) == sorted(HOMES)
    assert {type(node) for node in STUB.body} == {ast.Expr, ast.ImportFrom, ast.Assign}


@pytest.mark.parametrize("name", transom.__all__)
def test_every_name_is_its_rooms_own_and_documented(name: str) -> None:
    room, own = HOMES[name]
    value = getattr(transom, name)
    assert value is getattr(import_module(room), own)
    assert value.__doc__
    assert value.__module__ == room
    assert value.__name__ == own


def test_no_name_is_a_rooms() -> None:
    """`from transom import NAME` would give the one or the other, by what was imported before."""
    rooms = {path.name.removesuffix(".py") for path in HOUSE.iterdir()}
    assert not rooms & {*transom.__all__, *transom._renamed()}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        transom.no_such_name  # noqa: B018
    assert not hasattr(transom, "_no_such_name")


@pytest.mark.parametrize(("old", "new"), transom._renamed().items())
def test_an_old_name_says_its_new_one(old: str, new: str) -> None:
    assert new in transom.__all__
    assert old not in transom.__all__
    with pytest.raises(ImportError, match=f"transom.{old} is transom.{new} now"):
        exec(f"from transom import {old}")  # noqa: S102


def test_a_star_brings_every_name() -> None:
    brought: dict[str, object] = {}
    exec("from transom import *", brought)  # noqa: S102
    assert brought.keys() - {"__builtins__"} == set(transom.__all__)


def test_import_is_free_and_using_privacy_needs_no_torch() -> None:
    script = (
        "import sys, transom; print(sorted(m for m in sys.modules if m.startswith('transom.')));"
        "transom.Sanitizer, transom.create_gateway, transom.EchoEngine, transom.load_tokenizer;"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False False"]


def test_package_says_that_it_is_typed() -> None:
    assert Path(transom.__file__).with_name("py.typed").exists()


def test_no_file_outgrows_the_house() -> None:
    sizes = {name: len(text.splitlines()) for name, text in MODULES.items()}
    assert not {name for name, lines in sizes.items() if lines > MOST_LINES}


def test_no_function_outgrows_a_page() -> None:
    long = {
        f"{name}::{node.name}"
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    }
    assert not long


def test_sizes_are_looked_at_in_every_file() -> None:
    """Many files share their names with others of another room."""
    assert len(MODULES) > len({Path(name).name for name in MODULES})
