"""JSON and YAML that other people wrote, read only if it can be read in one way, and as a typed value.

Of a name that stands twice one parser takes the first and another the last: what one reader checks is then
not what another uses. It is refused wherever we read, in files, bundles and requests.
A frozen dataclass says what a file may hold: `read_config(Settings, path)`. Fields are bool, int, float, str,
Path, Literal, another dataclass, `X | Y`, `tuple[X, ...]`, `Mapping[str, X]` or Any, and `Annotated` with a
`Setting` for bounds and help, or a text for help alone. Nothing is converted but whole numbers to float, text
to Path (relative to its file's folder) and lists to tuples. What concerns several fields `problems()` tells.
Threat model: an author who shows one value and means the other; nesting that exhausts the stack; YAML whose
aliases grow when they are followed; a key in a wrong place, whose value a message must not repeat.
Does not protect: what is well typed and within bounds. The size of JSON is its reader's to bound.
Source: RFC 8259, section 4; YAML 1.2.2, section 3.2.1.1.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from transom.errors import MisconfiguredError, TransomError, system_errors
from transom.files import read_bounded

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

MAX_YAML_CHARS = 2**18  # settings; the parser is slow
_MAX_FILE_BYTES = 2**22
_MAX_PROBLEMS = 20
_LARGEST = sys.float_info.max
_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")
_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_SHAPES: tuple[tuple[Any, str], ...] = (
    (str, "text of {} characters"),
    (list | tuple, "a list of {}"),
    (Mapping, "a mapping of {}"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is said of a field beside its type: `Annotated[int, Setting("Port to bind.", least=0)]`.

    `least`, `above` and `most` bound numbers; `pattern` is what the whole of a text matches; `filled`: not
    empty. `wanted` replaces the words made of these ("be a list of hosts"), `sentence` also the path before
    them. `panel` is the heading in `--help`, `unit` what a number counts.
    """

    help: str = ""
    panel: str = ""
    unit: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    pattern: str = ""
    filled: bool = False
    wanted: str = ""
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """One field of a configuration class: its type without `Annotated`, its default or MISSING."""

    kind: Any
    setting: Setting
    default: Any


