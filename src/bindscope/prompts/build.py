"""Terms -> prompts.

A recognition question has two formats. *Listed* shows the choices in the prompt, as the reference study does; *cloze*
shows the stem only. In both, the text of each choice is scored as a continuation. A generation prompt is an opening
that the model completes, alone or after an exemplar. A carrier sentence is one into which any expression fits, so that
terms and controls are compared in the same words.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

from bindscope.errors import PromptError, RequestError, UnknownName
from bindscope.prompts.spans import find
from bindscope.records import Format, Order, Prompt, Question, Shot, Term
from bindscope.yamlfile import read_yaml

LETTERS = string.ascii_uppercase
#: Few-shot conditions, in the order of the results.
SHOTS: tuple[Shot, ...] = ("exemplar", "paraphrase", "mismatched")


def build(terms: Iterable[Term], format: Format = "listed", order: Order = "rotated") -> tuple[Prompt, ...]:
    """The recognition questions and generation prompts of the terms.

    format: whether the prompt shows the choices ("listed") or not ("cloze"; each question is then asked once).
    order: where the right choice is among the listed ones. "rotated" asks each question once per choice, with the
        choices shifted cyclically, so that the right one is equally often in each place. "spread" asks it once, with
        the right one a place further from question to question. "given" asks it once, with the right one first, as in
        the term files.

    Raises PromptError for two prompts with one id or too many choices.
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
        id=f"{shared}/{turn}",
        term=term.name,
        text=text,
        task="recognition",
        aliases=term.aliases,
        kind=question.kind,
        choices=choices,
        answer=gold,
        format=format,
        rotation=turn,
        question=shared,
    )


def listed(stem: str, choices: Iterable[str]) -> str:
    """The text of a listed question: the stem, its choices with letters, one a line, and "Answer:".

    Raises PromptError for more choices than letters.
    """
    options = list(choices)
    if len(options) > len(LETTERS):
        raise PromptError(f"{stem!r} has {len(options)} choices, and there are {len(LETTERS)} letters; take some out")
    lines = "".join(f"{letter}) {choice}\n" for letter, choice in zip(LETTERS, options, strict=False))
    return f"{stem}:\n{lines}Answer:"


def _opening(term: Term, i: int, shot: Shot = "zero", exemplar: str = "", owner: str = "") -> Prompt:
    opening = term.openings[i]
    return Prompt(
        id=f"{term.name}/generation/{opening.kind}" + ("" if shot == "zero" else f"/{shot}"),
        term=term.name,
        text=opening.text if shot == "zero" else f"{exemplar}\n{opening.text}",
        task="generation",
        aliases=term.aliases,
        kind=opening.kind,
        max_tokens=opening.max_tokens,
        rubric=term.rubric,
        shot=shot,
        exemplar=exemplar,
        exemplar_term=owner,
        question=f"{term.name}/generation/{opening.kind}",
    )


def few_shot(terms: Sequence[Term]) -> tuple[Prompt, ...]:
    """Every opening after the term's exemplar, after its paraphrase, and after the exemplar of another term.

    The other term is the next one in the order of `terms` whose exemplar does not contain this term. Raises
    RequestError for a term that has openings but no exemplar or paraphrase, or for which there is no other term.
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
            raise RequestError(
                f"few_shot needs a second term whose exemplar does not contain {term.name!r}; add one to `terms`"
            )
        exemplars = {
            "exemplar": (term.exemplar, term.name),
            "paraphrase": (term.paraphrase, term.name),
            "mismatched": (other.exemplar, other.name),
        }
        prompts += [
            _opening(term, i, shot, exemplar=exemplars[shot][0], owner=exemplars[shot][1])
            for shot in SHOTS
            for i in range(len(term.openings))
        ]
    return tuple(prompts)


def carriers(terms: Iterable[Term], name: str, group: str = "real") -> tuple[Prompt, ...]:
    """Each term in each carrier sentence of a list.

    name: the list; see `frames`.
    group: "real", or the control group that the terms belong to.

    A sentence that contains the term anyway is left out. Raises UnknownName for a list that does not exist.
    """
    if name not in frames():
        raise UnknownName("list of carrier sentences", name, frames())
    return tuple(
        Prompt(
            id=f"{term.name}/{name}/{i}",
            term=term.name,
            text=frame.format(term=term.surface),
            task="carrier",
            aliases=term.aliases,
            kind=str(i),
            group=group,
        )
        for term in terms
        for i, frame in enumerate(frames()[name])
        if not find(frame.format(term=""), term.name, term.aliases)
    )


@cache
def frames() -> dict[str, tuple[str, ...]]:
    """The lists of carrier sentences that ship with the package, by name; `{term}` marks the place of the term."""
    with resources.as_file(resources.files("bindscope").joinpath("data/frames.yaml")) as path:
        return {name: tuple(sentences) for name, sentences in read_yaml(path).items()}


def check_unique(prompts: Iterable[Prompt]) -> None:
    """Raise PromptError where two prompts have one id."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"two prompts have the id {prompt.id!r}; ids must be unique in a run")
        seen.add(prompt.id)
