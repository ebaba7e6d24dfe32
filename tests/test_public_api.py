"""The flat public interface: complete, typed, equal to `__all__`, and free until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import transom

SOURCE = Path(transom.__file__).read_text()
HOUSE = Path(transom.__file__).parent
MODULES = {path.relative_to(HOUSE).as_posix(): path.read_text() for path in HOUSE.rglob("*.py")}
MOST_LINES, MOST_FUNCTION_LINES = 400, 80
LARGE_FILES = {"privacy/ledger.py"}  # still larger; no more may join them
LONG_FUNCTIONS = {"cli/gateway.py::gateway"}


def typed_names() -> dict[str, str]:
    """name -> room, as type checkers read the module."""
    tree = ast.parse(SOURCE)
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    return {
        alias.name: str(node.module)
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    lazy = {name: room for room, names in transom._HOMES.items() for name in names.split()}
    assert lazy == typed_names()
    assert transom.__all__ == sorted(lazy)
    assert dir(transom) == sorted(transom.__all__)


@pytest.mark.parametrize("name", transom.__all__)
def test_every_name_is_its_rooms_own_and_documented(name: str) -> None:
    value = getattr(transom, name)
    assert value is getattr(import_module(typed_names()[name]), name)
    assert value.__doc__
    assert value.__module__ == typed_names()[name]


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        transom.no_such_name  # noqa: B018
    assert not hasattr(transom, "_no_such_name")


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
    assert {name for name, lines in sizes.items() if lines > MOST_LINES} <= LARGE_FILES


def test_no_function_outgrows_a_page() -> None:
    long = {
        f"{name}::{node.name}"
        for name, text in MODULES.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_FUNCTION_LINES
    }
    assert long <= LONG_FUNCTIONS


def test_sizes_are_looked_at_in_every_file() -> None:
    """Many files share their names with others of another room."""
    assert len(MODULES) > len({Path(name).name for name in MODULES})