def load_json(text: str | bytes, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text in which no object names a member twice. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def load_yaml(text: str) -> Any:
    """The value of one YAML document without aliases, of plain types and unique keys. Raises ValueError."""
    import yaml

    if len(text) > MAX_YAML_CHARS:
        raise ValueError(f"it has more than {MAX_YAML_CHARS} characters")
    try:
        return _loader()(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ValueError(f"{error.problem or 'it is not YAML'}{line}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is not YAML that can be read ({type(error).__name__})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object names a member twice")
    return value


@cache
def _loader() -> type[yaml.SafeLoader]:
    import yaml
    from yaml.constructor import ConstructorError

    class Strict(yaml.SafeLoader):
        """SafeLoader without aliases, merging and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise ConstructorError(None, None, "aliases are not read; write it out", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if name is None:
                    raise ConstructorError(None, None, "a key is no plain value", key.start_mark)
                if name in seen:
                    raise ConstructorError(None, None, f"{key.value[:80]!r} stands twice", key.start_mark)
                seen.add(name)
            value = super().construct_mapping(node, deep)
            if len(value) < len(node.value):
                raise ConstructorError(None, None, "a key stands twice", node.start_mark)
            return value

    # JSON, and what prints a number, writes 1e-06, which YAML 1.1 reads as text for want of a dot
    Strict.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    return Strict


@cache
def settings(cls: type) -> Mapping[str, Known]:
    """The fields of a configuration class by name, in order."""
    hints = get_type_hints(cls, include_extras=True)
    return {one.name: _known(one, hints[one.name]) for one in fields(cls) if one.init}


def read_config(
    cls: type[T],
    path: str | Path,
    *,
    what: str = "the configuration file",
    error: type[TransomError] = MisconfiguredError,
) -> T:
    """A value of a configuration class from a YAML file, or a JSON file if that is how its name ends.

    Raises `error` with every problem at once; paths in the file begin at its folder.
    """
    path = Path(path)
    form, load = ("JSON", load_json) if path.suffix == ".json" else ("YAML", load_yaml)
    try:
        with system_errors(f"cannot read {what} {path}", "check the path", error):
            value = load(read_bounded(path, _MAX_FILE_BYTES).decode())
    except ValueError as why:
        raise error(f"cannot read {what} {path} as {form}: {why}") from None
    return from_plain(cls, value, f"{what} {path} cannot be used", error=error, folder=path.parent)


def from_plain(
    cls: type[T],
    value: Any,
    head: str,
    *,
    error: type[TransomError] = MisconfiguredError,
    folder: Path | None = None,
) -> T:
    """A value of a configuration class from plain JSON or YAML values.

    Raises `error` with every problem at once behind `head`: where, what is wanted, what was got, by type and
    length.
    """
    made, problems = attempt(cls, value, folder)
    if made is None:
        raise error(listed(head, problems))
    return made


def attempt(cls: type[T], value: Any, folder: Path | None = None) -> tuple[T | None, list[str]]:
    """As `from_plain`: the value, or None and what is wrong with it."""
    reading = _Reading(folder)
    made = reading.value(cls, value, "", Setting())
    return (None if reading.problems else made), reading.problems


def to_plain(value: Any) -> Any:
    """The reverse of `from_plain`: what JSON or YAML can hold."""
    if is_dataclass(value):
        return {one.name: to_plain(getattr(value, one.name)) for one in fields(value) if one.init}
    if isinstance(value, Mapping):
        return {name: to_plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(one) for one in value]
    return str(value) if isinstance(value, PurePath) else value


def listed(head: str, problems: Iterable[str]) -> str:
    """One message for several problems."""
    each = list(problems)
    rest = len(each) - _MAX_PROBLEMS
    return f"{head}: " + "; ".join(each[:_MAX_PROBLEMS]) + (f"; and {rest} more" if rest > 0 else "")


def suggest(got: object, known: Iterable[str]) -> str:
    """The nearest known name as a question, or all of them."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(str(got)[:80].casefold(), list(names), n=1)
    return f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(names.values())}"


class _Absent:
    """In place of a value that a mapping lacks."""


class _Reading:
    """Reads one value and collects what is wrong with it."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def value(self, kind: Any, value: Any, where: str, setting: Setting) -> Any:
        """The value as its kind; None after a problem."""
        origin = get_origin(kind)
        if origin is Annotated:
            kind, setting = _split(kind)
            return self.value(kind, value, where, setting)
        if origin in (Union, UnionType):
            return self._either(kind, value, where, setting)
        if is_dataclass(kind) and isinstance(value, Mapping):
            return self._record(kind, value, where)
        made = self._parts(kind, value, where) if origin in (tuple, Mapping) else self._scalar(kind, value)
        if made is _Absent or not _within(made, setting):
            return self._wrong(kind, value, where, setting)
        return made

    def _either(self, kind: Any, value: Any, where: str, setting: Setting) -> Any:
        if value is None and NoneType in get_args(kind):
            return None
        kinds = [one for one in get_args(kind) if one is not NoneType]
        for one in kinds:
            trial = _Reading(self.folder)
            made = trial.value(one, value, where, setting)
            if not trial.problems:
                return made
        if len(kinds) == 1:
            self.problems += trial.problems
            return None
        return self._wrong(kind, value, where, setting)

    def _record(self, cls: Any, value: Mapping[Any, Any], where: str) -> Any:
        known, before = settings(cls), len(self.problems)
        for key in value:
            if key not in known:
                hint = suggest(key, known) if len(self.problems) < _MAX_PROBLEMS else ""
                self.problems.append(f"{where or 'it'} does not know {_name(key)}; {hint}")
        made = {
            name: self.value(one.kind, value.get(name, _Absent), f"{where}.{name}".lstrip("."), one.setting)
            for name, one in known.items()
            if name in value or one.default is MISSING
        }
        if len(self.problems) > before:
            return None
        try:
            result = cls(**made)
            found = list(result.problems()) if hasattr(result, "problems") else []
        except (ValueError, TransomError) as error:
            result, found = None, [str(error)]
        self.problems += [f"{where}: {one}".removeprefix(": ") for one in found]
        return result

    def _parts(self, kind: Any, value: Any, where: str) -> Any:
        """The entries of a list or mapping. Of plain strings the whole is right or wrong."""
        inner = get_args(kind)
        named = get_origin(kind) is Mapping
        if not isinstance(value, Mapping if named else list | tuple):
            return _Absent
        if named and not all(isinstance(name, str) for name in value):
            return _Absent
        parts = dict(value) if named else dict(enumerate(value))
        if inner[named] is str:
            plain = all(isinstance(one, str) for one in parts.values())
            return (parts if named else tuple(value)) if plain else _Absent
        made = {}
        for name, one in parts.items():
            place = f"{where}.{_name(name)}" if named else f"{where}[{name}]"
            made[name] = self.value(inner[named], one, place, Setting())
        return made if named else tuple(made.values())

    def _scalar(self, kind: Any, value: Any) -> Any:
        """The value, or _Absent if it is of another kind."""
        if value is _Absent or kind is Any:
            return value
        if get_origin(kind) is Literal:
            fits = any(value == one and type(value) is type(one) for one in get_args(kind))
        elif kind is Path and type(value) is str and value and "\0" not in value:
            return Path(self.folder or "", value)
        elif kind is float and type(value) in (int, float) and abs(value) <= _LARGEST:  # not NaN
            return float(value)
        else:
            fits = kind in (bool, int, str) and type(value) is kind
        return value if fits else _Absent

    def _wrong(self, kind: Any, value: Any, where: str, setting: Setting) -> None:
        hint, said = "", f"{where or 'it'} must {setting.wanted or _wanted(kind, setting)}"
        if setting.sentence:
            said = f"{where}: {setting.sentence}".removeprefix(": ")
        if get_origin(kind) is Literal and isinstance(value, str):
            near = suggest(value, map(str, get_args(kind)))
            hint = f"; {near}" if near.startswith("did") else ""
        self.problems.append(f"{said}, got {_got(kind, value)}{hint}")


def _known(field: Any, hint: Any) -> Known:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return Known(*_split(hint), default)


def _split(hint: Any) -> tuple[Any, Setting]:
    """A type without `Annotated`, and what is said beside it; a text alone is its help."""
    kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    notes = [Setting(one) if isinstance(one, str) else one for one in notes]
    return kind, next((one for one in notes if isinstance(one, Setting)), Setting())


def _within(value: Any, setting: Setting) -> bool:
    if isinstance(value, int | float):
        least, above, most = setting.least, setting.above, setting.most
        fits = (least is None or value >= least) and (most is None or value <= most)
        return fits and (above is None or value > above)
    if isinstance(value, str) and setting.pattern:
        return re.fullmatch(setting.pattern, value) is not None
    return not setting.filled or bool(value)


def _wanted(kind: Any, setting: Setting) -> str:
    """What a value must do or be."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(one, setting) for one in inner if one is not NoneType)
    if origin is Mapping and inner[1] is str:
        return "map names to strings"
    if origin is Literal:
        return f"be {'one of ' if len(inner) > 1 else ''}{', '.join(map(str, inner))}"
    if origin is tuple:
        what = "a list of strings" if inner[0] is str else "a list"
    else:
        what = _WANTED.get(kind, "a mapping")
    if kind in (int, float):
        bounds = {"above": setting.above, "at least": setting.least, "at most": setting.most}
        said = " and ".join(f"{word} {bound:.15g}" for word, bound in bounds.items() if bound is not None)
        unit = f" of {setting.unit}" if setting.unit else ""
        return f"be {what}{unit}" + (f", {said}" if said else "")
    form = f" of the form {setting.pattern}" if setting.pattern else ""
    return f"be {what}{form}{', not empty' if setting.filled else ''}"


def _got(kind: Any, value: Any) -> str:
    """A value by type and length. Only a number where one is wanted is told."""
    if value is _Absent or value is None:
        return "nothing" if value is _Absent else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        wanted = kind in (int, float) or any(isinstance(one, int) for one in get_args(kind))
        return repr(value) if wanted and not abs(value) > 1e30 else "a number"
    for shape, name in _SHAPES:
        if isinstance(value, shape):
            return name.format(len(value))
    return f"a {type(value).__name__}"


def _name(key: object) -> str:
    """A key as it stands, if it is short and can be printed."""
    text = str(key)[:40]
    return text if text.isprintable() else repr(text)
