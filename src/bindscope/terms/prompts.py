"""Terms -> prompts, and prompts in and out of JSON lines.

A recognition question has two formats. *Listed* shows the choices in the prompt (the published one); *cloze* shows
the stem only. In both, the continuation that is scored is the text of a choice.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bindscope.errors import PromptError
from bindscope.records import Format, Prompt, Question, Term
from bindscope.terms.library import library
from bindscope.terms.spans import find

LETTERS = string.ascii_uppercase


def build(terms: Iterable[Term], format: Format = "listed", rotate: bool = True) -> tuple[Prompt, ...]:
    """All prompts of the terms: their questions, then their openings.

    Without rotation gold stands at a place that moves on by one from question to question. With `rotate` every
    listed question appears once per choice, its options shifted cyclically, so gold stands equally often in each
    place. Cloze prompts show no options and are not rotated.
    """
    prompts: list[Prompt] = []
    shift = 0
    for term in terms:
        for question in term.questions:
            turns = len(question.wrong) + 1 if rotate and format == "listed" else 1
            prompts += [_question(term, question, format, shift, turn) for turn in range(turns)]
            shift += 1
        prompts += [
            Prompt(
                f"{term.name}/generation/{o.kind}",
                term.name,
                o.text,
                "generation",
                term.aliases,
                o.kind,
                max_tokens=o.max_tokens,
            )
            for o in term.openings
        ]
    _check_unique(prompts)
    return tuple(prompts)


def _question(term: Term, question: Question, format: Format, shift: int, turn: int) -> Prompt:
    n = len(question.wrong) + 1
    gold = (shift + turn) % n
    options = [question.answer, *question.wrong]
    choices = tuple(options[(i - gold) % n] for i in range(n))
    text = question.stem if format == "cloze" else listed(question.stem, choices)
    return Prompt(
        f"{term.name}/recognition/{question.kind}/{format}/{turn}",
        term.name,
        text,
        "recognition",
        term.aliases,
        question.kind,
        choices,
        gold,
        format=format,
        rotation=turn,
    )


def listed(stem: str, choices: Iterable[str]) -> str:
    """The question with its options, one a line."""
    shown = list(choices)
    if len(shown) > len(LETTERS):
        raise PromptError(f"{stem!r} has {len(shown)} choices; {len(LETTERS)} can be lettered")
    options = "".join(f"{letter}) {choice}\n" for letter, choice in zip(LETTERS, shown, strict=False))
    return f"{stem}:\n{options}Answer:"


def _check_unique(prompts: list[Prompt]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"two prompts have the id {prompt.id!r}; ids must be unique in a run")
        seen.add(prompt.id)


def read_jsonl(path: Path | str) -> tuple[Prompt, ...]:
    """Prompts in the published format: one JSON object a line with term, task, template, prompt_id and, for
    recognition, choices and answer_idx. Keys written by `write_jsonl` are read back. Blank lines are skipped.

    Raises PromptError that names the file and the line.
    """
    try:
        lines = Path(path).read_bytes().decode("utf-8").split("\n")  # not splitlines: texts may hold U+0085 or U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the prompt file {path}: {error}") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                prompts.append(_from_json(json.loads(line)))
            except (ValueError, RecursionError, PromptError) as error:
                raise PromptError(f"{path}:{number}: {error}") from error
    if not prompts:
        raise PromptError(f"{path}: no prompts in the file")
    _check_unique(prompts)
    _check_rotations(prompts, path)
    return tuple(prompts)


def _check_rotations(prompts: list[Prompt], path: Path | str) -> None:
    """Binding is read on rotation 0 only, which is right if the others agree with it up to the term."""
    first = {_head(p) for p in prompts if p.rotation == 0}
    for p in prompts:
        if p.rotation and _head(p) not in first:
            raise PromptError(
                f"{path}: prompt {p.id!r} is rotation {p.rotation} of a question whose rotation 0 is not in the file; "
                "binding is measured on rotation 0: add it, or leave the rotation out"
            )


def _head(prompt: Prompt) -> tuple[str, str]:
    found = find(prompt.text, prompt.term, prompt.aliases)
    return prompt.term, prompt.text[: found[0][1]] if found else prompt.text


_TEXTS = ("term", "task", "template", "prompt_id")
_KNOWN = {*_TEXTS, "choices", "answer", "answer_idx", "max_tokens", "kind", "format", "rotation", "aliases"}


def _from_json(row: Any) -> Prompt:
    if not isinstance(row, dict):
        raise PromptError(f"expected a JSON object, got {type(row).__name__}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise PromptError("a text holds half of a surrogate pair, which is no character") from error
    for key in _TEXTS:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise PromptError(f"{key!r} must be a non-empty text, got {row.get(key)!r}")
    if unknown := set(row) - _KNOWN:
        raise PromptError(f"unknown keys {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KNOWN))}")
    term, task = row["term"], row["task"]
    aliases = row.get("aliases")
    if aliases is None:
        aliases = library().terms[term].aliases if term in library().terms else ()
    if not isinstance(aliases, list | tuple) or not all(isinstance(a, str) and a for a in aliases):
        raise PromptError(f"'aliases' must be a list of texts, got {aliases!r}")
    rotation, kind, limit = row.get("rotation", 0), row.get("kind", ""), row.get("max_tokens")
    if not isinstance(rotation, int) or isinstance(rotation, bool) or rotation < 0 or not isinstance(kind, str):
        raise PromptError(f"'rotation' must be a whole number and 'kind' a text, got {rotation!r} and {kind!r}")
    if task == "generation":
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise PromptError(f"'max_tokens' must be a positive whole number, got {limit!r}")
        return Prompt(
            f"{term}/{row['prompt_id']}", term, row["template"], "generation", tuple(aliases), kind, max_tokens=limit
        )
    if task != "recognition":
        raise PromptError(f"'task' must be 'recognition' or 'generation', got {task!r}")
    choices, gold = _choices(row)
    format = row.get("format", "listed")
    if format not in ("listed", "cloze"):
        raise PromptError(f"'format' must be 'listed' or 'cloze', got {format!r}")
    return Prompt(
        f"{term}/{row['prompt_id']}",
        term,
        row["template"],
        "recognition",
        tuple(aliases),
        kind,
        choices,
        gold,
        format=format,
        rotation=rotation,
    )


def _choices(row: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    choices, gold = row.get("choices"), row.get("answer_idx")
    if not isinstance(choices, list) or len(choices) < 2:
        raise PromptError(f"'choices' must list at least two texts, got {choices!r}")
    if not all(isinstance(c, str) and c.strip() for c in choices):
        raise PromptError(f"'choices' holds an empty or non-text choice: {choices!r}")
    if len(set(choices)) < len(choices):
        raise PromptError(f"'choices' holds the same text twice: {choices!r}")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise PromptError(f"'answer_idx' must be 0 to {len(choices) - 1}, got {gold!r}")
    letter = row.get("answer")
    if letter is not None and letter not in (LETTERS[gold : gold + 1], choices[gold]):
        raise PromptError(
            f"'answer' is {letter!r} but 'answer_idx' {gold} is {LETTERS[gold : gold + 1]!r} ({choices[gold]!r})"
        )
    return tuple(choices), gold


def write_jsonl(prompts: Iterable[Prompt], path: Path) -> None:
    """Write prompts in the published format, with the keys that it lacks added. `read_jsonl` gives them back."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _to_json(prompts))
    path.write_bytes(text.encode("utf-8"))


def _to_json(prompts: Iterable[Prompt]) -> Iterator[dict[str, Any]]:
    for p in prompts:
        row: dict[str, Any] = {"term": p.term, "task": p.task, "template": p.text}
        if p.task == "recognition":
            assert p.answer is not None
            row |= {
                "answer": LETTERS[p.answer] if p.answer < len(LETTERS) else p.choices[p.answer],
                "choices": list(p.choices),
                "answer_idx": p.answer,
                "format": p.format,
                "rotation": p.rotation,
            }
        elif p.max_tokens is not None:
            row["max_tokens"] = p.max_tokens
        yield row | {"prompt_id": p.id.removeprefix(f"{p.term}/"), "kind": p.kind, "aliases": list(p.aliases)}
