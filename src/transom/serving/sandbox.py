"""transformers' environment for chat templates, over stand-ins for content and with bounded work.

Loops, comparisons, joins, calls and filters of a template pass through the environment, which counts them and
keeps content (`content`) from whatever would read it as the plain string that it is not.
Threat model: the template is a stranger's. It runs in jinja2's sandbox with a budget of work and of text, so
that loops, repetitions and deep values end in `WorkError`, not in a full memory.
Does not protect: a template may spend its budget, a few seconds at most, on each new shape of conversation.
Source: globals, filters and tags as in transformers' `apply_chat_template`; jinja2's manual on sandboxes.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, GeneratorType
from typing import Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from transom.serving.content import RESERVED, TEXT, Content, RejectedError, Run, WorkError, size
from transom.serving.lengths import Length, sliced

_CALL = 8  # steps of a call
_ITEMS_PER_STEP = 64  # of a list that is copied
_BITS = 4096  # of any one number
_WIDEST = 64  # of an indentation
# A width of four digits, or one not written. No stretch between letters is gone through twice.
_WIDTH = re.compile(r"(?:^|[a-zA-Z])[^a-zA-Z%:]*[%:][^a-zA-Z]*?(?:\d{4}|\*)|\{[^}]*\{")

# Filters that go through all that hangs on a value, by how often; and what a character costs some others.
_THROUGH = {"join": 1, "string": 1, "tojson": 1, "sum": 1, "list": 1, "reverse": 1, "min": 2, "max": 2}
_THROUGH |= {"unique": 4, "groupby": 8, "dictsort": 8, "sort": 8, "map": 1, "select": 1, "reject": 1}
_DEAR = {"title": 128, "indent": 16, "tojson": 4, "capitalize": 2}

# Filters that are right for content, by the places where it may stand; others take anything else only.
_ON_CONTENT = {"trim": {0}, "string": {0}, "replace": {1, 3}, "default": {0, 1}, "d": {0, 1}}
_FILTERS = {*_THROUGH, *_DEAR, *_ON_CONTENT, "abs", "attr", "count", "first", "float", "int", "items"}
_FILTERS |= {"last", "length", "lower", "rejectattr", "selectattr", "upper"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda item, all_: item in all_, "notin": lambda item, all_: item not in all_,
}  # fmt: skip
_COMPARING_TESTS = frozenset(["eq", "equalto", "==", "ne", "!=", "in"])
_TYPE_TESTS = {"string", "iterable", "sequence", "mapping", "number", "integer", "float", "boolean", "none"}
_TYPE_TESTS |= {"defined", "undefined", "callable", "true", "false"}


class _Generation(Extension):
    """`{% generation %}`, which marks text for training; a scope of its own, as a macro is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """jinja2's, for names that are not Python's own."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace holds no name with a leading underscore")


class _Hooks(NodeTransformer):
    """Sends what jinja2 compiles to plain Python through the environment: loops, comparisons and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _hooked("looped", node, node.iter)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        names = nodes.Const(tuple(operand.op for operand in node.ops), lineno=node.lineno)
        return _hooked("compared", node, node.expr, names, *(operand.expr for operand in node.ops))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _hooked("joined", node, *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
        return _hooked("sliced", node, node.node, *ends)

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError("it changes how content is escaped")


def _hooked(name: str, node: nodes.Node, *args: Any) -> nodes.Call:
    made = nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None, lineno=node.lineno)
    return made.set_environment(node.environment)  # type: ignore[return-value, arg-type]


