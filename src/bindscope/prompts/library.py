"""Term sets as data: reads the YAML files, checks them, answers `select("a11y-41")`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bindscope.errors import RequestError, UnknownName
from bindscope.prompts.check import check, look_alike
from bindscope.records import Opening, Question, Rubric, Term
from bindscope.yamlfile import YamlFile


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", str_min_length=1, str_strip_whitespace=True)


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


class _Rubric(_Row):
    keywords: list[str] = Field(min_length=1)
    contradictions: list[str] = Field(default_factory=list)


class _Term(_Row):
    name: str
    written: str | None = None
    aliases: list[str] = Field(default_factory=list)
    definition: str | None = None
    source: str | None = None
    recognition: list[_Question] = Field(default_factory=list)
    generation: list[_Opening] = Field(default_factory=list)
    rubric: _Rubric | None = None
    exemplar: str | None = None
    paraphrase: str | None = None
    near: list[str] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _File(_Row):
    name: str
    terms: list[_Term] = Field(min_length=1)
    sets: dict[str, list[str]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _no_path(cls, value: str) -> str:
        if value.endswith((".yaml", ".yml")):
            raise ValueError("the name of a term file is that of a set, not of a file; leave out the ending")
        return value


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
    """Read and check one YAML file of terms. Raises RequestError that names the file, the line and the entry."""
    source = YamlFile(path)
    file = source.parse(_File)
    answers: dict[tuple[str, str], str] = {}
    for i, row in enumerate(file.terms):
        if fault := look_alike(row.name):
            raise source.error(f"term {row.name!r}: {fault}", ("terms", i, "name"))
        if row.name.casefold() in {other.name.casefold() for other in file.terms[:i]}:
            raise source.error(f"the term {row.name!r} is defined twice", ("terms", i))
        answers |= {(row.name, q.kind): q.answer for q in row.recognition}
    near = {row.name: set(row.near) for row in file.terms}
    for i, row in enumerate(file.terms):
        for other in row.near:
            if row.name not in near.get(other, ()):
                raise source.error(
                    f"{other!r} is near {row.name!r}, but not the other way round; list each under the other",
                    ("terms", i, "near"),
                )
    terms = {row.name: _term(row, i, answers, source) for i, row in enumerate(file.terms)}
    check(source, tuple(terms.values()))
    for set_name, members in file.sets.items():
        for member in members:
            if member not in terms:
                raise source.error(
                    f"set {set_name!r} names {member!r}, which is not a term of this file", ("sets", set_name)
                )
    sets = {file.name: tuple(terms)} | {name: tuple(members) for name, members in file.sets.items()}
    return Library(terms, sets)


def _term(row: _Term, i: int, answers: dict[tuple[str, str], str], source: YamlFile) -> Term:
    questions, near = [], set(row.near)
    for j, q in enumerate(row.recognition):
        wrong, place = list(q.wrong), ("terms", i, "recognition", j)
        for other in q.wrong_from:
            if other in near:
                raise source.error(f"term {row.name!r}, {q.kind}: {other!r} is near to it", place)
            if other == row.name:
                raise source.error(f"term {row.name!r}, {q.kind}: `wrong_from` names the term itself", place)
            if all(other != name for name, _ in answers):
                close = difflib.get_close_matches(other, [name for name, _ in answers], 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise source.error(
                    f"term {row.name!r}, {q.kind}: `wrong_from` names {other!r}, which asks no question here{hint}",
                    place,
                )
            if (other, q.kind) not in answers:
                raise source.error(f"term {row.name!r}, {q.kind}: {other!r} has no answer of that kind", place)
            wrong.append(answers[other, q.kind])
        if q.answer in wrong or len(set(wrong)) < len(wrong):
            raise source.error(f"term {row.name!r}, {q.kind}: a choice occurs twice", place)
        questions.append(Question(q.kind, q.stem, q.answer, tuple(wrong)))
    return Term(
        name=row.name,
        written=row.written or "",
        aliases=tuple(row.aliases),
        definition=row.definition or "",
        source=row.source or "",
        questions=tuple(questions),
        openings=tuple(Opening(o.kind, o.prompt, o.max_tokens) for o in row.generation),
        rubric=Rubric(tuple(row.rubric.keywords), tuple(row.rubric.contradictions)) if row.rubric else None,
        exemplar=row.exemplar or "",
        paraphrase=row.paraphrase or "",
    )


@cache
def library() -> Library:
    """The library that ships with the package. A term or set has one home: no file may define it again."""
    whole = Library({}, {})
    for entry in sorted(resources.files("bindscope").joinpath("data/terms").iterdir(), key=lambda e: e.name):
        with resources.as_file(entry) as path:
            part = read(path)
        if again := sorted(whole.terms.keys() & part.terms.keys() | whole.sets.keys() & part.sets.keys()):
            raise RequestError(f"{entry.name} defines {again[0]!r} again")
        whole = Library(whole.terms | part.terms, whole.sets | part.sets)
    return whole


@cache
def control_groups() -> tuple[str, ...]:
    """Names of the control groups that ship with the package."""
    with resources.as_file(resources.files("bindscope").joinpath("data/terms/controls.yaml")) as path:
        return tuple(name for name in read(path).sets if name != "controls")
