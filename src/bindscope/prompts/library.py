"""Term sets: YAML files of terms, read and checked, and the library that ships with the package."""

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
from bindscope.prompts.check import check_terms, look_alike
from bindscope.records import Opening, Question, Rubric, Term
from bindscope.yamlfile import YamlFile


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", str_min_length=1, str_strip_whitespace=True)


class _Question(_Entry):
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


class _Opening(_Entry):
    kind: str
    prompt: str
    max_tokens: int = Field(20, ge=1)


class _Rubric(_Entry):
    keywords: list[str] = Field(min_length=1)
    contradictions: list[str] = Field(default_factory=list)


class _Term(_Entry):
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


class _TermFile(_Entry):
    name: str
    terms: list[_Term] = Field(min_length=1)
    sets: dict[str, list[str]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _no_path(cls, value: str) -> str:
        if value.endswith((".yaml", ".yml")):
            raise ValueError("the name of a term file is the name of a set; leave out the file ending")
        return value


@dataclass(frozen=True)
class Library:
    """Terms and named sets of them.

    terms: name -> term, in the order of the file.
    sets: name -> names of its terms.
    """

    terms: dict[str, Term]
    sets: dict[str, tuple[str, ...]]

    def select(self, names: str | Iterable[str]) -> tuple[Term, ...]:
        """The terms of sets or term names, in the order given, each once.

        Raises UnknownName for a name that is neither a set nor a term.
        """
        selected: dict[str, Term] = {}
        for name in [names] if isinstance(names, str) else names:
            if name not in self.sets and name not in self.terms:
                raise UnknownName("term set", name, [*self.sets, *self.terms])
            for term in self.sets.get(name, (name,)):
                selected[term] = self.terms[term]
        return tuple(selected.values())


def read(path: Path) -> Library:
    """The terms and sets of one YAML file, checked. Raises RequestError with the file, the line and the entry."""
    yaml_file = YamlFile(path)
    file = yaml_file.parse(_TermFile)
    answers: dict[tuple[str, str], str] = {}
    for i, entry in enumerate(file.terms):
        if fault := look_alike(entry.name):
            raise yaml_file.error(f"term {entry.name!r}: {fault}", ("terms", i, "name"))
        if entry.name.casefold() in {other.name.casefold() for other in file.terms[:i]}:
            raise yaml_file.error(f"the term {entry.name!r} is defined twice", ("terms", i))
        answers |= {(entry.name, q.kind): q.answer for q in entry.recognition}
    near = {entry.name: set(entry.near) for entry in file.terms}
    for i, entry in enumerate(file.terms):
        for other in entry.near:
            if entry.name not in near.get(other, ()):
                raise yaml_file.error(
                    f"{other!r} is near {entry.name!r}, but not the other way round; list each under the other",
                    ("terms", i, "near"),
                )
    terms = {entry.name: _term(entry, i, answers, yaml_file) for i, entry in enumerate(file.terms)}
    check_terms(yaml_file, tuple(terms.values()))
    for set_name, members in file.sets.items():
        for member in members:
            if member not in terms:
                raise yaml_file.error(
                    f"set {set_name!r} names {member!r}, which is not a term of this file", ("sets", set_name)
                )
    sets = {file.name: tuple(terms)} | {name: tuple(members) for name, members in file.sets.items()}
    return Library(terms, sets)


def _term(entry: _Term, i: int, answers: dict[tuple[str, str], str], yaml_file: YamlFile) -> Term:
    questions, near = [], set(entry.near)
    for j, q in enumerate(entry.recognition):
        wrong, place = list(q.wrong), ("terms", i, "recognition", j)
        for other in q.wrong_from:
            if other in near:
                raise yaml_file.error(
                    f"term {entry.name!r}, {q.kind}: {other!r} is listed as near to it, so it may be right too", place
                )
            if other == entry.name:
                raise yaml_file.error(f"term {entry.name!r}, {q.kind}: `wrong_from` names the term itself", place)
            if all(other != name for name, _ in answers):
                close = difflib.get_close_matches(other, [name for name, _ in answers], 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise yaml_file.error(
                    f"term {entry.name!r}, {q.kind}: `wrong_from` names {other!r}, which has no question here{hint}",
                    place,
                )
            if (other, q.kind) not in answers:
                raise yaml_file.error(f"term {entry.name!r}, {q.kind}: {other!r} has no answer of that kind", place)
            wrong.append(answers[other, q.kind])
        if q.answer in wrong or len(set(wrong)) < len(wrong):
            raise yaml_file.error(f"term {entry.name!r}, {q.kind}: a choice occurs twice", place)
        questions.append(Question(q.kind, q.stem, q.answer, tuple(wrong)))
    return Term(
        name=entry.name,
        written=entry.written or "",
        aliases=tuple(entry.aliases),
        definition=entry.definition or "",
        source=entry.source or "",
        questions=tuple(questions),
        openings=tuple(Opening(o.kind, o.prompt, o.max_tokens) for o in entry.generation),
        rubric=Rubric(tuple(entry.rubric.keywords), tuple(entry.rubric.contradictions)) if entry.rubric else None,
        exemplar=entry.exemplar or "",
        paraphrase=entry.paraphrase or "",
    )


@cache
def library() -> Library:
    """The library that ships with the package. Raises RequestError where two of its files define one term or set."""
    whole = Library({}, {})
    for shipped in sorted(resources.files("bindscope").joinpath("data/terms").iterdir(), key=lambda e: e.name):
        with resources.as_file(shipped) as path:
            part = read(path)
        if again := sorted(whole.terms.keys() & part.terms.keys() | whole.sets.keys() & part.sets.keys()):
            raise RequestError(f"{shipped.name} defines {again[0]!r} again")
        whole = Library(whole.terms | part.terms, whole.sets | part.sets)
    return whole


@cache
def control_groups() -> tuple[str, ...]:
    """Names of the control groups that ship with the package."""
    with resources.as_file(resources.files("bindscope").joinpath("data/terms/controls.yaml")) as path:
        return tuple(name for name in read(path).sets if name != "controls")
