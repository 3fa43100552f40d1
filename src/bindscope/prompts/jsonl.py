"""Prompts in and out of JSON lines, in the published format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from bindscope.errors import PromptError
from bindscope.prompts.build import LETTERS, check_unique
from bindscope.prompts.library import library
from bindscope.prompts.spans import find
from bindscope.records import Format, Prompt, Rubric, Shot, Task
from bindscope.yamlfile import first_error


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must be a non-empty text")
    return value


_Text = Annotated[str, AfterValidator(_not_blank)]


class _Rubric(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    keywords: tuple[_Text, ...] = Field(min_length=1)
    contradictions: tuple[_Text, ...] = ()


class Line(BaseModel):
    """One line of a prompt file: the published keys, and those that bindscope adds.

    term: the expression that is asked about.
    task: "recognition", "generation" or "carrier".
    template: the text as the model reads it.
    prompt_id: unique within the term.
    kind: kind of question or opening; the sentence of a carrier.
    aliases: other names of the term; None takes those of the library.
    group: "real", or the control group of a carrier's expression.
    question: what the rotations of a question, or the shots of an opening, share.
    choices, answer_idx, answer: of a question, the choices, the index of the right one, its letter or text.
    format, rotation: of a question, whether the text shows the choices, and by how many places they are shifted.
    max_tokens: of an opening, the length of the completion.
    rubric: of an opening, how a completion is scored; the library's if the key is left out, none if it is null.
    shot, exemplar, exemplar_term: of an opening, the kind of sentence before it, the sentence, the term it explains.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    term: _Text
    task: Task
    template: _Text
    prompt_id: _Text
    kind: str = ""
    aliases: tuple[_Text, ...] | None = None
    group: str = "real"
    question: str = ""
    choices: tuple[_Text, ...] = ()
    answer_idx: int = 0
    answer: str | None = None
    format: Format = "listed"
    rotation: int = Field(default=0, ge=0, lt=2**31)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    rubric: _Rubric | None = None
    shot: Shot = "zero"
    exemplar: str = ""
    exemplar_term: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Line:
        if not self.question and (self.rotation or self.shot != "zero"):
            raise ValueError(
                "a rotation of a question, or an opening after an exemplar, needs the 'question' that it shares with "
                "the plain one (or the prompt_id of the plain one)"
            )
        if self.group != "real" and self.task != "carrier":
            raise ValueError(f"'group' {self.group!r} is for carriers; questions and openings are about terms")
        if self.task == "carrier" and not self.kind:
            raise ValueError("a carrier names its sentence in 'kind': terms and controls are compared within one")
        if self.task == "recognition":
            self._check_choices()
        if self.task == "generation" and (
            (self.shot == "zero") != (not self.exemplar) or self.exemplar not in self.template
        ):
            raise ValueError(
                f"shot {self.shot!r} with the exemplar {self.exemplar!r}: an exemplar must be part of the template, "
                "and a 'zero' shot has none"
            )
        return self

    def _check_choices(self) -> None:
        if len(self.choices) < 2 or "answer_idx" not in self.model_fields_set:
            raise ValueError("a question needs 'choices', at least two texts, and 'answer_idx'")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"'choices' holds the same text twice: {list(self.choices)!r}")
        if not 0 <= self.answer_idx < len(self.choices):
            raise ValueError(f"'answer_idx' must be 0 to {len(self.choices) - 1}, got {self.answer_idx}")
        letter, text = LETTERS[self.answer_idx : self.answer_idx + 1], self.choices[self.answer_idx]
        if self.answer is not None and self.answer not in (letter, text):
            raise ValueError(f"'answer' is {self.answer!r} but 'answer_idx' {self.answer_idx} is {letter!r} ({text!r})")

    def prompt(self) -> Prompt:
        """The line as a prompt; what it leaves out is taken from the library's term of the same name."""
        known = library().terms.get(self.term)
        aliases = self.aliases if self.aliases is not None else known.aliases if known else ()
        plain = Prompt(
            id=f"{self.term}/{self.prompt_id}",
            term=self.term,
            text=self.template,
            task=self.task,
            aliases=aliases,
            kind=self.kind,
            group=self.group,
            question=f"{self.term}/{self.question}" if self.question else "",
        )
        if self.task == "recognition":
            return replace(
                plain, choices=self.choices, answer=self.answer_idx, format=self.format, rotation=self.rotation
            )
        if self.task == "generation":
            rubric = known.rubric if known else None
            if "rubric" in self.model_fields_set:
                rubric = Rubric(self.rubric.keywords, self.rubric.contradictions) if self.rubric else None
            return replace(
                plain,
                max_tokens=self.max_tokens,
                rubric=rubric,
                shot=self.shot,
                exemplar=self.exemplar,
                exemplar_term=self.exemplar_term,
            )
        return plain


