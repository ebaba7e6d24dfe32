"""The documentation keeps its word: links resolve, named tests exist, generated pages do not drift."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import runpy
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import transom
from transom.cli.main import app
from transom.privacy.data import ENGLISH_PATH, ENGLISH_SHA256
from transom.privacy.kinds import KINDS, SUBKINDS, about

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("deploy/**/*.md"),
    ]
)
DOCUMENTED = [page for page in PAGES if page.name not in ("CHANGELOG.md", "LOG.md")]  # these tell of the past
CHANGES = (
    "an architecture",
    "a word mechanism",
    "an engine kind",
    "an evidence kind",
    "a route",
    "an attack",
    "a report format",
    "a gateway option",
    "a stop rule",
    "a tokenizer quirk",
)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
GUARANTEES = (ROOT / "GUARANTEES.md").read_text()
README = (ROOT / "README.md").read_text()


def rows() -> list[list[str]]:
    """The cells of the guarantees' table, without its head."""
    lines = [line for line in GUARANTEES.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    """A word in capitals at the end of a line is a mark for what was to be written there."""
    assert not re.findall(r"(?:^|[ .])[A-Z]{6,}$", page.read_text(), re.MULTILINE)


def test_readme_opens_with_the_job_the_two_commands_and_the_picture() -> None:
    places = [
        README.index(part) for part in ("# Transom", "make demo", "make test", ".svg)", "not protected")
    ]
    assert places == sorted(places)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile, target


def test_every_guarantee_names_a_test_and_a_file_that_exist() -> None:
    assert len(rows()) > 10
    for promise, assumption, source, tests, files in rows():
        assert promise
        assert assumption
        assert source
        assert quoted(tests), promise
        for name in quoted(tests):
            path, _, function = name.partition("::")
            defined = [
                node.name
                for node in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            assert function in defined, name
        assert quoted(files)
        assert all((ROOT / name).is_file() for name in quoted(files)), files


def test_policy_hash_is_the_shipped_pin() -> None:
    assert re.findall(r"[0-9a-f]{64}", GUARANTEES) == [ENGLISH_SHA256]
    assert ENGLISH_SHA256 in (ROOT / "docs/english-policy.md").read_text(), (
        "run: python docs/generate.py policy"
    )


def test_command_line_page_does_not_drift(generate: ModuleType) -> None:
    assert generate.cli_page() == (ROOT / "docs/cli.md").read_text(), "run: python docs/generate.py cli"


def test_python_page_does_not_drift_and_leaves_no_name_out(generate: ModuleType) -> None:
    page = (ROOT / "docs/api.md").read_text()
    assert generate.api_page() == page, "run: python docs/generate.py api"
    assert sorted(re.findall(r"^### (\w+)$", page, re.MULTILINE)) == transom.__all__
    for block in re.findall(r"```python\n(.+?)```", page, re.DOTALL):
        ast.parse(f"{block.strip()}: ..." if block.startswith("class") else f"def {block.strip()}: ...")


def test_policy_page_does_not_drift(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "EPSILONS", (4.0,))
    page = (ROOT / "docs/english-policy.md").read_text()
    assert set(generate.policy_page().splitlines()) <= set(page.splitlines())


def test_picture_shows_both_sides() -> None:
    drawn = (ROOT / "docs/chat-show-host.svg").read_text().replace("&#160;", " ")
    assert drawn.startswith("<svg")
    for part in ("your side", "the host&#x27;s side", "[PERSON_1]", "Marguerite", "epsilon"):
        assert part in drawn
    assert "/tmp" not in drawn


@pytest.mark.parametrize("page", DOCUMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile_and_import_what_there_is(page: Path) -> None:
    """Of `transom`, also by way of a module; other packages are theirs."""
    for block in re.findall(r"^```python\n(.+?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if page.name == "api.md":  # signatures
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("transom"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("page", DOCUMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_this_repository_exist(page: Path) -> None:
    """A name of a folder here, or of a file in one."""
    text = re.sub(r"^```.+?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for path in re.findall(r"`((?:src|tests|docs|benchmarks|examples|deploy|findings|\.ci)/[\w./*-]+)", text):
        assert list(ROOT.glob(path.rstrip("/."))), f"{page.name} names {path}"
    for module in re.findall(r"`(transom(?:\.\w+)+)", text):
        room, _, name = module.rpartition(".")
        found = importlib.util.find_spec(room) and (
            importlib.util.find_spec(module) or hasattr(importlib.import_module(room), name)
        )
        assert found, f"{page.name} names {module}"


@pytest.mark.parametrize("page", DOCUMENTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    """Every line `$ transom ...`, and its continuations, against the command line itself."""
    for line in re.findall(
        r"^(?:\$ |    )?(transom [a-z].+)$", page.read_text().replace("\\\n", " "), re.MULTILINE
    ):
        command: Any = typer.main.get_command(app)
        words = line.split("#")[0].split("|")[0].split()[1:]
        while words and words[0] in (commands := getattr(command, "commands", {})):
            command = commands[words.pop(0)]
        if hasattr(command, "commands"):
            continue  # a name in a table, or prose
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= known | {"--help"}, f"{page.name}: {line}"


def test_contributing_names_layers_as_they_are_checked_and_files_that_exist() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    layers = " > ".join(contract["layers"]).replace("transom.", "")
    assert f"`{layers}`" in " ".join(contributing.split())
    for row in contributing.splitlines():
        if row.startswith("| ") and "written in" not in row:
            named = [name for name in re.findall(r"`([\w/.]+)`", row) if "/" in name or ".py" in name]
            assert named, row
            for name in named:
                assert (ROOT / "src/transom" / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("change", CHANGES)
def test_contributing_says_where_a_change_belongs(change: str) -> None:
    assert f"\n| {change}" in (ROOT / "CONTRIBUTING.md").read_text()


def test_words_page_lists_every_kind_and_what_each_preset_does_with_it(generate: ModuleType) -> None:
    table = generate.kinds_table()
    assert all(f"{kind} | {about(kind)} |" in table for kind in (*KINDS, *SUBKINDS))
    assert table in (ROOT / "docs/words.md").read_text(), "run: python docs/generate.py kinds"


@pytest.mark.parametrize("page", ["words", "serving"])
def test_job_pages_say_what_they_do_not_do(page: str) -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / f"docs/{page}.md").read_text(), re.MULTILINE)
    assert [
        h for h in heads if h in ("Protects against", "Does not protect against", "Measured", "Cost")
    ] == [
        "Protects against",
        "Does not protect against",
        "Measured",
        "Cost",
    ]


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run_and_hide_the_name(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(example), run_name="__main__")
    sent = next(
        line for line in capsys.readouterr().out.splitlines() if "leaves" in line or "received" in line
    )
    assert "[PERSON_1]" in sent
    assert "Marguerite" not in sent
    assert f"({example.name})" in (ROOT / "examples/README.md").read_text()


def test_package_data_is_small() -> None:
    files = [path for path in ENGLISH_PATH.parent.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_derived_works_carry_their_licences() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for name in (
        "GloVe 6B",
        "all-MiniLM-L6-v2",
        "WordNet 3.0 Copyright 2006 by Princeton University",
        "C.J. Hutto",
    ):
        assert name in notice
    assert "Apache License" in (ROOT / "LICENSE").read_text()
