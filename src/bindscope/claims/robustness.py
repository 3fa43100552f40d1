"""Robustness: does EB* depend on the sentence, on its length, on the number of tokens of the term? At the last
checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bindscope.charts.figure import Figure, styled
from bindscope.charts.text import count, line, number
from bindscope.claims.answers import ALPHA, in_words, pick, side_by_side, state, undecided
from bindscope.claims.base import Answer, Claim, Statistic, clustered, statistic
from bindscope.claims.inputs import Findings, Inputs
from bindscope.stats.correlate import Undefined, clustered_spearman, spearman
from bindscope.stats.variance import cv

_PROMPT, _TERM = "robustness.prompt_length", "robustness.term_length"
#: Cells beyond which a heat map is not drawn.
_MOST_CELLS = 2000


def robustness(inputs: Inputs) -> Iterator[Statistic]:
    """How much EB* varies between the prompts of a term, and whether it goes with lengths."""
    table = inputs.final_questions
    yield statistic(
        lambda: _variation(table),
        id="robustness.cv",
        reading="published",
        quantity="mean CV of EB* over the questions of a term",
        n=table["term"].nunique(),
        unit="term",
        method="standard deviation / mean",
    )
    yield statistic(
        lambda: _published(table),
        id=_PROMPT,
        reading="published",
        quantity="rho(EB*, prompt length)",
        n=len(table),
        unit="question",
        method="Spearman, questions taken as independent",
    )
    yield statistic(
        lambda: clustered(clustered_spearman(table["eb_star"], table["n_tokens"], table["term"])),
        id=_PROMPT,
        reading="controlled",
        quantity="rho(EB*, prompt length)",
        n=len(table),
        unit="question",
        method="Spearman, bootstrap over terms",
    )
    yield statistic(
        lambda: clustered(clustered_spearman(table["eb_star"], table["k"], table["term"])),
        id=_TERM,
        reading="controlled",
        quantity="rho(EB*, tokens of the term)",
        n=len(table),
        unit="question",
        method="Spearman, bootstrap over terms; EB* of a previous-token head falls as 2/k",
    )


def _variation(table: pd.DataFrame) -> dict[str, Any]:
    variation = cv(table["eb_star"], table["term"])
    kept = variation.values[np.isfinite(variation.values)]
    every = len(variation.names)
    if len(kept) < every or not len(kept):
        reasons = "; ".join(sorted(set(variation.undefined.values()))[:2])
        raise Undefined(f"undefined in {every - len(kept)} of {every} terms ({reasons})")
    return {"value": float(kept.mean()), "n": len(kept)}


def _published(table: pd.DataFrame) -> dict[str, Any]:
    rank = spearman(table["eb_star"], table["n_tokens"])
    return {"value": rank.rho, "p": rank.p, "n": rank.n}


def _answer(rows: pd.DataFrame) -> Answer:
    """Whether EB* goes with the length of the prompt or of the term: either length counts, and both are named."""
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    published = pick(rows, _PROMPT, "published")
    lengths = {"the prompt": pick(rows, _PROMPT, "controlled"), "the term in tokens": pick(rows, _TERM, "controlled")}
    known = {what: row for what, row in lengths.items() if pd.notna(row["value"])}
    detail = side_by_side(
        published, lengths["the prompt"], f"Also controlled: {in_words(lengths['the term in tokens'])}."
    )
    if not known:
        return undecided(lengths["the term in tokens"]["reason"], detail=detail)
    clear = {what: bool(row["low"] > 0 or row["high"] < 0) for what, row in known.items()}
    sentences = []
    for what, row in known.items():
        moves = ("rises" if row["value"] > 0 else "falls") if clear[what] else "does not clearly change"
        sentences.append(f"EB* {moves} with the length of {what}")
    as_published = bool(pd.notna(published["p"]) and published["p"] <= ALPHA)
    return Answer(state(as_published, any(clear.values())), f"{'; '.join(sentences)}.", detail)


def sentences(found: Findings) -> Iterator[Figure]:
    """EB* of each term in each kind of prompt, at the last checkpoint."""
    import altair as alt

    from bindscope.charts.cells import cells

    for i, (suite, part) in enumerate(found.tables.kinds.groupby("suite", sort=False)):
        if part["kind"].nunique() < 2 or len(part) > _MOST_CELLS:
            continue
        data = part.assign(term=part["term"].map(line), kind=[_kind(row) for row in part.to_dict("records")])
        order = data.groupby("term")["eb_star"].mean().sort_values(ascending=False).index.to_list()
        kinds = list(dict.fromkeys(data["kind"]))
        x = alt.X("kind:N", sort=kinds, title=None).axis(orient="top", labelAngle=-40, ticks=False, labelLimit=230)
        y = alt.Y("term:N", sort=order, title=None).axis(ticks=False, labelLimit=230)
        chart = cells(data, x, y, "eb_star", top=float(data["eb_star"].max()) or 1.0, title="EB*")
        chart = chart.properties(width=46 * len(kinds), height=19 * len(order))
        wide = data.groupby("term")["eb_star"].agg(lambda v: v.max() - v.min()).sort_values()
        text = (
            f"{line(str(suite))}: {count(len(order), 'term')} in {count(len(kinds), 'kind')} of prompt. On average "
            f"the prompts of one term differ by up to {number(wide.mean())}; most for {wide.index[-1]} "
            f"({number(wide.iloc[-1])}), least for {wide.index[0]} ({number(wide.iloc[0])})."
        )
        yield Figure(
            name=f"prompts-{i + 1}",
            title=f"Does binding depend on the sentence? {line(str(suite))}",
            chart=styled(chart),
            text=text,
            data=part[["suite", "term", "task", "kind", "eb_star", "n"]],
            note="Terms by their mean, highest first. What varies along a row is the sentence (and with it capital "
            "letters and endings, which change the tokens), not the term.",
        )


def _kind(row: dict[Any, Any]) -> str:
    return line(f"{row['task']}: {row['kind']}" if row["task"] != "carrier" else str(row["kind"])[:24])


CLAIM = Claim(
    id="robustness",
    name="robustness",
    order=90,
    question="Does binding depend on the sentence?",
    limit="Prompts differ in more than their length: in capital letters and endings, which change the tokens of the "
    "term, and in what precedes it.",
    needs=("binding", "recognition"),
    published=_PROMPT,
    controlled=_PROMPT,
    statistics=robustness,
    answer=_answer,
    figures=(sentences,),
)
