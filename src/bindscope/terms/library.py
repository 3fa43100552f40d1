"""Term sets as data: reads the YAML files, checks them, answers `select("set-A")`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bindscope.errors import RequestError, UnknownName
from bindscope.records import Opening, Question, Term


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", str_min_length=1)


class _Question(_Row):
    kind: str
    stem: str
    answer: str
    wrong: list[str] = Field(default_factory=list)
    wrong_from: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_source(self) -> _Question:
        if bool(self.wrong) == bool(self.wrong_from):
            raise ValueError("give either `wrong` (texts) or `wrong_from` (terms), and at least one entry")
        return self


class _Opening(_Row):
    kind: str
    prompt: str
    max_tokens: int = Field(20, ge=1)


class _Term(_Row):
    name: str
    aliases: list[str] = Field(default_factory=list)
    definition: str
    source: str
    recognition: list[_Question] = Field(default_factory=list)
    generation: list[_Opening] = Field(default_factory=list)


class _File(_Row):
    name: str
    terms: list[_Term] = Field(min_length=1)
    sets: dict[str, list[str]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Library:
    """Terms in file order, and the named sets that are views of them."""

    terms: dict[str, Term]
    sets: dict[str, tuple[str, ...]]

    def select(self, names: str | Iterable[str]) -> tuple[Term, ...]:
        """Terms of one or more sets or term names, in the order given, without repeats.

        Raises UnknownName for a name that is neither a set nor a term.
        """
        wanted: dict[str, Term] = {}
        for name in [names] if isinstance(names, str) else names:
            if name not in self.sets and name not in self.terms:
                raise UnknownName("term set", name, [*self.sets, *self.terms])
            for term in self.sets.get(name, (name,)):
                wanted[term] = self.terms[term]
        return tuple(wanted.values())


def read(path: Path) -> Library:
    """Read and check one YAML file of terms. Raises RequestError that names the file and the entry."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"cannot read the term file {path}: {_one_line(error)}") from error
    try:
        file = _File.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"{path}: at {where or 'top level'}: {first['msg']}") from error
    by_name = {row.name: row for row in file.terms}
    if len(by_name) < len(file.terms):
        raise RequestError(f"{path}: a term is defined twice")
    terms = {row.name: _term(row, by_name, path) for row in file.terms}
    for set_name, members in file.sets.items():
        for member in members:
            if member not in terms:
                raise RequestError(f"{path}: set {set_name!r} names {member!r}, which is not a term of this file")
    sets = {file.name: tuple(terms)} | {name: tuple(members) for name, members in file.sets.items()}
    return Library(terms, sets)


def _term(row: _Term, by_name: dict[str, _Term], path: Path) -> Term:
    questions = []
    for q in row.recognition:
        wrong = list(q.wrong)
        for other in q.wrong_from:
            answers = [o.answer for o in by_name[other].recognition if o.kind == q.kind] if other in by_name else []
            if not answers:
                raise RequestError(f"{path}: term {row.name!r}, {q.kind}: {other!r} has no answer of that kind")
            wrong.append(answers[0])
        if q.answer in wrong or len(set(wrong)) < len(wrong):
            raise RequestError(f"{path}: term {row.name!r}, {q.kind}: a choice occurs twice")
        questions.append(Question(q.kind, q.stem, q.answer, tuple(wrong)))
    return Term(
        name=row.name,
        aliases=tuple(row.aliases),
        definition=row.definition,
        source=row.source,
        questions=tuple(questions),
        openings=tuple(Opening(o.kind, o.prompt, o.max_tokens) for o in row.generation),
    )


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())


@cache
def library() -> Library:
    """The library that ships with the package."""
    terms: dict[str, Term] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for entry in sorted(resources.files("bindscope").joinpath("data/terms").iterdir(), key=lambda e: e.name):
        with resources.as_file(entry) as path:
            part = read(path)
        terms |= part.terms
        sets |= part.sets
    return Library(terms, sets)
