"""Commands out of plain functions, whose options may stand in configuration dataclasses.

An option is described by the `Setting` in its annotation or by its help alone (`Annotated[int, "How many"]`).
A parameter whose type is a dataclass brings an option for each of its fields, under the class's `PANEL`; its
default is an instance that holds the options' defaults. A `Literal` takes one of its words, and an error says
which was meant. An option's old name is refused with the new one.
Threat model: as the root's. Does not protect anything.
Source: typer's documentation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import MISSING, field, is_dataclass, make_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo, ParameterInfo

from transom.config import Known, Setting, read_config, settings, suggest

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file; options typed here rule.", is_eager=True),
]
_METAVARS = {Path: "PATH", str: "TEXT", float: "NUMBER", int: "N"}
_ALSO = {"llama.cpp": "llamacpp"}
RENAMED: Mapping[str, Mapping[str, str]] = {  # old names of options, and what to write instead
    "gateway": {"--budget": "--cap", "--model": "--tokenizer", "--require-evidence": "--evidence-policy"},
    "engine": {"--model": "an argument: transom engine MODEL"},
    "chat": {"--ask": "an argument: transom chat QUESTION"},
    "obfuscate": {"--engine": "--for"},
    "broker": {"--policy": "--evidence-policy"},
    "attest serve": {"--tcti": "--tpm-tcti", "--pcrs": "--tpm-pcrs"},
    "words sanitize": {"--output": "--out", "-o": "--out", "--output-dir": "--out"},
    "audit words": {"--field": "--column"},
    "audit embeddings": {"--public-text": "--prior"},
}


class App(typer.Typer):
    """A typer application whose commands are made by `spread` and know the old names of their options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"pretty_exceptions_enable": False, **settings})

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        """As typer's; what is decorated stays as it is."""

        def register(function: Callable[..., None]) -> Callable[..., None]:
            super(App, self).command(*names, cls=Command, **settings)(spread(function))
            return function

        return register


class Command(TyperCommand):
    """A command that says which option was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's. Raises its usage errors."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer's classes of usage errors have no public place
            if not hasattr(error, "possibilities"):
                raise
            old = str(getattr(error, "option_name", ""))
            ctx.fail(_unknown(ctx.command_path.partition(" ")[2], old, error.possibilities or ()))
            raise


def _unknown(command: str, option: str, near: Iterable[str]) -> str:
    new = RENAMED.get(command, {}).get(option)
    if new is not None:
        return f"{option} is now {new}"
    meant = next(iter(near), None)  # the nearest
    return f"No such option: {option}" + (f"; did you mean {meant}?" if meant else "")


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with the fields of its dataclass parameters in their places."""
    hints = get_type_hints(function, include_extras=True)
    given = inspect.signature(function).parameters.values()
    groups = {one.name: hints[one.name] for one in given if is_dataclass(hints[one.name])}
    parameters: list[inspect.Parameter] = []
    for one in given:
        if one.name in groups:
            parameters += fields_of(groups[one.name], one.default)
        else:
            parameters.append(_keyword(one.name, hints[one.name], one.default))
    if "config" in hints:
        known = {name: one for cls in groups.values() for name, one in settings(cls).items()}
        parameters = _from_file(parameters, known)

    @wraps(function)
    def command(**values: Any) -> None:
        made = {
            name: cls(**{field: _tuple(values.pop(field)) for field in settings(cls)})
            for name, cls in groups.items()
        }
        function(**values, **made)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


def fields_of(cls: type, defaults: Any = inspect.Parameter.empty) -> list[inspect.Parameter]:
    """An option for each field of a dataclass; `defaults` is an instance, if there is one."""
    made = []
    for name, known in settings(cls).items():
        default = inspect.Parameter.empty if known.default is MISSING else known.default
        if defaults is not inspect.Parameter.empty:
            default = getattr(defaults, name)
        said = replace(known.setting, panel=known.setting.panel or getattr(cls, "PANEL", ""))
        made.append(_keyword(name, Annotated[known.kind, said], default))
    return made


def _from_file(parameters: list[inspect.Parameter], known: Mapping[str, Known]) -> list[inspect.Parameter]:
    """The parameters, their defaults taken from the file that is named by the first of them, `config`."""
    file, *rest = parameters
    held = []
    for one in rest:
        kind = get_args(one.annotation)[0]
        if one.name in known:
            kind = Annotated[known[one.name].kind, known[one.name].setting]
        held.append((one.name, kind, field(default=one.default)))
    cls = make_dataclass("ConfigFile", held, frozen=True, kw_only=True)

    def read(ctx: typer.Context, config: Path | None) -> Path | None:
        if config is not None:
            ctx.default_map = dict(vars(read_config(cls, config)))
        return config

    kind, option = get_args(file.annotation)
    option = copy(option)
    option.callback = read
    return [file.replace(annotation=Annotated[kind, option]), *rest]


def _option(name: str, kind: Any, note: Any) -> Any:
    """What typer takes for a `Setting`, or for a help text."""
    said = Setting(note) if isinstance(note, str) else note
    if not isinstance(said, Setting):
        return note
    flag = f"--{name.replace('_', '-')}"
    if kind in (bool, bool | None) and not name.startswith(("no_", "json")):
        flag = f"{flag}/--no{flag[1:]}"
    panel = said.panel or None
    return typer.Option(flag, help=said.help, rich_help_panel=panel, min=said.least, max=said.most)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A parameter as typer takes it."""
    kind, *notes = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    core = kind  # the X of list[X] | None
    while get_args(core) and get_origin(core) is not Literal:
        core = get_args(core)[0]
    shown: tuple[str, ...] | str = get_args(core) or _METAVARS.get(core, "")
    notes = [_option(name, kind, one) for one in notes]
    notes = [_worded(one, shown) if isinstance(one, ParameterInfo) else one for one in notes]
    if get_origin(kind) is tuple:
        kind = list[str] if isinstance(shown, tuple) else list[core]  # type: ignore[valid-type]
    typed = Annotated[(kind, *notes)] if notes else kind
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=typed)


def _worded(note: ParameterInfo, words: tuple[str, ...] | str) -> ParameterInfo:
    """The option with a name for its value, which is one of `words` if they are several."""
    option = copy(note)
    if isinstance(words, str):
        if isinstance(option, OptionInfo):  # an argument goes by its own name
            option.metavar = option.metavar or words or None
        return option
    option.metavar = "WORD"
    option.help = f"{(option.help or '').rstrip('.')}: {', '.join(words)}."
    option.parser = _word_of(words)
    option.autocompletion = lambda incomplete: [word for word in words if word.startswith(incomplete)]
    return option


def _word_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def word(text: str) -> str:
        found = text.lower()
        for also, name in _ALSO.items():
            found = found.replace(also, name)
        if found in words:
            return found
        raise typer.BadParameter(f"{text!r} is unknown; {suggest(text, words)}")

    return word


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
