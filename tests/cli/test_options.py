"""One word, one meaning: old names say the new ones, words are suggested, settings have a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from transom.cli import main
from transom.cli.app import RENAMED, App
from transom.cli.options import LedgerOptions, NamedLedger, default_ledger
from transom.cli.output import progress
from transom.config import Setting
from transom.errors import LedgerError, LedgerSpentError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.privacy.ledger import Ledger
from transom.serving.engines.echo import EchoEngine

Colour = Literal["red", "light-blue", "llamacpp"]


@dataclass(frozen=True)
class Paint:
    colour: Annotated[Colour, Setting("Which.")] = "red"
    layers: Annotated[int, Setting("How many.", least=1, most=9)] = 1
    wet: Annotated[bool, Setting("Or dry.")] = False
    names: Annotated[tuple[str, ...], Setting("Whose.")] = ()
    file: Annotated[Path | None, Setting("Where.")] = None


THICK = Paint(layers=3)


def paint(*arguments: str) -> tuple[int, Paint | None, str]:
    """Exit code, what the command got, and what was printed."""
    got: list[Paint] = []
    app = App()

    @app.command()
    def command(
        config: Annotated[Path | None, typer.Option("--config", is_eager=True)] = None,
        *,
        paint: Paint = THICK,
    ) -> None:
        got.append(paint)

    result = CliRunner().invoke(app, arguments)
    return result.exit_code, (got or [None])[0], str(result.exception) + result.output


def plain(text: str) -> str:
    """Without the frame and the wrapping of a usage error."""
    return " ".join(word for word in text.split() if word not in "│╭╮╰╯")


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command, old, new) for command, names in RENAMED.items() for old, new in names.items()],
)
def test_an_old_name_is_refused_with_the_new_one(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([old, "x"], [f"{old}=x"] if old.startswith("--") else [f"{old}x"]):
        assert main.run([*command.split(), *arguments]) == 2
        assert f"{old} is now {new}" in plain(capsys.readouterr().err)
    assert main.run([*command.split(), "--help"]) == 0
    shown = plain(capsys.readouterr().out)
    assert f" {old} " not in shown
    assert new.split()[-1] in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gatway"], "Did you mean 'gateway'?"),
        (["words", "sanitise"], "Did you mean 'sanitize'?"),
        (["gateway", "--polcy", "x"], "did you mean --policy"),
        (["gateway", "--mode", "wrods"], "'wrods' is unknown; did you mean 'words'?"),
        (["gateway", "--mode", "x"], "known: plain, words, enclave, obfuscated, words+obfuscated"),
        (["gateway", "--engine-kind", "lamacpp"], "did you mean 'llamacpp'?"),
        (["gateway", "--engine-limit-field", "max"], "--engine-limit-field"),
        (["gateway", "--evidence", "nonsense"], "known: auto, gramine, tsm, tpm2, insecure-dev"),
        (["attest", "serve", "--evidence", "tmp2"], "did you mean 'tpm2'?"),
        (["engine", "--dtype", "float61"], "did you mean 'float16'?"),
        (["obfuscate", "m", "--out", "o", "--key", "k", "--for", "vlm"], "did you mean 'vllm'?"),
        (["obfuscate", "m", "--out", "o", "--key", "k", "--preset", "papr"], "did you mean 'paper'?"),
        (["obfuscate-gguf", "m", "--out", "o", "--type", "q8"], "did you mean 'q8_0'?"),
        (["words", "sanitize", "--format", "cvs"], "did you mean 'csv'?"),
        (["audit", "embeddings", "--kind", "sentences"], "did you mean 'sentence'?"),
        (["audit", "traffic", "f", "--level", "domains"], "did you mean 'domain'?"),
    ],
)
def test_what_was_meant(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    assert told in plain(capsys.readouterr().err)


def test_fields_become_options_with_the_defaults_of_the_command() -> None:
    assert paint()[:2] == (0, THICK)
    line = ["--colour", "Light-Blue", "--layers", "4", "--wet", "--names", "a", "--names", "b", "--file", "f"]
    assert paint(*line)[1] == Paint("light-blue", 4, True, ("a", "b"), Path("f"))
    assert paint("--colour", "llama.cpp")[1] == Paint("llamacpp", 3)
    for wrong in (["--layers", "0"], ["--layers", "10"], ["--layers", "x"], ["--colour", "blue"], ["extra"]):
        assert paint(*wrong)[0] == 2


def test_a_file_holds_options_and_the_command_line_rules(tmp_path: Path) -> None:
    file = tmp_path / "paint.yaml"
    file.write_text("colour: light-blue\nlayers: 5\nwet: true\nnames: [x, y]\nfile: there\n")
    named = ["--config", str(file)]
    assert paint(*named)[1] == Paint("light-blue", 5, True, ("x", "y"), tmp_path / "there")
    assert paint("--layers", "2", *named)[1] == Paint("light-blue", 2, True, ("x", "y"), tmp_path / "there")
    line = ["--colour", "red", "--no-wet", "--names", "z", "--file", "here"]
    assert paint(*named, *line)[1] == Paint("red", 5, False, ("z",), Path("here"))
    file.write_text("wet: true\n")
    assert paint(*named)[1] == Paint(layers=3, wet=True)  # what the file leaves open is as without it
    file.write_text("coluor: red\nlayers: 12\nnames: x\nwet: 1\n")
    code, got, told = paint(*named)
    assert got is None
    assert code != 0
    for part in ("did you mean 'colour'?", "layers", "names", "wet"):
        assert part in told
    file.write_text("layers: 2\nlayers: 3\n")
    assert "stands twice" in paint(*named)[2]
    assert "check the path" in paint("--config", str(tmp_path / "absent.yaml"))[2]


some = st.fixed_dictionaries(
    {}, optional={"colour": st.sampled_from(["red", "light-blue"]), "layers": st.integers(1, 9)}
)


@given(some, some)
def test_file_and_line_are_merged_in_that_order(
    tmp_path_factory: pytest.TempPathFactory, held: dict[str, Any], typed: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("held") / "paint.json"
    file.write_text(json.dumps(held))
    line = [word for name, value in typed.items() for word in (f"--{name}", str(value))]
    expected = {"layers": 3} | held | typed
    assert paint("--config", str(file), *line)[1] == Paint(**expected)


def test_gateway_and_engine_read_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    served = []
    for place in ("transom.net.listen.serve", "transom.cli.engine.serve"):
        monkeypatch.setattr(place, lambda app, *_, **__: served.append(app))
    file = tmp_path / "transom.yaml"
    file.write_text("mode: plain\nengine_kind: transom\ntokenizer: smollm2\nport: 0\n")
    assert main.run(["gateway", "--config", str(file)]) == 0
    assert "gateway in mode plain at" in capsys.readouterr().err
    assert main.run(["gateway", "--config", str(file), "--mode", "enclave"]) == MisconfiguredError.exit_code
    file.write_text("model: echo\nport: 0\nname: parrot\n")
    assert main.run(["engine", "--config", str(file)]) == 0
    assert "serving parrot at" in capsys.readouterr().err
    file.write_text("modle: echo\nport: -1\n")
    assert main.run(["engine", "--config", str(file)]) == MisconfiguredError.exit_code
    told = capsys.readouterr().err
    assert "did you mean 'model'?" in told
    assert "port" in told
    assert len(served) == 2


def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "transom" / "ledger.sqlite"


def serve_words(*options: str) -> int:
    with serve_in_thread(EchoEngine(model="echo").app()) as url:
        return main.run(["gateway", "--engine", url, "--port", "0", "--preset", "words", *options])


def test_a_gateway_with_words_records_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("transom.net.listen.serve", lambda *_, **__: None)
    monkeypatch.setattr(
        "transom.serving.gateway.app.create_gateway", lambda *parts, **_: given.append(parts[4])
    )
    path = state(tmp_path, monkeypatch)
    assert serve_words("--mode", "plain") == 0
    assert serve_words("--no-ledger") == 0
    assert "neither recorded nor capped" in capsys.readouterr().err
    assert given == [None, None]
    assert not path.parent.exists()
    assert serve_words() == 0
    assert given[2].path == path
    assert given[2].cap_epsilon == 1000
    assert f"recorded in {path}, up to 1000 an account" in capsys.readouterr().err
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert serve_words("--ledger", str(tmp_path / "own"), "--cap", "5") == 0
    assert (given[3].path, given[3].cap_epsilon) == (tmp_path / "own", 5)
    for wrong in (
        ["--no-ledger", "--cap", "5"],
        ["--no-ledger", "--ledger", "x"],
        ["--mode", "plain", "--cap", "5"],
        ["--preset", "entities", "--cap", "5"],
    ):
        assert serve_words(*wrong) == MisconfiguredError.exit_code


def test_a_chat_records_where_gateways_do_and_words_sanitize_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = state(tmp_path, monkeypatch)
    (tmp_path / "in.txt").write_text("My tired colleague\n")
    assert main.run(["words", "sanitize", str(tmp_path / "in.txt")]) == 0
    assert main.run(["ledger", "show"]) == LedgerError.exit_code
    assert not path.exists()
    capsys.readouterr()
    with serve_in_thread(EchoEngine(model="echo").app()) as url:
        line = ["chat", "My tired colleague", "--engine", url, "--max-tokens", "4", "--json"]
        assert main.run([*line, "--cap", "5"]) == MisconfiguredError.exit_code  # by default nothing is drawn
        line += ["--preset", "words"]
        capsys.readouterr()
        assert main.run([*line, "--no-ledger"]) == 0
        assert json.loads(capsys.readouterr().out)["epsilon_total"] is None
        assert not path.exists()
        assert main.run(line) == 0
        spent = json.loads(capsys.readouterr().out)["epsilon_spent"]
        assert main.run(["ledger", "show", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["accounts"] == {"default": pytest.approx(spent)}
        assert main.run([*line, "--cap", str(spent)]) == LedgerSpentError.exit_code
        assert main.run([*line, "--gateway", url]) != 0


def test_two_that_open_the_default_ledger_share_account_and_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state(tmp_path, monkeypatch)
    first, second = (LedgerOptions().open(10.0) for _ in range(2))
    assert first is not None
    assert second is not None
    with first, second:
        for number in range(5):
            (first, second)[number % 2].charge("default", 2.0)
        for ledger in (first, second):
            with pytest.raises(LedgerSpentError):
                ledger.charge("default", 0.5)


def test_where_the_state_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = tmp_path / ".local" / "state" / "transom" / "ledger.sqlite"
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert default_ledger() == usual
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_ledger() == usual
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(LedgerError, match="--no-ledger"):
        default_ledger()


def test_a_named_ledger_alone_is_charged(tmp_path: Path) -> None:
    assert NamedLedger().open() is None
    with pytest.raises(MisconfiguredError, match="nothing is counted"):
        NamedLedger(cap=1.0).check()
    with Ledger(tmp_path / "l", 3.0):
        opened = NamedLedger(tmp_path / "l", 2.0).open()
        assert opened is not None
        assert opened.cap_epsilon == 2.0
        opened.close()


def test_the_common_options_of_the_gateway_fit_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert main.run(["gateway", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    end = next(number for number, line in enumerate(lines, 1) if line.startswith("╰"))
    assert end <= 24
    common = "\n".join(lines[:end])
    for name in ("config", "mode", "engine", "tokenizer", "preset", "epsilon", "ledger", "cap", "port"):
        assert f"--{name} " in common
    panels = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert len(panels) == len(set(panels)) > 5


@pytest.mark.parametrize("arguments", [["version"], ["--version"], ["-v"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 0
    assert capsys.readouterr().out == f"transom {version('transom')}\n"


def test_version_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"transom": version("transom")}


def completed(**environment: str) -> str:
    script = "from transom.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete ")]
)
def test_the_completion_script_comes_out(shell: str, mark: str) -> None:
    script = completed(_TRANSOM_COMPLETE=f"source_{shell}")
    assert mark in script
    assert "transom" in script


def test_words_of_an_option_are_completed() -> None:
    typed = "transom gateway --mode obf"
    done = completed(_TRANSOM_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD="3")
    assert done.split() == ["obfuscated"]


def commands(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the command line, and its words."""
    children = getattr(node, "commands", {})
    if not children:
        yield path, node
    for name, child in children.items():
        yield from commands(child, (*path, name))


