"""What a report says: the words at the top, a card for every claim, figures and tables. Page and paper set it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bindscope.report.figure import Figure, svg
from bindscope.report.figures import figures
from bindscope.report.material import Material, gather
from bindscope.report.table import Table
from bindscope.report.tables import tables
from bindscope.report.text import at, count, line, number, span
from bindscope.stats.analysis import Analysis
from bindscope.stats.answers import LIMITS, QUESTIONS, Answer, State, answers
from bindscope.stats.observations import studied
from bindscope.store import Store

#: State of a claim -> a sign and a word that stand for it.
_SIGNS: dict[State, tuple[str, str]] = {
    "both": ("\u25cf", "Both readings"),
    "in part": ("\u25d2", "In part"),
    "published only": ("\u25d0", "Published reading only"),
    "controlled only": ("\u25d1", "Controlled reading only"),
    "neither": ("\u25cb", "Neither reading"),
    "open": ("\u2013", "Open"),
}


@dataclass(frozen=True)
class Said:
    """The answer of one suite to a claim: its state as sign and word, plain words, the sentence with the numbers."""

    suite: str
    sign: str
    word: str
    text: str
    detail: str


@dataclass(frozen=True)
class Card:
    """A claim: what is asked, answered and not shown; its figures and tables; `whole`: every statistic of it."""

    claim: str
    name: str
    question: str
    limit: str
    answers: tuple[Said, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    whole: Table | None


@dataclass(frozen=True)
class Content:
    """found: the numbers. documents: figure name -> SVG. asked, answer: the words at the top."""

    found: Material
    figures: tuple[Figure, ...]
    documents: dict[str, str]
    tables: tuple[Table, ...]
    cards: tuple[Card, ...]
    asked: str
    answer: tuple[str, ...]

    def csv(self) -> dict[str, str]:
        """The numbers of every figure and table, by its name."""
        drawn = {figure.name: figure.data.to_csv(index=False) for figure in self.figures}
        return drawn | {table.name: table.data.to_csv(index=False) for table in self.tables}

    @property
    def many(self) -> bool:
        """More than one suite: answers name theirs."""
        return len(self.found.suites) > 1

    @property
    def lead(self) -> list[Figure]:
        """The figure to begin with, where the run has checkpoints to draw it from."""
        return [f for f in self.figures if f.name == "emergence-log"]

    @property
    def training(self) -> list[Figure]:
        return [f for f in self.figures if f.name.startswith(("emergence-linear", "terms", "layers"))]

    @property
    def heads(self) -> list[Figure]:
        return [f for f in self.figures if f.name == "heads"]

    @property
    def spread(self) -> list[Figure]:
        return [f for f in self.figures if f.name in ("runs", "spread")]

    @property
    def every(self) -> list[Table]:
        """The table of checkpoints."""
        return [t for t in self.tables if t.name == "checkpoints"]

    @property
    def further(self) -> list[Table]:
        """Tables that belong to no claim."""
        return [t for t in self.tables if not t.claim and t.name != "checkpoints"]


def compose(store: Store, analysis: Analysis | None) -> Content:
    """Everything that a report of the folder says. Raises StoreError where the results cannot be read.

    analysis: of the same folder, None for a run that asks no recognition questions.
    """
    found = gather(store, analysis)
    drawn, listed = tuple(figures(found)), tuple(tables(found))
    return Content(
        found,
        drawn,
        {figure.name: svg(figure.chart) for figure in drawn},
        listed,
        tuple(_cards(found, drawn, listed)),
        _asked(found),
        tuple(_answer(str(name), part) for name, part in found.summary.groupby("suite", sort=False)),
    )


def _cards(found: Material, drawn: tuple[Figure, ...], listed: tuple[Table, ...]) -> list[Card]:
    if found.analysis is None:
        return []
    said = answers(found.analysis.results, found.analysis.sentences)
    return [
        Card(
            claim,
            claim[0].upper() + claim[1:],
            question,
            LIMITS[claim],
            tuple(_said(answer) for answer in said if answer.claim == claim),
            tuple(f for f in drawn if f.claim == claim and not f.name.startswith("layers")),
            tuple(t for t in listed if t.claim == claim and not t.name.startswith("claim-")),
            next((t for t in listed if t.name == f"claim-{claim}" and t.data["value"].notna().any()), None),
        )
        for claim, question in QUESTIONS.items()
        if any(answer.claim == claim for answer in said)
    ]


def _said(answer: Answer) -> Said:
    sign, word = _SIGNS[answer.state]
    return Said(line(answer.suite), sign, word, line(answer.text), line(answer.detail))


def _asked(found: Material) -> str:
    binding = studied(found.binding)
    terms, prompts = (binding[c].nunique() if len(binding) else 0 for c in ("term", "prompt"))
    places = sum(u.status == "done" for u in found.run.units)
    models = ", ".join(line(s) for s in found.suites) or "no model yet"
    return (
        "When do attention heads bind a term of several tokens into one, when does the model know the term, and does "
        f"the one bring the other? Asked of {models}, for {count(terms, 'term')} in {count(prompts, 'prompt')}, at "
        f"{count(places, 'checkpoint')}."
    )


def _answer(name: str, part: pd.DataFrame) -> str:
    """What the numbers say, in words, without a claim that they do not carry."""
    last = part.iloc[-1]
    where = "" if len(part) == 1 else f" at the last of {len(part)} checkpoints ({at(last.to_dict())})"
    text = f"{line(name)}{where}: binding strength (EB*) is {number(last['eb_star'])}"
    if pd.isna(last["excess"]):
        text += "; there are too few other windows to compare it with (see run facts)."
    else:
        text += f", and its excess over other windows of as many tokens is {number(last['excess'])}"
        text += (
            f" (95% interval over terms {span(last['excess_low'], last['excess_high'])})."
            if pd.notna(last["excess_low"])
            else "."
        )
    if "accuracy" in part and pd.notna(last["accuracy"]):
        text += (
            f" The right answer is chosen in {number(100 * last['accuracy'], 0)}% of the questions, chance is "
            f"{number(100 * last['chance'], 0)}%."
        )
    return text
