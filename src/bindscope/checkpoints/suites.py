"""Checkpoint suites: the catalogue, YAML files of the same form, folders, GGUF files and hub repositories.

`name@revision,revision` (or steps) selects some checkpoints of a suite, or any revisions of a hub repository.
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
    """One checkpoint of a suite.

    name: branch, tag or commit.
    step: optimizer steps; None where not known.
    tokens: tokens seen in training; None where not known.
    """

    name: str
    step: int | None = None
    tokens: int | None = None


class SuiteEntry(BaseModel):
    """One suite of a YAML file.

    repo: a hub repository, or a folder of checkpoint-N (relative to the file). In the catalogue also `package:` + a
        folder inside this package, and `gguf:` + a file inside an installed Python package.
    tokenizer: a repository or folder, where the weights have none beside them.
    bos: whether published numbers were made with a BOS token: "default" (what the tokenizer does), "on" or "off".
    branch: how revisions are named after their step, such as "step{step}".
    step_tokens: tokens in one step.
    revisions: the checkpoints in training order. Each is a step (with `branch`), a name, [name, step] or [name, step,
        billions of tokens].
    parameters: how many.
    dtype: of the final weights as they are stored.
    licence, attention, faults, note: shown to the reader.
    install: the command that installs the package which holds the weights.
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
            raise ValueError("a branch is a name that contains {step} once")
        return value

    @field_validator("revisions", mode="before")
    @classmethod
    def _named(cls, value: Any, info: ValidationInfo) -> Any:
        """Revisions as records, whichever way they are written."""
        if not isinstance(value, list):
            raise ValueError("revisions must be a list")
        return tuple(_revision(entry, info.data.get("branch"), info.data.get("step_tokens")) for entry in value)

    @field_validator("revisions")
    @classmethod
    def _in_order(cls, value: tuple[Revision, ...]) -> tuple[Revision, ...]:
        names = [revision.name for revision in value]
        if repeated := next((name for i, name in enumerate(names) if name in names[:i]), None):
            raise ValueError(f"the revision {repeated!r} is there twice")
        steps = [revision.step for revision in value if revision.step is not None]
        if (early := next((b for a, b in pairwise(steps) if b <= a), None)) is not None:
            raise ValueError(f"step {early} comes after a later one; list revisions in training order")
        return value


def _revision(entry: Any, branch: str | None, step_tokens: int | None) -> Revision:
    step: Any
    name, step, billions = (*entry, None, None)[:3] if isinstance(entry, list) else (entry, None, None)
    if type(entry) is int:
        if branch is None:
            raise ValueError(f"the revision {entry} is a number: add its name, or `branch` for the names of all")
        name, step = branch.replace("{step}", str(entry)), entry
    sound = isinstance(name, str) and name and (not isinstance(entry, list) or len(entry) in (2, 3))
    counts = (step is None or (type(step) is int and step >= 0), billions is None or _is_count(billions))
    if not (sound and all(counts)):
        raise ValueError(
            f"a revision is a step, a name, [name, step] or [name, step, billions of tokens], got {entry!r}"
        )
    if billions is not None:
        return Revision(name, step, round(billions * 1e9))
    return Revision(name, step, _tokens_seen(step, step_tokens))


