"""Prompts as typed tables, whose columns are the keys of a prompt file (`prompts.jsonl.Line`).

Types are declared: a reader that infers them takes choices that look like dates for dates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa

from bindscope.errors import PromptError
from bindscope.prompts.jsonl import to_json
from bindscope.records import Prompt, Task


class Column(NamedTuple):
    """A column of a table of prompts: its name, its type, and what it holds."""

    name: str
    type: pa.DataType
    description: str


_TEXT, _NUMBER = pa.string(), pa.int64()
_TEXTS = pa.list_(pa.field("item", _TEXT))
_RUBRIC = pa.struct([("keywords", _TEXTS), ("contradictions", _TEXTS)])
_ALL = (
    Column("term", _TEXT, "the expression that is asked about"),
    Column("prompt_id", _TEXT, "unique within a term; `term/prompt_id` is `prompt` in the tables of results"),
    Column("question", _TEXT, "the id that rotations of one question, or shots of one opening, share; empty: none"),
    Column("task", _TEXT, "recognition, generation or carrier"),
    Column("kind", _TEXT, "kind of question or opening; number of the carrier sentence"),
    Column("aliases", _TEXTS, "other names by which the term is found in the text"),
    Column("template", _TEXT, "the text as the model reads it"),
)

#: The columns of each table.
COLUMNS: dict[Task, tuple[Column, ...]] = {
    "recognition": (
        *_ALL,
        Column("choices", _TEXTS, "each continues the text, after one space"),
        Column("answer_idx", _NUMBER, "place of the right choice, from 0"),
        Column("answer", _TEXT, "its letter"),
        Column("format", _TEXT, "listed: the text shows the choices; cloze: it does not"),
        Column("rotation", _NUMBER, "by how many places the choices are shifted; binding is measured on 0"),
    ),
    "generation": (
        *_ALL,
        Column("max_tokens", _NUMBER, "tokens of the completion, at most"),
        Column("rubric", _RUBRIC, "phrases of a right completion, phrases of a wrong one; missing: not scored"),
        Column("shot", _TEXT, "what is put before the opening: zero (nothing), exemplar, paraphrase, mismatched"),
        Column("exemplar", _TEXT, "the sentence before the opening"),
        Column("exemplar_term", _TEXT, "the term that this sentence explains"),
    ),
    "carrier": (*_ALL, Column("group", _TEXT, "real, or the control group of the expression")),
}
#: Values of the keys that a line may leave out.
_DEFAULTS = {"question": "", "group": "real", "shot": "zero", "exemplar": "", "exemplar_term": ""}


def schema(task: Task) -> pa.Schema:
    """Names and types of the columns of a task's table."""
    return pa.schema([(column.name, column.type) for column in COLUMNS[task]])


def table(prompts: Iterable[Prompt], task: Task) -> pa.Table:
    """The prompts of one task as a table.

    Raises PromptError for a question that ends in white space: other programs move the space to the choice and score
    other tokens.
    """
    mine = [prompt for prompt in prompts if prompt.task == task]
    if odd := next((p for p in mine if task == "recognition" and p.text[-1:].isspace()), None):
        raise PromptError(f"the prompt {odd.id!r} ends in white space, and each choice follows a space; remove it")
    return pa.Table.from_pylist([_DEFAULTS | row for row in to_json(mine)], schema(task))