LEAVES = dict(commands(get_command(main.app)))


def test_option_names_mean_one_thing() -> None:
    """What a name takes is the same in every command that has it."""
    meanings: dict[str, set[str]] = {}
    for node in LEAVES.values():
        for parameter in node.params:
            for name in parameter.opts:
                meanings.setdefault(name, set()).add(str(parameter.metavar))
    for name in ("--budget", "--cap", "--engine", "--out", "--column", "--ledger", "--prior", "--policy"):
        assert len(meanings[name]) == 1, (name, meanings[name])
    assert not {"-o", "--output", "--output-dir", "--ask"} & set(meanings)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_help_names_every_option_whole(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.split()
    for parameter in LEAVES[path].params:
        assert not parameter.opts[0].startswith("--") or parameter.opts[0] in words


def test_progress_is_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with progress("loading", 2.0, quiet=quiet) as meter:
            meter.advance(1)
            meter.reach(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_shows_on_a_terminal_unless_quiet(quiet: bool) -> None:
    master, slave = os.openpty()
    script = f"from transom.cli.output import progress\nwith progress('loading', quiet={quiet}): pass"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, stderr=slave, stdout=subprocess.PIPE, check=True, env=environment)
    os.set_blocking(master, False)
    try:
        shown = os.read(master, 10_000)
    except BlockingIOError:
        shown = b""
    os.close(slave)
    os.close(master)
    assert done.stdout == b""
    assert (b"loading" in shown) is not quiet
