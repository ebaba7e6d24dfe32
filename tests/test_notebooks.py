"""Notebooks of the examples: their form, and that they show nobody's machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").rglob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_one_and_shows_nobodys_machine(file: Path) -> None:
    notebook = json.loads(file.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells: list[dict[str, Any]] = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream"}
    counts = [cell["execution_count"] for cell in code]
    assert counts in ([None] * len(code), [*range(1, len(code) + 1)])
    text = "".join(line for output in outputs for line in output["text"])
    text += "".join(line for cell in cells for line in cell["source"])
    assert not re.search(r"(?<![\w.)/])/\w|[A-Z]:\\", text)
    assert f"({file.name})" in (file.parent / "README.md").read_text()
