"""What to measure: a few lines of YAML, by built-in name or by path."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bindscope.errors import RequestError, UnknownName
from bindscope.records import Bos, Dtype, Format, Prompt, Protocol, Term
from bindscope.terms.library import library
from bindscope.terms.prompts import build, read_jsonl


class Study(BaseModel):
    """A study file, checked.

    suites: catalogue names, local folders or hub ids. terms: sets or single terms of the library; or prompts: a JSONL
    file in the published format. bos: None takes each suite's own. dtype: "auto", "float32", "bfloat16", "float16".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    about: str = ""
    suites: tuple[str, ...] = Field(min_length=1)
    terms: tuple[str, ...] = ()
    prompts: Path | None = None
    format: Format = "listed"
    rotate: bool = True
    bos: Bos | None = None
    dtype: Dtype = "auto"

    @field_validator("bos", mode="before")
    @classmethod
    def _yaml_on(cls, value: Any) -> Any:
        return (
            {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        )  # YAML reads on as true

    @field_validator("suites", "terms", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> Study:
        if bool(self.terms) == bool(self.prompts):
            raise ValueError("give either `terms` or `prompts`")
        if self.prompts and self.model_fields_set & {"format", "rotate"}:
            raise ValueError("`format` and `rotate` are those of the prompt file; leave them out beside `prompts`")
        return self

    def selected(self) -> tuple[Term, ...]:
        """The library's terms that the study names."""
        return library().select(self.terms)

    def build_prompts(self) -> tuple[Prompt, ...]:
        """Its prompts, from the library or from its file."""
        if self.prompts is not None:
            return read_jsonl(self.prompts)
        return build(self.selected(), self.format, self.rotate)

    def protocol(self, bos: Bos) -> Protocol:
        """The choices that change numbers, for a suite whose own BOS choice is `bos`."""
        if self.prompts is not None:
            return Protocol(format=None, rotate=None, bos=self.bos or bos)
        return Protocol(format=self.format, rotate=self.rotate, bos=self.bos or bos)


def names() -> list[str]:
    """Built-in studies."""
    folder = resources.files("bindscope").joinpath("data/studies")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(name: str) -> Study:
    """A built-in study by name, or a YAML file by path. Raises UnknownName, or RequestError naming the entry."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read the study file {path}: {error}") from error
        return _parse(text, str(path), path.parent)
    if name not in names():
        raise UnknownName("study", name, names(), "(or give the path of a .yaml file)")
    text = resources.files("bindscope").joinpath(f"data/studies/{name}.yaml").read_text(encoding="utf-8")
    return _parse(text, name, Path())


def _parse(text: str, where: str, base: Path) -> Study:
    try:
        raw: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{where}: {place + ': ' if place else ''}{first['msg']}{_seen(first.get('input'))}"
        ) from error
    # Paths are the study file's: both kinds are looked for beside it.
    suites = tuple(str(base / name) if (base / name).exists() else name for name in study.suites)
    prompts = None if study.prompts is None else base / study.prompts
    return study.model_copy(update={"suites": suites, "prompts": prompts})


def _seen(value: Any) -> str:
    return f", got {value!r}" if isinstance(value, str | int | float | bool) else ""
