"""YAML files: values and lines from one parse, and one line for what cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from bindscope.errors import RequestError
from bindscope.yamlfile import MAX_BYTES, YamlFile, read_yaml

TEXT = """\
# a comment
name: x
terms:
  - plain
  - name: long
    near: [a,
           b]
"""


class _Schema(BaseModel):
    name: int


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 2),
        (("name",), 2),
        (("terms",), 4),
        (("terms", 1), 5),
        (("terms", 1, "near"), 6),
        (("terms", 1, "near", 1), 7),
        (("terms", 9), 4),  # absent: the nearest entry around it
        (("terms", 1, "absent"), 5),
        (("name", "deeper"), 2),
    ],
)
def test_every_entry_has_its_line(file: Path, place: tuple[str | int, ...], line: int) -> None:
    assert YamlFile(file).line(place) == line


def test_values_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text("{a: on, b: no, c: true, d: 1.5, e: null, f: '4.10', g: [1, x]}")
    assert read_yaml(path) == {"a": "on", "b": "no", "c": True, "d": 1.5, "e": None, "f": "4.10", "g": [1, "x"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", ":3: the key 'a' occurs twice"),
        (b"x:\n  - a: 1\n    a: 2\n", ":3: the key 'a' occurs twice"),
        (b"x: {a: 1, b: 2, a: 3}", ":1: the key 'a' occurs twice"),
        (b"1: a\n1: b\n", ":2: the key '1' occurs twice"),
        (b"a: [", "cannot read .*:2: "),
        (b"a: 1\n\tb: 2\n", "cannot read .*:2: .*tab"),
        (b"a: *b\n", "undefined alias"),
        (b"a: 1\n---\nb: 2\n", "another document"),
        (b"a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        (b"a: 2024-13-45\n", "month"),
        (b"\xff\xfe\xff", "cannot read"),
        (b"\0", "control characters"),
        (b"[" * 300_000 + b"]" * 300_000, "nested more than 100 deep"),
        (b"- " * 300_000, "nested more than 100 deep"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(RequestError, match=message) as caught:
        YamlFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [x, own:measure]", "a:\n- x\n- own:measure\n"])
def test_a_name_in_a_module_needs_no_quotes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(text)
    assert YamlFile(path).data == {"a": ["x", "own:measure"]}


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as large:
        large.truncate(MAX_BYTES + 1)
    with pytest.raises(RequestError, match=r"it has 8\.0 MB, and files of up to 8\.0 MB are read; split it"):
        YamlFile(path)


def test_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(RequestError, match="not a regular file"):
            YamlFile(tmp_path / name)
    with pytest.raises(RequestError, match=r"cannot read .*No such file"):
        YamlFile(tmp_path / "absent.yaml")
    with pytest.raises(RequestError, match="cannot read"):
        YamlFile(tmp_path)


def test_a_schema_names_the_line_the_entry_and_the_value(file: Path) -> None:
    with pytest.raises(RequestError, match=r"a\.yaml:2: name: Input should be a valid integer.*, got 'x'"):
        YamlFile(file).parse(_Schema)