class Sandbox(ImmutableSandboxedEnvironment):
    """transformers' template environment over stand-ins; `run` is the rendering under way."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=self.shown,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )  # fmt: skip
        self.run = Run()
        self.filters["tojson"] = self._tojson
        self.filters = {name: self._filter(name, plain) for name, plain in self.filters.items()}
        self.tests = {name: self._test(name, plain) for name, plain in self.tests.items()}
        del self.globals["lipsum"]  # text at random
        self.globals |= {"raise_exception": self._reject, "strftime_now": self._now, "namespace": _Namespace}

    def compiled(self, tree: nodes.Template) -> Any:
        """A template whose work is counted."""
        self.run = Run()
        return self.from_string(_Hooks().visit(tree))

    def looped(self, items: Any) -> list[Any]:
        """What a loop goes through."""
        if hasattr(items, "__len__"):
            self.run.spend(len(items))
            return list(items)
        found = []
        for item in items:
            self.run.spend()
            found.append(item)
        return found

    def compared(self, first: Any, names: Sequence[str], *others: Any) -> Any:
        """A comparison, or a chain of them."""
        result: Any = True
        for name, other in zip(names, others, strict=True):
            self.run.spend(1, size(other))
            if isinstance(first, list | tuple | dict) or isinstance(other, list | tuple | range):
                self.run.measure(other)
            if isinstance(first, Content) and isinstance(other, str) and name not in ("eq", "ne"):
                self.run.refuse(first, "a comparison of letters")
            result = _COMPARE[name](first, other)
            if not result:
                break
            first = other
        return result

    def sliced(self, value: Any, *ends: Any) -> Any:
        """`value[a:b:c]`."""
        self.run.spend(1 + _length(value) // _ITEMS_PER_STEP)
        if isinstance(value, Content):
            return sliced(self.run, value, *ends)
        return self.run.wrap(value[slice(*ends)])

    def joined(self, *parts: Any) -> str:
        """The parts of `a ~ b`."""
        return self.concat([str(self.shown(part)) for part in parts])

    def concat(self, parts: Iterable[str]) -> str:
        """What a block, a macro or the whole template writes."""
        texts, length = [], 0
        for part in parts:
            length += size(part)
            self.run.spend(0, length if length > TEXT else size(part))
            texts.append(part)
        written = [text for text in texts if text]
        return written[0] if len(written) == 1 else self.run.wrap("".join(written))

    def shown(self, value: Any) -> Any:
        """A value about to be written."""
        if isinstance(value, list | tuple | dict):
            self.run.measure(value)
        return value

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """jinja2's, counted; methods of plain strings take content only where they do not read it."""
        self.run.spend(_CALL + sum(_length(arg) // _ITEMS_PER_STEP for arg in args))
        if isinstance(obj, LoopContext) and args and hasattr(args[0], "__len__"):
            self.run.spend(len(args[0]))
        if isinstance(obj, BuiltinMethodType):
            args = tuple(map(self._listed, args))
            self._admit(obj.__self__, [*args, *kwargs.values()])
            if isinstance(obj.__self__, str):
                kept = args[:1] if obj.__name__ == "replace" else (*args, *kwargs.values())
                self._keep_content_from(kept, f"`{obj.__name__}` with content")
        return self.run.wrap(super().call(context, obj, *args, **kwargs))

    def _keep_content_from(self, args: Sequence[Any], operation: str) -> None:
        for arg in args:
            for one in arg if isinstance(arg, tuple) else (arg,):
                if isinstance(one, Content | Length):
                    self.run.refuse(_text_of(one), operation)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """jinja2's, which would read a string as the name of an attribute."""
        self._keep_content_from((argument,), "content as a key")
        if isinstance(obj, Content) and type(argument) is int and argument in (0, -1):
            return sliced(self.run, obj, argument, argument + 1 or None, None)
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, op: str, left: Any, right: Any, /) -> Any:
        """Sums, products, powers and `%` of bounded size."""
        if op == "+":
            self.run.spend(1, _length(left) + _length(right))
        elif op in ("*", "**"):
            self._admit_product(op, left, right)
        elif isinstance(left, str):
            self._admit(left, right if isinstance(right, tuple) else (right,), formatted=True)
        result = super().call_binop(context, op, left, right)
        formatted = op == "%" and isinstance(result, str) and self.run.mark in result
        if formatted and (isinstance(left, Content) or "%" in re.sub("%[%s]", "", left)):
            self.run.refuse(result, "`%`")
        return self.run.wrap(result)

    def wrap_str_format(self, value: Any) -> Any:
        """jinja2's `format`, with widths of up to three digits."""
        plain = super().wrap_str_format(value)
        if plain is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._admit(value.__self__, [*args, *kwargs.values()], formatted=True)
            return plain(*args, **kwargs)

        return bounded

    def _admit(self, first: Any, rest: Iterable[Any], *, formatted: bool = False) -> None:
        """Count the most that can be made of these: each piece as often as the other has parts."""
        self.run.spend(len(first) if isinstance(first, list | tuple | dict | range) else 1)
        self.run.spend(0, (1 + _length(first)) * (1 + sum(map(_extent, rest))))
        self.run.spend(0, size(first) * 4 * formatted)
        if formatted and _WIDTH.search(str(first)):
            raise WorkError("it writes fields of great width")

    def _admit_product(self, op: str, left: Any, right: Any) -> None:
        numbers = [x for x in (left, right) if isinstance(x, int)]
        if len(numbers) == 1:
            self.run.spend(1, (_length(left) + _length(right)) * abs(numbers[0]))
        elif numbers:
            bits = abs(left).bit_length()
            if (bits * abs(right) if op == "**" else bits + abs(right).bit_length()) > _BITS:
                raise WorkError("it works with numbers without end")

    def _listed(self, value: Any) -> Any:
        return self.looped(value) if isinstance(value, GeneratorType) else value

    def _filter(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        places = _ON_CONTENT.get(name, set())
        counts = name in ("length", "count")

        @wraps(plain)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if name not in _FILTERS:
                raise WorkError(f"it uses the filter {name}, which is not supported")
            for place, arg in [*enumerate(args), *((-1, value) for value in kwargs.values())]:
                if isinstance(arg, Content) and counts and (len(args), kwargs) == (1, {}):
                    return Length(self.run, arg)
                if isinstance(arg, Length) or (isinstance(arg, Content) and place not in places):
                    self.run.refuse(_text_of(arg), f"`{name}`")
            args = tuple(map(self._listed, args))
            given = [arg for arg in args if not isinstance(arg, Environment | EvalContext | Context)]
            if name in _THROUGH:
                self.run.spend(size(given[0]) * _THROUGH[name])  # each of its characters becomes a string
                for _ in range(_THROUGH[name]):
                    self.run.measure(given)
            self.run.spend(0, size(given[0]) * _DEAR.get(name, 0))
            self._admit(given[0], [*given[1:], *kwargs.values()])
            return self.run.wrap(plain(*args, **kwargs))

        return guarded

    def _test(self, name: str, plain: Any) -> Callable[..., Any]:
        @wraps(plain)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.run.spend()
            found = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, Content | Length)]
            if not found:
                return plain(*args, **kwargs)
            if name in _COMPARING_TESTS and len(args) == 2:
                op = {"ne": "ne", "!=": "ne", "in": "in"}.get(name, "eq")
                return self.compared(args[0], (op,), args[1])
            if name not in _TYPE_TESTS or isinstance(found[0], Length):
                self.run.refuse(_text_of(found[0]), f"the test `{name}`")
            return plain(*["text" if isinstance(arg, Content) else arg for arg in args], **kwargs)

        return guarded

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        if _extent(indent) > _WIDEST or (separators and _extent(separators) > _WIDEST):
            raise WorkError("it writes fields of great width")
        if self.run.mark in (plain := json.dumps(value, ensure_ascii=False)):
            self.run.refuse(plain, "`tojson`")
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def _reject(self, message: Any) -> NoReturn:
        raise RejectedError(RESERVED.sub("", str(message))[:200])

    def _now(self, form: str) -> str:
        return self.run.times.setdefault(form, datetime.now().strftime(form))


def _text_of(value: Content | Length) -> str:
    return value._text if isinstance(value, Length) else value


def _length(value: Any) -> int:
    return size(value) or (len(value) if isinstance(value, bytes | list | tuple | dict | range) else 0)


def _extent(value: Any) -> int:
    """How much a value can bring into a text, or how wide it can make one."""
    if isinstance(value, int):
        return abs(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return _length(value) + sum(map(size, items))