def _is_count(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _tokens_seen(step: int | None, step_tokens: int | None) -> int | None:
    return None if step is None or step_tokens is None else step * step_tokens


class _SuiteFile(RootModel[Annotated[dict[str, SuiteEntry], Field(min_length=1)]]):
    """Name -> suite."""


@dataclass(frozen=True)
class Suite:
    """The checkpoints of one training run.

    name: its name in the catalogue or file, or that of the folder or repository.
    checkpoints: in training order.
    bos: whether a BOS token is put before every text, where an experiment does not say.
    entry: what the catalogue or file says about it; None for a folder or repository that was named directly.
    """

    name: str
    checkpoints: tuple[CheckpointRef, ...]
    bos: Bos = "default"
    entry: SuiteEntry | None = None

    def plain(self) -> dict[str, Any]:
        """The suite as plain values for JSON; what is not known is null."""
        known = self.entry.model_dump(exclude={"branch", "revisions"}) if self.entry else {}
        return {"name": self.name, **known, "bos": self.bos, "checkpoints": [asdict(ref) for ref in self.checkpoints]}

    def at(self, revision: str | None) -> CheckpointRef:
        """The checkpoint of a revision, folder name or step; the last one for None. Raises UnknownName."""
        if revision is None:
            return self.checkpoints[-1]
        revision = revision.replace(",", "") if revision.replace(",", "").isdigit() else revision
        names = {ref.place: ref for ref in self.checkpoints}
        steps = {str(ref.step): ref for ref in self.checkpoints if ref.step is not None}
        if ref := names.get(revision) or steps.get(revision):
            return ref
        raise UnknownName(f"revision of {self.name}", revision, names)


@cache
def _catalogue() -> dict[str, SuiteEntry]:
    with resources.as_file(resources.files("bindscope").joinpath("data/suites.yaml")) as path:
        return YamlFile(path).parse(_SuiteFile).root


def names() -> list[str]:
    """The names in the catalogue, in its order."""
    return list(_catalogue())


def catalogued() -> list[Suite]:
    """Every suite of the catalogue; one whose Python package is not installed has no checkpoints."""
    return [_from_entry(name, entry, strict=False) for name, entry in _catalogue().items()]


def suite(name: str) -> Suite:
    """The suite that a name stands for; see `suites`. Raises RequestError where a YAML file holds several."""
    named = suites(name)
    if len(named) > 1:
        raise RequestError(f"{name} holds {len(named)} suites ({', '.join(s.name for s in named)}), and one is needed")
    return named[0]


def suites(name: str) -> tuple[Suite, ...]:
    """The suites that a name stands for.

    name: a name of the catalogue, a YAML file of suites, a local folder (a model, or a folder of checkpoint-N), a GGUF
        file, or a hub id (org/name). `@` and revisions or steps after it select some of its checkpoints.

    Raises UnknownName for a name that is none of them, ModelError for a folder without a model.
    """
    path = Path(name).expanduser()
    whole, at, chosen = name.rpartition("@")
    if at and not path.exists():
        return tuple(_selected(part, chosen.split(",")) for part in suites(whole))
    if name in _catalogue():
        return (_from_entry(name, _catalogue()[name]),)
    try:
        if path.suffix in (".yaml", ".yml"):
            entries = YamlFile(path).parse(_SuiteFile).root
            return tuple(_from_entry(key, entry, path.parent) for key, entry in entries.items())
        return (_local(path) or _hub(name, path),)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _selected(whole: Suite, revisions: list[str]) -> Suite:
    """Some checkpoints of a suite, in training order."""
    if whole.entry is None and not Path(whole.checkpoints[0].repo).exists():  # a hub repository: any revision will do
        only = whole.checkpoints[0]
        return replace(whole, checkpoints=tuple(replace(only, revision=r) for r in dict.fromkeys(revisions)))
    wanted = [whole.at(revision) for revision in revisions]
    return replace(whole, checkpoints=tuple(ref for ref in whole.checkpoints if ref in wanted))


def _local(path: Path) -> Suite | None:
    if path.is_file() and path.suffix == ".gguf":
        return Suite(path.stem, (CheckpointRef(path.stem, str(path.parent), gguf=path.name),))
    return from_folder(path) if path.is_dir() else None


def _hub(name: str, path: Path) -> Suite:
    if path.suffix == ".gguf" or name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"there is no file or folder {path.absolute()}")
    if _STEP.fullmatch(path.name) or (path.parent.is_dir() and path.parent != Path()):
        raise ModelError(f"there is no folder {path.absolute()}; give the folder of a run, or of one checkpoint in it")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Suite(name, (CheckpointRef(name, name),))
    raise UnknownName("model", name, names(), "(a folder, a .gguf file or a hub id such as org/name works too)")


def one(name: str, revision: str | None = None) -> tuple[CheckpointRef, Suite]:
    """One checkpoint and its suite: the last of a suite, or the one at `revision` (any, of a hub repository).

    Raises UnknownName, ModelError and RequestError as `suite` does.
    """
    whole = suite(name)
    if revision is not None and whole.entry is None and "/" in name and not Path(name).exists():
        return replace(whole.checkpoints[0], revision=revision), whole
    return whole.at(revision), whole


