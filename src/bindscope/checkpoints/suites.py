"""Checkpoint suites: the catalogue, a YAML file of the same form, a folder, a GGUF file, a hub repository.

`name@revision,revision` (or steps) takes some checkpoints of a suite, or any revisions of a hub repository.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationInfo, field_validator

from bindscope.errors import ModelError, RequestError, UnknownName
from bindscope.records import Bos, CheckpointRef
from bindscope.yamlfile import YamlFile


class Revision(NamedTuple):
    """One checkpoint of a suite; tokens: seen by then. None for what is not known."""

    name: str
    step: int | None = None
    tokens: int | None = None


class Row(BaseModel):
    """One suite of a YAML file.

    repo: a hub repository, or a folder of checkpoint-N (relative to the file); in the catalogue also `package:` + a
    folder inside this package and `gguf:` + a file inside an installed Python package. tokenizer: a repository or
    folder, where the weights' own has none. bos: the choice under which published numbers were made. branch: how
    revisions are named by their step ("step{step}"). step_tokens: tokens in one step. revisions, in training order:
    steps, where `branch` says their names; names, where the step is not known; [name, step]; [name, step, billions of
    tokens]. dtype: of the final weights as they are stored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, str_min_length=1)

    repo: str
    tokenizer: str | None = None
    bos: Bos = "default"
    branch: str | None = None
    step_tokens: int | None = Field(default=None, ge=1)
    revisions: tuple[Revision, ...] = ()
    parameters: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    licence: str | None = None
    attention: str | None = None
    faults: str | None = None
    note: str | None = None
    install: str | None = None

    @field_validator("branch")
    @classmethod
    def _holds_a_step(cls, value: str | None) -> str | None:
        if value is not None and value.count("{step}") != 1:
            raise ValueError("a branch is a name with {step} in it, once")
        return value

    @field_validator("revisions", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        """Every way of writing a revision, as one."""
        if not isinstance(value, list):
            raise ValueError("revisions are a list")
        return tuple(_revision(entry, info.data.get("branch"), info.data.get("step_tokens")) for entry in value)

    @field_validator("revisions")
    @classmethod
    def _in_order(cls, value: tuple[Revision, ...]) -> tuple[Revision, ...]:
        names = [revision.name for revision in value]
        if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"the revision {twice!r} is there twice")
        steps = [revision.step for revision in value if revision.step is not None]
        if (early := next((b for a, b in pairwise(steps) if b <= a), None)) is not None:
            raise ValueError(f"step {early} stands behind a later one; revisions are listed in training order")
        return value


def _revision(entry: Any, branch: str | None, step_tokens: int | None) -> Revision:
    step: Any
    name, step, billions = (*entry, None, None)[:3] if isinstance(entry, list) else (entry, None, None)
    if type(entry) is int:
        if branch is None:
            raise ValueError(f"the revision {entry} is a number: give its name too, or `branch` for the names of all")
        name, step = branch.replace("{step}", str(entry)), entry
    sound = isinstance(name, str) and name and (not isinstance(entry, list) or len(entry) in (2, 3))
    counts = (step is None or (type(step) is int and step >= 0), billions is None or _count(billions))
    if not (sound and all(counts)):
        raise ValueError(
            f"a revision is a step, a name, [name, step] or [name, step, billions of tokens], got {entry!r}"
        )
    if billions is not None:
        return Revision(name, step, round(billions * 1e9))
    return Revision(name, step, _seen(step, step_tokens))


def _count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _seen(step: int | None, step_tokens: int | None) -> int | None:
    return None if step is None or step_tokens is None else step * step_tokens


class _File(RootModel[Annotated[dict[str, Row], Field(min_length=1)]]):
    """Name -> suite."""


