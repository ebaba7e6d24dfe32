"""The root of the command line: `transom GROUP COMMAND`. Maps every error to its documented exit code.

Threat model: the terminal belongs to the user, but its scroll-back and the shell's logs may be read later.
So an unexpected failure prints only the exception's type and place; a traceback, which can hold prompt
text, is printed on request (TRANSOM_TRACEBACK=1). Does not protect against: text that the user types as an
argument, which the operating system shows to every process.
Source: exit codes as in docs/exit-codes.md, which is tested against the exception tree.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer
from rich.text import Text

from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, plain_console
from transom.errors import TransomError

HELP = "Use models you do not control on data you may not share, and measure what leaked."
COMMANDS = {  # the module and the function of each
    "demo": "demo.demo",
    "doctor": "doctor.doctor",
    "chat": "chat.chat",
    "gateway": "gateway.gateway",
    "engine": "engine.engine",
    "obfuscate": "obfuscate.obfuscate",
    "obfuscate-gguf": "obfuscated.obfuscate_gguf",
    "broker": "broker.broker",
    "broker-log": "broker.broker_log",
}
GROUPS = (  # modules of commands
    "audit", "backdoor", "hallucination", "pack", "attest", "words", "ledger", "link", "split", "vertical",
)  # fmt: skip


def print_version(wanted: bool) -> None:
    """Print the installed version and stop, when asked to."""
    if wanted:
        typer.echo(f"transom {version('transom')}")
        raise typer.Exit


def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", "-v", callback=print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Use models you do not control on data you may not share, and measure what leaked."""


def show_version(as_json: Json = False) -> None:
    """Print the version."""
    found = version("transom")
    answer({"transom": found}, f"transom {found}", as_json=as_json)


@cache
def application(only: str = "") -> App:
    """The command line: whole, or of one command or group, as the others take their time to be imported."""
    made = App(name="transom", no_args_is_help=True, help=HELP)
    made.callback()(root)
    made.command("version")(show_version)
    for name, place in COMMANDS.items():
        if only in ("", name):
            module, function = place.split(".")
            made.command(name)(getattr(import_module(f"transom.cli.{module}"), function))
    for name in GROUPS:
        if only in ("", name):
            made.add_typer(import_module(f"transom.cli.{name}").app, name=name)
    return made


def __getattr__(name: str) -> App:
    if name == "app":
        return application()
    raise AttributeError(name)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0, 1 (unexpected), 2 (usage), or the error's own."""
    try:
        first = next(iter(arguments), "")
        application(first if first in (*COMMANDS, *GROUPS) else "")(args=list(arguments), prog_name="transom")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except TransomError as error:
        complain(f"{error}", error.kind)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; python would complain about it at exit
        return 1
    except Exception as error:
        if os.environ.get("TRANSOM_TRACEBACK") == "1":
            traceback.print_exc()
        complain(f"{type(error).__name__} in {place(error)}; TRANSOM_TRACEBACK=1 shows more", "unexpected")
        return 1
    return 0


def complain(message: str, kind: str) -> None:
    """One line on standard error, never wrapped, so that scripts can read it."""
    line = Text.assemble((f"transom: {kind}: ", "bold red"), message)
    plain_console(stderr=True).print(line)


def place(error: Exception) -> str:
    """Module file and line where `error` was raised, without any value."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename.rsplit(os.sep, 1)[-1]}:{last.lineno}"


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