def _from_entry(name: str, entry: SuiteEntry, base: Path | None = None, strict: bool = True) -> Suite:
    """base: the folder that holds the user's file; None for the catalogue, whose folders are the package's."""
    kind, _, place = entry.repo.partition(":")
    if kind == "gguf" and base is None:
        package, file = place.split("/", 1)
        spec = find_spec(package)  # located, never imported: the package may need programs that we do not
        if spec is None or not spec.submodule_search_locations:
            if not strict:
                return Suite(name, (), entry.bos, entry)
            raise ModelError(f"{name} needs the Python package {package}, which is not installed: {entry.install}")
        return Suite(name, (CheckpointRef(name, spec.submodule_search_locations[0], gguf=file),), entry.bos, entry)
    tokenizer = None if entry.tokenizer is None else str(_folder(entry.tokenizer, base) or entry.tokenizer)
    if folder := _folder(entry.repo, base):
        refs = tuple(
            replace(ref, tokenizer=tokenizer or ref.tokenizer, tokens=_tokens_seen(ref.step, entry.step_tokens))
            for ref in from_folder(folder, name).checkpoints
        )
        whole = Suite(name, refs, entry.bos, entry)
        return _selected(whole, [revision.name for revision in entry.revisions]) if entry.revisions else whole
    refs = tuple(
        CheckpointRef(name, entry.repo, r.name, r.step, tokenizer=tokenizer, tokens=r.tokens) for r in entry.revisions
    )
    return Suite(name, refs or (CheckpointRef(name, entry.repo, tokenizer=tokenizer),), entry.bos, entry)


def _folder(place: str, base: Path | None) -> Path | None:
    """The folder that an entry names; None for a hub repository. Raises ModelError for a path that does not exist."""
    if base is None:
        inside = place.removeprefix("package:")
        return Path(str(resources.files("bindscope").joinpath(inside))) if inside != place else None
    folder = base / Path(place).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place):
        raise ModelError(f"there is no folder {folder.absolute()}, and {place!r} is no hub id such as org/name")
    return None


#: Files that hold the vocabulary of a tokenizer.
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
#: What folders of checkpoints are called.
_STEP = re.compile(r"(?:checkpoint|step)[-_]?(\d+)")


def from_folder(folder: Path, name: str | None = None) -> Suite:
    """A suite from a local folder: its `checkpoint-N` (or `stepN`) directories by N, or the folder itself.

    A checkpoint uses the tokenizer in its own folder, and that of the folder above it where it has none. Raises
    ModelError where the folder holds no model, or a step twice.
    """
    name = name or folder.resolve().name
    if not folder.is_dir():
        raise ModelError(f"{name}: the folder {folder} does not exist")
    steps: dict[int, Path] = {}
    for child in folder.iterdir():
        if (match := _STEP.fullmatch(child.name)) and (child / "config.json").is_file():
            if same := steps.get(int(match[1])):
                raise ModelError(f"{folder} holds step {int(match[1])} twice, as {same.name} and as {child.name}")
            steps[int(match[1])] = child
    if steps:
        refs = [
            CheckpointRef(name, str(path), step=step, tokenizer=_tokenizer_above(path, folder))
            for step, path in sorted(steps.items())
        ]
        return Suite(name, tuple(refs))
    if not (folder / "config.json").is_file():
        raise ModelError(f"the folder {folder} holds neither a model (config.json) nor checkpoint-N directories")
    whole = folder.resolve()
    shared = _tokenizer_above(whole, whole.parent) if _STEP.fullmatch(whole.name) else None
    return Suite(name, (CheckpointRef(name, str(folder), tokenizer=shared),))


def _tokenizer_above(checkpoint: Path, parent: Path) -> str | None:
    """The folder above a checkpoint, if the checkpoint has no vocabulary of its own and that folder has one."""
    own, above = (any(True for pattern in _VOCABULARY for _ in folder.glob(pattern)) for folder in (checkpoint, parent))
    return str(parent) if above and not own else None
