"""The root command: version, help, and every error's exit code on one line of standard error."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from transom import errors
from transom.cli import main

SECRET = "unexpected-canary-5531"


def tree() -> list[type[errors.TransomError]]:
    found = vars(errors).values()
    return [kind for kind in found if isinstance(kind, type) and issubclass(kind, errors.TransomError)]


def make(error: type[errors.TransomError]) -> errors.TransomError:
    return error("models", "torch") if error is errors.MissingExtraError else error("it did not work")


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Replace the command line by one that raises the given exception."""

    def install(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(main, "application", lambda _only="": app)

    return install


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"transom {version('transom')}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("demo", "doctor", "chat", "gateway", "engine", "words", "ledger"):
        assert f" {name} " in shown


@pytest.mark.parametrize("arguments", [["no-such-command"], ["doctor", "--no-such-option"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert main.run(arguments) == 2


@pytest.mark.parametrize("error", tree(), ids=lambda error: error.__name__)
def test_every_error_has_its_exit_code_and_one_line(error, raising, capsys) -> None:
    raising(make(error))
    assert main.run([]) == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"transom: {error.kind}: {make(error)}\n"


def test_long_message_stays_on_one_line_and_markup_is_text(raising, capsys) -> None:
    message = "pip install 'transom[models]' " * 20
    raising(errors.MisconfiguredError(message))
    main.run([])
    assert capsys.readouterr().err == f"transom: misconfigured: {message}\n"


def test_unexpected_failure_shows_no_content(raising, capsys) -> None:
    raising(ValueError(SECRET))
    assert main.run([]) == 1
    shown = capsys.readouterr().err
    assert "ValueError in test_main.py:" in shown
    assert SECRET not in shown


def test_traceback_on_request(raising, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TRANSOM_TRACEBACK", "1")
    raising(ValueError(SECRET))
    assert main.run([]) == 1
    assert SECRET in capsys.readouterr().err


def test_integer_and_absent_exit_status(raising) -> None:
    raising(typer.Exit(7))
    assert main.run([]) == 7
    raising(typer.Exit())
    assert main.run([]) == 0


def test_command_line_starts_without_heavy_imports() -> None:
    heavy = {"torch", "transformers", "gguf", "matplotlib", "openai", "scipy.optimize"}
    script = (
        "import sys; from transom.cli.main import run; code = run(['--help']);"
        f"print(code, sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("transom")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("transom ")


def test_documented_exit_codes_are_the_tree() -> None:
    page = (Path(__file__).parents[2] / "docs/exit-codes.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    documented = {(row[0], row[1].split("`")[1], row[2], row[3]) for row in cells if "Error`" in row[1]}
    assert documented == {(str(e.exit_code), e.__name__, str(e.http_status), e.kind) for e in tree()}
