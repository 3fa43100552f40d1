"""The catalogue of checkpoint suites, and what a user may name instead: a folder, a GGUF file, a hub repository."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from bindscope.errors import ModelError, UnknownName
from bindscope.records import Bos, CheckpointRef


@dataclass(frozen=True)
class Suite:
    """Checkpoints of one training run, in training order."""

    name: str
    checkpoints: tuple[CheckpointRef, ...]
    bos: Bos = "default"
    note: str = ""

    def at(self, revision: str | None) -> CheckpointRef:
        """One checkpoint by revision, folder name or step; the last one for None. Raises UnknownName."""
        if revision is None:
            return self.checkpoints[-1]
        revision = revision.replace(",", "") if revision.replace(",", "").isdigit() else revision
        names: dict[str, CheckpointRef] = {}
        for ref in self.checkpoints:
            names[ref.revision or Path(ref.repo).name] = ref
        steps = {str(ref.step): ref for ref in self.checkpoints if ref.step is not None}
        if found := names.get(revision) or steps.get(revision):
            return found
        raise UnknownName(f"revision of {self.name}", revision, names)


@cache
def _rows() -> dict[str, dict[str, Any]]:
    text = resources.files("bindscope").joinpath("data/suites.yaml").read_text(encoding="utf-8")
    rows = yaml.safe_load(text)
    assert isinstance(rows, dict)
    return rows


def names() -> list[str]:
    """Names of the catalogue, in its order."""
    return list(_rows())


def suite(name: str) -> Suite:
    """A suite by catalogue name, local folder (with checkpoint-N directories, or a single model), GGUF file or hub id.

    Raises UnknownName for a name that is none of them, ModelError for a folder without a model.
    """
    if name in _rows():
        return _from_catalogue(name, _rows()[name])
    path = Path(name).expanduser()
    try:
        return _local(path) or _hub(name, path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _local(path: Path) -> Suite | None:
    if path.is_file() and path.suffix == ".gguf":
        return Suite(path.stem, (CheckpointRef(path.stem, str(path.parent), gguf=path.name),))
    return from_folder(path) if path.is_dir() else None


def _hub(name: str, path: Path) -> Suite:
    if path.suffix == ".gguf" or name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"there is no file or folder {path.absolute()}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Suite(name, (CheckpointRef(name, name),))
    raise UnknownName("model", name, names(), "(a folder, a .gguf file or a hub id such as org/name will do too)")


def one(name: str, revision: str | None = None) -> tuple[CheckpointRef, Suite]:
    """A single checkpoint: the last of a suite, or the one at `revision` (of a hub repository, any)."""
    found = suite(name)
    if revision is not None and len(found.checkpoints) == 1 and "/" in name and not Path(name).exists():
        return replace(found.checkpoints[0], revision=revision), found
    return found.at(revision), found


def _from_catalogue(name: str, row: dict[str, Any]) -> Suite:
    kind, _, place = row["repo"].partition(":")
    bos, note = row.get("bos", "default"), row.get("note", "")
    if kind == "package":
        folder = Path(str(resources.files("bindscope").joinpath(place)))
        found = from_folder(folder, name)
        if words := row.get("tokenizer"):  # seeds of one suite share it
            shared = str(resources.files("bindscope").joinpath(words.removeprefix("package:")))
            found = replace(found, checkpoints=tuple(replace(ref, tokenizer=shared) for ref in found.checkpoints))
        return replace(found, bos=bos, note=note)
    if kind == "gguf":
        package, file = place.split("/", 1)
        spec = find_spec(package)  # located, never imported: the package may need programs that we do not
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"{name} needs the Python package {package}, which is not installed: {row['install']}")
        return Suite(name, (CheckpointRef(name, spec.submodule_search_locations[0], gguf=file),), bos, note)
    revisions = row.get("revisions") or [[None, None]]
    refs = tuple(CheckpointRef(name, row["repo"], revision, step, row.get("tokenizer")) for revision, step in revisions)
    return Suite(name, refs, bos, note)


def from_folder(folder: Path, name: str | None = None) -> Suite:
    """A suite from a local folder: its `checkpoint-N` (or `stepN`) directories by N, or the folder itself."""
    name = name or folder.resolve().name
    if not folder.is_dir():
        raise ModelError(f"{name}: the folder {folder} does not exist")
    steps: dict[int, Path] = {}
    for child in folder.iterdir():
        if (match := re.fullmatch(r"(?:checkpoint|step)[-_]?(\d+)", child.name)) and (child / "config.json").is_file():
            if twin := steps.get(int(match[1])):
                raise ModelError(f"{folder} holds step {int(match[1])} twice, as {twin.name} and as {child.name}")
            steps[int(match[1])] = child
    if steps:
        shared = str(folder) if (folder / "tokenizer.json").is_file() else None
        refs = tuple(CheckpointRef(name, str(path), None, step, shared) for step, path in sorted(steps.items()))
        return Suite(name, refs)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {folder} holds neither a model (config.json) nor checkpoint-N directories")
    return Suite(name, (CheckpointRef(name, str(folder)),))
