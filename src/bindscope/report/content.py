"""What a report says: the words at the top, a card for every claim, figures and tables. Page and paper set it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bindscope.charts.figure import Figure, Section, svg
from bindscope.charts.table import Table
from bindscope.charts.text import at, count, line, number, span
from bindscope.claims.analysis import Analysis
from bindscope.claims.base import Bound, State
from bindscope.claims.inputs import Findings
from bindscope.claims.registry import in_a_line
from bindscope.report.figures import figures
from bindscope.report.tables import tables
from bindscope.tables.run import RunTables

#: State of a claim -> a sign and a word that stand for it.
_SIGNS: dict[State, tuple[str, str]] = {
    "both": ("\u25cf", "Both published and controlled"),
    "in part": ("\u25d2", "In part"),
    "published only": ("\u25d0", "Published only"),
    "controlled only": ("\u25d1", "Controlled only"),
    "neither": ("\u25cb", "Neither published nor controlled"),
    "open": ("\u2013", "Open"),
}


def word_of(state: State) -> str:
    """The state in a word or two."""
    return _SIGNS[state][1]


@dataclass(frozen=True, kw_only=True)
class SuiteAnswer:
    """The answer of one suite to a claim.

    sign, word: stand for its state.
    text: in plain words.
    detail: with the numbers.
    """

    suite: str
    state: State
    sign: str
    word: str
    text: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A claim on the page: what is asked, answered and not shown, with its figures and tables.

    every: all of its statistics; None where none has a value.
    """

    claim: str
    name: str
    question: str
    limit: str
    answers: tuple[SuiteAnswer, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    every: Table | None


@dataclass(frozen=True, kw_only=True)
class Content:
    """Everything that a report says.

    found: the numbers.
    documents: figure name -> SVG.
    cards: a card for each claim that has an answer.
    asked, answer: the words at the top.
    problems: a line for each claim, figure or table that is left out.
    """

    found: Findings
    figures: tuple[Figure, ...]
    documents: dict[str, str]
    tables: tuple[Table, ...]
    cards: tuple[Card, ...]
    asked: str
    answer: tuple[str, ...]
    problems: tuple[str, ...]

    def csv(self) -> dict[str, str]:
        """The numbers of every figure and table, by its name."""
        drawn = {figure.name: figure.data.to_csv(index=False) for figure in self.figures}
        return drawn | {table.name: table.data.to_csv(index=False) for table in self.tables}

    @property
    def many(self) -> bool:
        """More than one suite: answers name theirs."""
        return len(self.found.tables.suites) > 1

    @property
    def lead(self) -> list[Figure]:
        """The figure to begin with, where the run has checkpoints to draw it from."""
        return self._section("lead")

    @property
    def training(self) -> list[Figure]:
        """Figures over training."""
        return self._section("training")

    @property
    def heads(self) -> list[Figure]:
        """Figures of single heads."""
        return self._section("heads")

    @property
    def measures(self) -> list[Figure]:
        """Figures of the measures that lead no other figure."""
        return self._section("measures")

    @property
    def spread(self) -> list[Figure]:
        """Figures of several runs."""
        return self._section("runs")

    @property
    def other_figures(self) -> list[Figure]:
        """Figures that belong to no card and to no other section."""
        shown = {card.claim for card in self.cards}
        return [f for f in self.figures if (f.claim or f.section == "further") and f.claim not in shown]

    @property
    def checkpoints(self) -> list[Table]:
        """The table of checkpoints."""
        return [table for table in self.tables if table.name == "checkpoints"]

    @property
    def further(self) -> list[Table]:
        """Tables that belong to no card."""
        shown = {card.claim for card in self.cards}
        return [table for table in self.tables if table.claim not in shown and table.name != "checkpoints"]

    def _section(self, name: Section) -> list[Figure]:
        return [figure for figure in self.figures if not figure.claim and figure.section == name]


def compose(run: RunTables, analysis: Analysis | None) -> Content:
    """Everything that a report of the run says. Raises StoreError where the results cannot be read.

    analysis: of the same run; None for one that asks no recognition questions.
    """
    found = Findings(run) if analysis is None else analysis.findings
    drawn, lost_figures = figures(found, analysis)
    listed, lost_tables = tables(found, () if analysis is None else analysis.claims)
    documents, undrawn = _documents(drawn)
    kept = tuple(figure for figure in drawn if figure.name in documents)
    return Content(
        found=found,
        figures=kept,
        documents=documents,
        tables=tuple(listed),
        cards=() if analysis is None else tuple(_cards(analysis, kept, listed)),
        asked=_asked(run),
        answer=tuple(_answer(str(name), part) for name, part in run.summary.groupby("suite", sort=False)),
        problems=(*(() if analysis is None else analysis.problems), *lost_figures, *undrawn, *lost_tables),
    )


def _documents(drawn: list[Figure]) -> tuple[dict[str, str], list[str]]:
    """Each figure as SVG by its name, and a line for each of a claim that cannot be drawn."""
    documents, problems = dict[str, str](), list[str]()
    for figure in drawn:
        try:
            documents[figure.name] = svg(figure.chart)
        except Exception as error:  # the chart of a claim may be somebody else's; a figure of the run must be drawn
            if not figure.claim:
                raise
            problems.append(f"claim {figure.claim}: the figure {figure.name} is left out: {in_a_line(error)}")
    return documents, problems


def _cards(analysis: Analysis, drawn: tuple[Figure, ...], listed: list[Table]) -> list[Card]:
    cards = []
    for claim in analysis.claims:
        answers = tuple(_suite_answer(row) for row in analysis.sentences.to_dict("records") if row["claim"] == claim.id)
        if not answers:
            continue
        own = [table for table in listed if table.claim == claim.id]
        every = next((table for table in own if table.name == f"claim-{claim.id}"), None)
        cards.append(
            Card(
                claim=claim.id,
                name=claim.id[0].upper() + claim.id[1:],
                question=line(claim.question),
                limit=line(claim.limit) + _bound(claim.no_effect),
                answers=answers,
                figures=tuple(figure for figure in drawn if figure.claim == claim.id),
                tables=tuple(table for table in own if table is not every),
                every=every if every is not None and every.data["value"].notna().any() else None,
            )
        )
    return cards


def _bound(bound: Bound | None) -> str:
    if bound is None:
        return ""
    return f" An effect counts as none only where its interval lies within \u00b1{bound.value:g} ({line(bound.unit)})."


def _suite_answer(row: dict[Any, Any]) -> SuiteAnswer:
    sign, word = _SIGNS[row["state"]]
    return SuiteAnswer(
        suite=line(row["suite"]),
        state=row["state"],
        sign=sign,
        word=word,
        text=line(row["sentence"]),
        detail=line(row["text"]),
    )


def _asked(run: RunTables) -> str:
    binding = run.own
    terms, prompts = (binding[c].nunique() if len(binding) else 0 for c in ("term", "prompt"))
    places = sum(u.status == "done" for u in run.run.units)
    models = ", ".join(line(s) for s in run.suites) or "no model yet"
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
