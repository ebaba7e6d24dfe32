"""JSON and YAML that other people wrote, read only if it can be read in one way.

Of a name that stands twice one parser takes the first and another the last: what one reader checks is then
not what another uses. It is refused wherever we read, in files, bundles and requests.
Threat model: an author who shows one value and means the other; nesting that exhausts the stack; YAML whose
aliases grow when they are followed.
Does not protect: values; who reads them checks them. The size of JSON is its reader's to bound.
Source: RFC 8259, section 4; YAML 1.2.2, section 3.2.1.1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_YAML_CHARS = 2**18  # settings; the parser is slow


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

    return Strict
