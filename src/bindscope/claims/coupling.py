"""C1-A: does binding correlate with what the model knows, over all checkpoints?

For a question, knowing is measured by accuracy (mean over rotations of the options) or margin; for an opening, by
rubric score.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from bindscope.claims.answers import compared
from bindscope.claims.base import Answer, Claim, Statistic, clustered, statistic
from bindscope.claims.inputs import Inputs
from bindscope.stats.correlate import clustered_repeated, clustered_spearman, mixed_slope, spearman, spearman_of_means

PAIRS = "question x checkpoint"
_LABELS = {"eb_star": "EB*", "position_excess": "excess at like positions"}
_PUBLISHED, _CONTROLLED = "c1a.rho.all", "c1a.repeated"


def coupling(inputs: Inputs) -> Iterator[Statistic]:
    """Correlations over all checkpoints."""
    table, name = inputs.questions, "all checkpoints"
    yield from with_behavior("c1a", "all", name, inputs.observations)
    yield published_rho("c1a.rho.all", name, table)
    yield from clustered_rho("c1a.rho", "all", name, table, "eb_star", "accuracy")
    yield from clustered_rho("c1a.excess", "all", name, table, "position_excess", "margin")
    later, name = table[table["t"] > 0], "without the first checkpoint"
    yield from clustered_rho("c1a.rho", "later", name, later, "eb_star", "accuracy")
    yield statistic(
        lambda: _rank(spearman_of_means(table["eb_star"], table["accuracy"], table["term"])),
        id="c1a.means",
        reading="controlled",
        quantity="rho(EB*, accuracy), means of terms",
        n=len(table),
        unit="term",
        method="Spearman of term means",
    )
    yield statistic(
        lambda: clustered(
            clustered_repeated(table["eb_star"], table["accuracy"], table["term"], within=table["t"]), "term"
        ),
        id=_CONTROLLED,
        reading="controlled",
        quantity="r(EB*, accuracy) within terms and checkpoints",
        n=len(table),
        unit=PAIRS,
        method="repeated-measures r (Bland & Altman 1995) with checkpoint means removed; jackknife over terms",
    )
    yield statistic(
        lambda: _slope(table),
        id="c1a.slope",
        reading="controlled",
        quantity="slope of accuracy on EB*",
        n=len(table),
        unit=PAIRS,
        method="mixed model: checkpoint fixed, term random; jackknife over terms",
    )


def with_behavior(claim: str, window: str, name: str, part: pd.DataFrame) -> Iterator[Statistic]:
    """Correlations over questions and openings together; none where no answers were generated.

    claim: the claim, as written in the ids. window: the range of checkpoints, as written in the ids. name: the range in
    words.
    """
    if not (part["task"] == "generation").any():
        return
    yield statistic(
        lambda: _rank(spearman(part["eb_star"], part["behavior"])),
        id=f"{claim}.behavior.{window}",
        reading="published",
        quantity=f"rho(EB*, behavior), {name}",
        n=len(part),
        unit="prompt x checkpoint",
        method="Spearman over questions (accuracy) and openings (rubric score), pairs taken as independent",
    )
    blocks = part["t"].astype(str) + part["task"]
    yield statistic(
        lambda: clustered(clustered_spearman(part["eb_star"], part["behavior"], part["term"], within=blocks)),
        id=f"{claim}.behavior.{window}.within",
        reading="controlled",
        quantity=f"rho(EB*, behavior), {name}, within checkpoints and tasks",
        n=len(part),
        unit="prompt x checkpoint",
        method="Spearman, ranked within each checkpoint and task, bootstrap over terms",
    )


def published_rho(id: str, name: str, part: pd.DataFrame) -> Statistic:
    """The correlation of EB* and accuracy over the questions of a range of checkpoints, as in the study."""
    return statistic(
        lambda: _rank(spearman(part["eb_star"], part["accuracy"])),
        id=id,
        reading="published",
        quantity=f"rho(EB*, accuracy), {name}",
        n=len(part),
        unit=PAIRS,
        method="Spearman, pairs taken as independent",
    )


def clustered_rho(id: str, window: str, name: str, part: pd.DataFrame, x: str, y: str) -> Iterator[Statistic]:
    """Correlation of two columns over all pairs and within checkpoints, with a bootstrap over terms."""
    used = part[part[x].notna()]
    for within in (None, "t"):
        blocks = None if within is None else used[within]
        how = "bootstrap over terms" if within is None else "ranked within each checkpoint, bootstrap over terms"
        yield statistic(
            partial(_clustered_rho, used, x, y, blocks),
            id=f"{id}.{window}" + ("" if within is None else ".within"),
            reading="controlled",
            quantity=f"rho({_LABELS[x]}, {y}), {name}" + ("" if within is None else ", within checkpoints"),
            n=len(used),
            unit=PAIRS,
            method=f"Spearman, {how}",
        )


def _clustered_rho(used: pd.DataFrame, x: str, y: str, blocks: pd.Series | None) -> dict[str, Any]:
    return clustered(clustered_spearman(used[x], used[y], used["term"], within=blocks))


def _rank(result: Any) -> dict[str, Any]:
    return {"value": result.rho, "p": result.p, "n": result.n}


def _slope(table: pd.DataFrame) -> dict[str, Any]:
    fit = mixed_slope(table["accuracy"], table["eb_star"], table["t"], table["term"])
    return {
        "value": fit.slope,
        "low": fit.low,
        "high": fit.high,
        "p": fit.p,
        "n": fit.n,
        "clusters": fit.clusters,
        "cluster": "term",
    }


def _answer(rows: pd.DataFrame) -> Answer:
    return compared(rows, _PUBLISHED, _CONTROLLED)


CLAIM = Claim(
    id="C1-A",
    name="coupling",
    order=20,
    question="Does binding correlate with what the model knows?",
    limit="A correlation does not say which of the two brings the other, or whether a third thing brings both. No "
    "evidence for it is not evidence that there is none.",
    needs=("binding", "recognition"),
    published=_PUBLISHED,
    controlled=_CONTROLLED,
    statistics=coupling,
    answer=_answer,
)
