"""Terms -> prompts.

A recognition question has two formats. *Listed* shows the choices in the prompt (the published one); *cloze* shows
the stem only. In both, the continuation that is scored is the text of a choice. A generation prompt is an opening that
the model goes on with, alone or behind an exemplar. A carrier is a sentence in which any expression can stand, so that
terms and controls are compared in the very same words.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

import yaml

from bindscope.errors import PromptError, RequestError, UnknownName
from bindscope.prompts.spans import find
from bindscope.records import Format, Order, Prompt, Question, Shot, Term

LETTERS = string.ascii_uppercase
#: Few-shot conditions, in the order of the results.
SHOTS: tuple[Shot, ...] = ("exemplar", "paraphrase", "mismatched")


def build(terms: Iterable[Term], format: Format = "listed", order: Order = "rotated") -> tuple[Prompt, ...]:
    """The questions and openings of the terms.

    order: "rotated" asks every listed question once per choice, its options shifted cyclically, so gold stands equally
    often in each place; "spread" asks it once, with gold at a place that moves on by one from question to question;
    "given" once, with the answer first, as term files have it. Cloze prompts show no options and are asked once.
    """
    prompts: list[Prompt] = []
    shift = 0
    for term in terms:
        for question in term.questions:
            turns = len(question.wrong) + 1 if order == "rotated" and format == "listed" else 1
            first = 0 if order == "given" else shift
            prompts += [_question(term, question, format, first, turn) for turn in range(turns)]
            shift += 1
        prompts += [_opening(term, i) for i in range(len(term.openings))]
    check_unique(prompts)
    return tuple(prompts)


def _question(term: Term, question: Question, format: Format, shift: int, turn: int) -> Prompt:
    n = len(question.wrong) + 1
    gold = (shift + turn) % n
    options = [question.answer, *question.wrong]
    choices = tuple(options[(i - gold) % n] for i in range(n))
    text = question.stem if format == "cloze" else listed(question.stem, choices)
    shared = f"{term.name}/recognition/{question.kind}/{format}"
    return Prompt(
        f"{shared}/{turn}",
        term.name,
        text,
        "recognition",
        term.aliases,
        question.kind,
        choices,
        gold,
        format=format,
        rotation=turn,
        question=shared,
    )


def listed(stem: str, choices: Iterable[str]) -> str:
    """The question with its options, one a line."""
    shown = list(choices)
    if len(shown) > len(LETTERS):
        raise PromptError(f"{stem!r} has {len(shown)} choices; {len(LETTERS)} can be lettered")
    options = "".join(f"{letter}) {choice}\n" for letter, choice in zip(LETTERS, shown, strict=False))
    return f"{stem}:\n{options}Answer:"


def _opening(term: Term, i: int, shot: Shot = "zero", exemplar: str = "", owner: str = "") -> Prompt:
    opening = term.openings[i]
    return Prompt(
        f"{term.name}/generation/{opening.kind}" + ("" if shot == "zero" else f"/{shot}"),
        term.name,
        opening.text if shot == "zero" else f"{exemplar}\n{opening.text}",
        "generation",
        term.aliases,
        opening.kind,
        max_tokens=opening.max_tokens,
        rubric=term.rubric,
        shot=shot,
        exemplar=exemplar,
        exemplar_term=owner,
        question=f"{term.name}/generation/{opening.kind}",
    )


def few_shot(terms: Sequence[Term]) -> tuple[Prompt, ...]:
    """Every opening behind the term's exemplar, behind its paraphrase, and behind the exemplar of another term: the
    next one in the order of `terms` whose exemplar does not hold this term.

    Raises RequestError naming a term that has openings but lacks an exemplar, or for which no other exemplar is found.
    """
    prompts = []
    for n, term in enumerate(terms):
        if not term.openings:
            continue
        for name in ("exemplar", "paraphrase"):
            if not getattr(term, name):
                raise RequestError(f"few_shot needs the {name} of {term.name!r}; add it, or leave few_shot out")
        rest = [t for t in [*terms[n + 1 :], *terms[:n]] if t.exemplar]
        other = next((t for t in rest if not find(t.exemplar, term.name, term.aliases)), None)
        if other is None:
            raise RequestError(f"few_shot needs a second term: no other exemplar can stand before {term.name!r}")
        shown = {"exemplar": (term.exemplar, term.name), "paraphrase": (term.paraphrase, term.name),
                 "mismatched": (other.exemplar, other.name)}  # fmt: skip
        prompts += [_opening(term, i, shot, *shown[shot]) for shot in SHOTS for i in range(len(term.openings))]
    return tuple(prompts)


def carriers(terms: Iterable[Term], name: str, group: str = "real") -> tuple[Prompt, ...]:
    """Each term in each sentence of the list `name`; a sentence that holds the term by itself is left out.

    Raises UnknownName for a list that does not exist.
    """
    if name not in frames():
        raise UnknownName("list of frames", name, frames())
    return tuple(
        Prompt(
            f"{term.name}/{name}/{i}", term.name, frame.format(term=term.surface), "carrier", term.aliases,
            str(i), group=group,
        )
        for term in terms
        for i, frame in enumerate(frames()[name])
        if not find(frame.format(term=""), term.name, term.aliases)
    )  # fmt: skip


@cache
def frames() -> dict[str, tuple[str, ...]]:
    """The lists of carrier sentences that ship with the package."""
    text = resources.files("bindscope").joinpath("data/frames.yaml").read_text(encoding="utf-8")
    return {name: tuple(rows) for name, rows in yaml.safe_load(text).items()}


def check_unique(prompts: Iterable[Prompt]) -> None:
    """Raise PromptError where two prompts have one id."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"two prompts have the id {prompt.id!r}; ids must be unique in a run")
        seen.add(prompt.id)