@dataclass(frozen=True)
class Suite:
    """Checkpoints of one training run, in training order. `row`: what is known of it; None for a folder or a
    repository that was named by itself."""

    name: str
    checkpoints: tuple[CheckpointRef, ...]
    bos: Bos = "default"
    row: Row | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON; what is not known is null."""
        known = self.row.model_dump(exclude={"branch", "revisions"}) if self.row else {}
        return {"name": self.name, **known, "bos": self.bos, "checkpoints": [asdict(ref) for ref in self.checkpoints]}

    def at(self, revision: str | None) -> CheckpointRef:
        """One checkpoint by revision, folder name or step; the last one for None. Raises UnknownName."""
        if revision is None:
            return self.checkpoints[-1]
        revision = revision.replace(",", "") if revision.replace(",", "").isdigit() else revision
        names = {ref.place: ref for ref in self.checkpoints}
        steps = {str(ref.step): ref for ref in self.checkpoints if ref.step is not None}
        if found := names.get(revision) or steps.get(revision):
            return found
        raise UnknownName(f"revision of {self.name}", revision, names)


@cache
def _rows() -> dict[str, Row]:
    with resources.as_file(resources.files("bindscope").joinpath("data/suites.yaml")) as path:
        return YamlFile(path).parse(_File).root


def names() -> list[str]:
    """Names of the catalogue, in its order."""
    return list(_rows())


def catalogued() -> list[Suite]:
    """Every suite of the catalogue; without checkpoints where a package that holds them is not installed."""
    return [_from_row(name, row, strict=False) for name, row in _rows().items()]


def suite(name: str) -> Suite:
    """The one suite that a name stands for; see `suites`. Raises RequestError where a YAML file holds several."""
    found = suites(name)
    if len(found) > 1:
        raise RequestError(f"{name} holds {len(found)} suites ({', '.join(s.name for s in found)}), and one is needed")
    return found[0]


def suites(name: str) -> tuple[Suite, ...]:
    """By catalogue name, YAML file of suites, local folder (with checkpoint-N directories, or a single model), GGUF
    file or hub id; with `@` and revisions behind it, only those.

    Raises UnknownName for a name that is none of them, ModelError for a folder without a model.
    """
    path = Path(name).expanduser()
    whole, at, chosen = name.rpartition("@")
    if at and not path.exists():
        return tuple(_some(found, chosen.split(",")) for found in suites(whole))
    if name in _rows():
        return (_from_row(name, _rows()[name]),)
    try:
        if path.suffix in (".yaml", ".yml"):
            return tuple(_from_row(key, row, path.parent) for key, row in YamlFile(path).parse(_File).root.items())
        return (_local(path) or _hub(name, path),)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _some(found: Suite, revisions: list[str]) -> Suite:
    """Some checkpoints of a suite, in training order."""
    if found.row is None and not Path(found.checkpoints[0].repo).exists():  # a hub repository, of which we know no list
        only = found.checkpoints[0]
        return replace(found, checkpoints=tuple(replace(only, revision=r) for r in dict.fromkeys(revisions)))
    wanted = [found.at(revision) for revision in revisions]
    return replace(found, checkpoints=tuple(ref for ref in found.checkpoints if ref in wanted))


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
    if revision is not None and found.row is None and "/" in name and not Path(name).exists():
        return replace(found.checkpoints[0], revision=revision), found
    return found.at(revision), found


def _from_row(name: str, row: Row, base: Path | None = None, strict: bool = True) -> Suite:
    """base: the folder that holds the user's file; None for the catalogue, whose folders are the package's."""
    kind, _, place = row.repo.partition(":")
    if kind == "gguf" and base is None:
        package, file = place.split("/", 1)
        spec = find_spec(package)  # located, never imported: the package may need programs that we do not
        if spec is None or not spec.submodule_search_locations:
            if not strict:
                return Suite(name, (), row.bos, row)
            raise ModelError(f"{name} needs the Python package {package}, which is not installed: {row.install}")
        return Suite(name, (CheckpointRef(name, spec.submodule_search_locations[0], gguf=file),), row.bos, row)
    tokenizer = None if row.tokenizer is None else str(_folder(row.tokenizer, base) or row.tokenizer)
    if folder := _folder(row.repo, base):
        found = from_folder(folder, name)
        refs = tuple(
            replace(ref, tokenizer=tokenizer or ref.tokenizer, tokens=_seen(ref.step, row.step_tokens))
            for ref in found.checkpoints
        )
        whole = Suite(name, refs, row.bos, row)
        return _some(whole, [revision.name for revision in row.revisions]) if row.revisions else whole
    refs = tuple(CheckpointRef(name, row.repo, r.name, r.step, tokenizer, tokens=r.tokens) for r in row.revisions)
    return Suite(name, refs or (CheckpointRef(name, row.repo, tokenizer=tokenizer),), row.bos, row)


def _folder(place: str, base: Path | None) -> Path | None:
    """The folder that a row names, None for a hub repository. Raises ModelError for a path that is not there."""
    if base is None:
        inside = place.removeprefix("package:")
        return Path(str(resources.files("bindscope").joinpath(inside))) if inside != place else None
    folder = base / Path(place).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place):
        raise ModelError(f"there is no folder {folder.absolute()}, and {place!r} is no hub id such as org/name")
    return None


#: What folders of checkpoints are called.
_STEP = re.compile(r"(?:checkpoint|step)[-_]?(\d+)")


def from_folder(folder: Path, name: str | None = None) -> Suite:
    """A suite from a local folder: its `checkpoint-N` (or `stepN`) directories by N, or the folder itself."""
    name = name or folder.resolve().name
    if not folder.is_dir():
        raise ModelError(f"{name}: the folder {folder} does not exist")
    steps: dict[int, Path] = {}
    for child in folder.iterdir():
        if (match := _STEP.fullmatch(child.name)) and (child / "config.json").is_file():
            if twin := steps.get(int(match[1])):
                raise ModelError(f"{folder} holds step {int(match[1])} twice, as {twin.name} and as {child.name}")
            steps[int(match[1])] = child
    if steps:
        shared = str(folder) if (folder / "tokenizer.json").is_file() else None
        refs = tuple(CheckpointRef(name, str(path), None, step, shared) for step, path in sorted(steps.items()))
        return Suite(name, refs)
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {folder} holds neither a model (config.json) nor checkpoint-N directories")
    above = folder.resolve().parent
    inside = _STEP.fullmatch(folder.resolve().name) and not any(folder.glob("tokenizer*"))
    shared = str(above) if inside and (above / "tokenizer.json").is_file() else None
    return Suite(name, (CheckpointRef(name, str(folder), tokenizer=shared),))