def read_jsonl(path: Path | str) -> tuple[Prompt, ...]:
    """The prompts of a file with one JSON object a line; see `Line` for the keys. Blank lines are skipped.

    Raises PromptError with the file and the line for what cannot be read, two prompts with one id, and a rotation of a
    question whose rotation 0 is not in the file.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8").split("\n")  # not splitlines: texts may hold U+0085 or U+2028
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"cannot read the prompt file {path}: {reason}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(Line.model_validate_json(line).prompt())
            except ValidationError as error:
                raise PromptError(f"{path}:{number}: {first_error(error, Line)[1]}") from error
    if not prompts:
        raise PromptError(f"{path}: no prompts in the file")
    check_unique(prompts)
    _check_rotations(prompts, path)
    return tuple(prompts)


def _check_rotations(prompts: list[Prompt], path: Path | str) -> None:
    """Binding is measured on rotation 0 only, which is right if the others have the same text up to the term."""
    first = {(p.shared, _text_up_to_the_term(p)) for p in prompts if p.rotation == 0}
    for p in prompts:
        if p.rotation and (p.shared, _text_up_to_the_term(p)) not in first:
            raise PromptError(
                f"{path}: prompt {p.id!r} is rotation {p.rotation} of a question whose rotation 0 is not in the file; "
                "binding is measured on rotation 0: add it, or leave the rotation out"
            )


def _text_up_to_the_term(prompt: Prompt) -> tuple[str, str]:
    occurrences = find(prompt.text, prompt.term, prompt.aliases)
    return prompt.term, prompt.text[: occurrences[0][1]] if occurrences else prompt.text


def write_jsonl(prompts: Iterable[Prompt], path: Path) -> None:
    """Write prompts in the published format, with the keys that bindscope adds; `read_jsonl` gives them back."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in to_json(prompts))
    path.write_bytes(text.encode("utf-8"))


def to_json(prompts: Iterable[Prompt]) -> Iterator[dict[str, Any]]:
    """The objects that `write_jsonl` writes, one for each prompt."""
    for p in prompts:
        line: dict[str, Any] = {"term": p.term, "task": p.task, "template": p.text}
        if p.task == "recognition":
            assert p.answer is not None
            line |= {
                "answer": LETTERS[p.answer] if p.answer < len(LETTERS) else p.choices[p.answer],
                "choices": list(p.choices),
                "answer_idx": p.answer,
                "format": p.format,
                "rotation": p.rotation,
            }
        if p.task == "generation":
            line |= {"max_tokens": p.max_tokens, "rubric": asdict(p.rubric) if p.rubric else None}
        if p.shot != "zero":
            line |= {"shot": p.shot, "exemplar": p.exemplar, "exemplar_term": p.exemplar_term}
        if p.group != "real":
            line["group"] = p.group
        if p.question:
            line["question"] = p.question.removeprefix(f"{p.term}/")
        yield line | {"prompt_id": p.id.removeprefix(f"{p.term}/"), "kind": p.kind, "aliases": list(p.aliases)}
