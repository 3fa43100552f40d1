"""Prompts in and out of JSON lines, in the published format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bindscope.errors import PromptError
from bindscope.prompts.build import LETTERS, SHOTS, check_unique
from bindscope.prompts.library import library
from bindscope.prompts.spans import find
from bindscope.records import Prompt, Rubric


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
    check_unique(prompts)
    _check_rotations(prompts, path)
    return tuple(prompts)


def _check_rotations(prompts: list[Prompt], path: Path | str) -> None:
    """Binding is read on rotation 0 only, which is right if the others agree with it up to the term."""
    first = {(p.shared, _head(p)) for p in prompts if p.rotation == 0}
    for p in prompts:
        if p.rotation and (p.shared, _head(p)) not in first:
            raise PromptError(
                f"{path}: prompt {p.id!r} is rotation {p.rotation} of a question whose rotation 0 is not in the file; "
                "binding is measured on rotation 0: add it, or leave the rotation out"
            )


def _head(prompt: Prompt) -> tuple[str, str]:
    found = find(prompt.text, prompt.term, prompt.aliases)
    return prompt.term, prompt.text[: found[0][1]] if found else prompt.text


_TEXTS = ("term", "task", "template", "prompt_id")
_RECOGNITION = {"choices", "answer", "answer_idx", "format", "rotation"}
_GENERATION = {"max_tokens", "rubric", "shot", "exemplar", "exemplar_term"}
_KNOWN = {*_TEXTS, *_RECOGNITION, *_GENERATION, "kind", "aliases", "group", "question"}


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
    term = row["term"]
    known = library().terms.get(term)
    aliases = row.get("aliases")
    if aliases is None:
        aliases = known.aliases if known else ()
    if not isinstance(aliases, list | tuple) or not all(isinstance(a, str) and a for a in aliases):
        raise PromptError(f"'aliases' must be a list of texts, got {aliases!r}")
    kind, group = row.get("kind", ""), row.get("group", "real")
    if not isinstance(kind, str) or not isinstance(group, str):
        raise PromptError(f"'kind' and 'group' must be texts, got {kind!r} and {group!r}")
    question = row.get("question", "")
    if not isinstance(question, str) or (not question and (row.get("rotation") or row.get("shot", "zero") != "zero")):
        raise PromptError(
            "a rotation of a question, or an opening behind an exemplar, gives the 'question' that it shares with the "
            f"plain one (or the plain one's prompt_id), got {question!r}"
        )
    if group != "real" and row["task"] != "carrier":
        raise PromptError(f"'group' {group!r} is for carriers; questions and openings are about terms")
    if not kind and row["task"] == "carrier":
        raise PromptError("a carrier names its sentence in 'kind', so that terms and controls are compared within it")
    prompt = Prompt(
        f"{term}/{row['prompt_id']}", term, row["template"], "carrier", tuple(aliases), kind, group=group,
        question=f"{term}/{question}" if question else "",
    )  # fmt: skip
    if row["task"] == "recognition":
        return _recognition(prompt, row)
    if row["task"] == "generation":
        return _generation(prompt, row, known.rubric if known else None)
    if row["task"] != "carrier":
        raise PromptError(f"'task' must be 'recognition', 'generation' or 'carrier', got {row['task']!r}")
    return prompt


def _recognition(prompt: Prompt, row: dict[str, Any]) -> Prompt:
    choices, gold = _choices(row)
    format, rotation = row.get("format", "listed"), row.get("rotation", 0)
    if format not in ("listed", "cloze"):
        raise PromptError(f"'format' must be 'listed' or 'cloze', got {format!r}")
    if not isinstance(rotation, int) or isinstance(rotation, bool) or rotation < 0:
        raise PromptError(f"'rotation' must be a whole number, got {rotation!r}")
    return replace(prompt, task="recognition", choices=choices, answer=gold, format=format, rotation=rotation)


def _generation(prompt: Prompt, row: dict[str, Any], rubric: Rubric | None) -> Prompt:
    limit, shot = row.get("max_tokens"), row.get("shot", "zero")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise PromptError(f"'max_tokens' must be a positive whole number, got {limit!r}")
    if shot not in ("zero", *SHOTS):
        raise PromptError(f"'shot' must be one of {', '.join(('zero', *SHOTS))}, got {shot!r}")
    if row.get("rubric") is not None:
        rubric = _rubric(row["rubric"])
    elif "rubric" in row:
        rubric = None
    exemplar, owner = row.get("exemplar", ""), row.get("exemplar_term", "")
    if not isinstance(exemplar, str) or not isinstance(owner, str):
        raise PromptError(f"'exemplar' and 'exemplar_term' must be texts, got {exemplar!r} and {owner!r}")
    if (shot == "zero") != (not exemplar) or exemplar not in prompt.text:
        raise PromptError(
            f"shot {shot!r} with the exemplar {exemplar!r}: it must stand in the template, or be left out"
        )
    return replace(
        prompt, task="generation", max_tokens=limit, rubric=rubric, shot=shot, exemplar=exemplar, exemplar_term=owner
    )


def _rubric(value: Any) -> Rubric:
    lists = [value.get(name, []) for name in ("keywords", "contradictions")] if isinstance(value, dict) else [None]
    texts = [
        list(phrases) for phrases in lists if isinstance(phrases, list) and all(isinstance(p, str) for p in phrases)
    ]
    if len(texts) < 2 or not texts[0] or not all(p.strip() for phrases in texts for p in phrases):
        raise PromptError(f"'rubric' must hold lists of texts, keywords and contradictions, got {value!r}")
    return Rubric(tuple(texts[0]), tuple(texts[1]))


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
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(prompts))
    path.write_bytes(text.encode("utf-8"))


def rows(prompts: Iterable[Prompt]) -> Iterator[dict[str, Any]]:
    """The objects that `write_jsonl` writes, one a prompt."""
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
        if p.task == "generation":
            row |= {"max_tokens": p.max_tokens, "rubric": asdict(p.rubric) if p.rubric else None}
        if p.shot != "zero":
            row |= {"shot": p.shot, "exemplar": p.exemplar, "exemplar_term": p.exemplar_term}
        if p.group != "real":
            row["group"] = p.group
        if p.question:
            row["question"] = p.question.removeprefix(f"{p.term}/")
        yield row | {"prompt_id": p.id.removeprefix(f"{p.term}/"), "kind": p.kind, "aliases": list(p.aliases)}
