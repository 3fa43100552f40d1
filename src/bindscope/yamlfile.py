"""A YAML file checked against a schema, with errors that name the line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from bindscope.errors import RequestError

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]


def _hint(schema: type[BaseModel], place: Place) -> str:
    """The fields that could have been meant at a place, from the schema's own description."""
    whole = schema.model_json_schema()
    node: Any = whole
    for part in place[:-1]:
        node = _resolved(node, whole)
        named = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = node.get("items", {}) if isinstance(part, int) else named
    known = list(_resolved(node, whole).get("properties", {}))
    close = difflib.get_close_matches(str(place[-1]), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""


def _resolved(node: Any, whole: Any) -> Any:
    for option in [node, *node.get("anyOf", [])]:
        if "$ref" in option:
            return whole["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node


class Source:
    """The text of one YAML file and where each of its entries stands."""

    def __init__(self, path: Path) -> None:
        """Raises RequestError for a file that cannot be read, is not YAML, or holds a key twice."""
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
            self.root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
            raise RequestError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        self._unique(self.root, set())

    def parse(self, schema: type[Model]) -> Model:
        """The contents as `schema` has them. Raises RequestError that names the line, the entry and the value."""
        try:
            return schema.model_validate(self.data)
        except ValidationError as error:
            first = error.errors()[0]
            place = tuple(part for part in first["loc"] if isinstance(part, int) or not part.startswith("function-"))
            message = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                raise self.error(f"unknown field {place[-1]!r}{_hint(schema, place)}", place) from error
            seen = first.get("input")
            shown = f", got {seen!r}" if isinstance(seen, str | int | float | bool) else ""
            where = ".".join(str(part) for part in place)
            raise self.error(f"{where + ': ' if where else ''}{message}{shown}", place) from error

    def error(self, message: str, place: Place = ()) -> RequestError:
        """An error at an entry of the file, for example ("terms", 3, "exemplar")."""
        return RequestError(f"{self.path}:{self.line(place)}: {message}")

    def line(self, place: Place) -> int:
        """The line, from 1, where an entry begins; the nearest entry around it where it is absent."""
        node = self.root
        for part in place:
            if isinstance(node, yaml.MappingNode):
                found = next((v for k, v in node.value if k.value == part), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = node.value[part]
            else:
                found = None
            if found is None:
                break
            node = found
        return 1 if node is None else int(node.start_mark.line) + 1

    def _unique(self, node: yaml.Node | None, visited: set[int]) -> None:
        """YAML readers keep the last of two equal keys, silently. visited: an alias can point back to its own list."""
        if id(node) in visited:
            return
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        line = int(key.start_mark.line) + 1
                        raise RequestError(f"{self.path}:{line}: the key {key.value!r} occurs twice")
                    seen.add(key.value)
                self._unique(value, visited)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                self._unique(value, visited)
