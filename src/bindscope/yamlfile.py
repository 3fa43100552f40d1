"""YAML files checked against a pydantic schema, with errors that name the file and the line.

Files are read as YAML 1.2 with `ruamel.yaml` on top of libyaml. One tree of nodes gives both the values and their
lines. A key that occurs twice is refused, where most readers keep the last one silently.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.filesize import decimal
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.parser import ParserError
from ruamel.yaml.scanner import ScannerError

from bindscope.errors import RequestError

Model = TypeVar("Model", bound=BaseModel)
#: Keys and list positions that lead to an entry, such as ("terms", 3, "exemplar").
Place = tuple[str | int, ...]
#: The largest file that is read, in bytes; the largest one that ships with bindscope has 0.1 MB.
MAX_BYTES = 8_000_000
#: The longest text that is read a second time, by the slow reader, when libyaml refuses it.
MAX_PURE = 200_000
#: The deepest nesting that is read. libyaml's binding recurses in C, and a file of brackets would end the process.
MAX_DEPTH = 100


class YamlFile:
    """The contents of one YAML file, and the line of each of its entries.

    path: the file, for messages.
    data: its contents as dicts, lists, texts and numbers.
    """

    def __init__(self, path: Path) -> None:
        """Raises RequestError for a file that cannot be read, is too large, is not YAML or has a key twice."""
        self.path = path
        self._root: Node | None = None
        self.data: Any = None
        try:
            text = _text(path)
            try:
                self._read(text, pure=False)
            except (ParserError, ScannerError):
                # libyaml refuses [module:name], a list in brackets, which YAML 1.2 allows.
                if len(text) > MAX_PURE or not self._reads_slowly(text):
                    raise
        except DuplicateKeyError as error:
            line = error.problem_mark.line + 1
            key = str(error.problem).removeprefix("found duplicate key ").partition(" with value")[0].strip('"')
            raise RequestError(f"{path}:{line}: the key {key!r} occurs twice; keep one of the two") from error
        except (OSError, UnicodeDecodeError, YAMLError, ValueError) as error:
            line = getattr(getattr(error, "problem_mark", None), "line", None)
            place = f"{path}" if line is None else f"{path}:{line + 1}"
            reason = getattr(error, "problem", None) or getattr(error, "strerror", None) or " ".join(str(error).split())
            raise RequestError(f"cannot read {place}: {reason}") from error

    def _read(self, text: str, pure: bool) -> None:
        """pure: with the slow reader, which knows all of YAML 1.2, instead of libyaml."""
        yaml = YAML(typ="safe", pure=pure)
        _check_depth(text, pure)
        self._root = yaml.compose(text)
        self.data = None if self._root is None else yaml.constructor.construct_document(self._root)

    def _reads_slowly(self, text: str) -> bool:
        """Whether the slow reader can make something of it."""
        try:
            self._read(text, pure=True)
        except (ParserError, ScannerError):
            return False
        return True

    def parse(self, schema: type[Model]) -> Model:
        """The contents as the pydantic model `schema`. Raises RequestError with the line, the entry and the value."""
        try:
            return schema.model_validate(self.data)
        except ValidationError as error:
            place, message = first_error(error, schema)
            raise self.error(message, place) from error

    def error(self, message: str, place: Place = ()) -> RequestError:
        """An error about an entry of the file; it is for the caller to raise."""
        return RequestError(f"{self.path}:{self.line(place)}: {message}")

    def line(self, place: Place) -> int:
        """The line, from 1, on which an entry begins; that of the nearest entry around it where it is absent."""
        node = self._root
        for part in place:
            inner: Node | None = None
            if isinstance(node, MappingNode):
                inner = next((value for key, value in node.value if key.value == part), None)
            elif isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
                inner = node.value[part]
            if inner is None:
                break
            node = inner
        return 1 if node is None else int(node.start_mark.line) + 1


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file without a schema. Raises RequestError as `YamlFile` does."""
    return YamlFile(path).data


def _text(path: Path) -> str:
    """Raises OSError or ValueError for what is no regular file of a sensible size (a pipe, /dev/zero)."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > MAX_BYTES:
        raise ValueError(f"it has {decimal(size)}, and files of up to {decimal(MAX_BYTES)} are read; split it")
    return path.read_text(encoding="utf-8")


def _check_depth(text: str, pure: bool) -> None:
    """Raises ValueError for lists and mappings nested too deeply, from the reader's events, which need no recursion."""
    depth = 0
    for event in YAML(typ="safe", pure=pure).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"its lists and mappings are nested more than {MAX_DEPTH} deep")


def first_error(error: ValidationError, schema: type[BaseModel]) -> tuple[Place, str]:
    """The entry that a validation error is about, and one sentence that names the entry and the value."""
    first = error.errors()[0]
    place = tuple(part for part in first["loc"] if isinstance(part, int) or not part.startswith("function-"))
    if first["type"] == "extra_forbidden":
        return place, f"unknown field {place[-1]!r}{_hint(schema, place)}"
    value = first.get("input")
    if first["type"] in ("model_type", "dict_type"):
        where = ".".join(str(part) for part in place) or "the file"
        return place, f"{where} must be a mapping (`key: value`), got {_kind(value)}"
    shown = f", got {_shortened(repr(value))}" if isinstance(value, str | int | float | bool) else ""
    where = ".".join(str(part) for part in place)
    return place, f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{shown}"


def _kind(value: Any) -> str:
    """What a value is, in YAML's words."""
    if value is None:
        return "nothing"
    return f"a list of {len(value)} entries" if isinstance(value, list) else _shortened(repr(value))


def _shortened(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ..."


def _hint(schema: type[BaseModel], place: Place) -> str:
    """The field that could have been meant at a place, or all that are known there, from the schema's description."""
    whole = schema.model_json_schema()
    node: Any = whole
    for part in place[:-1]:
        node = _dereferenced(node, whole)
        named = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
        node = node.get("items", {}) if isinstance(part, int) else named
    known = list(_dereferenced(node, whole).get("properties", {}))
    close = difflib.get_close_matches(str(place[-1]), known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""


def _dereferenced(node: Any, whole: Any) -> Any:
    """The part of a JSON schema that a `$ref` stands for."""
    for option in [node, *node.get("anyOf", [])]:
        if "$ref" in option:
            return whole["$defs"][option["$ref"].rsplit("/", 1)[-1]]
    return node
