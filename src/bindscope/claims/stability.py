"""C2: is EB* a property of the term, or of the prompt that it stands in? At the last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bindscope.claims.answers import about_zero, pick, side_by_side, undecided
from bindscope.claims.base import Answer, Claim, Statistic, clustered, statistic
from bindscope.claims.inputs import Inputs
from bindscope.stats.correlate import Undefined
from bindscope.stats.variance import components, icc

_ICC = "c2.icc"
_METHOD = "one-way ICC(1): share of variance between terms"


def stability(inputs: Inputs) -> Iterator[Statistic]:
    """Intraclass correlations by term, over all layers and by third of the layers, and shares of the variance."""
    table = inputs.final_questions
    label = "ICC of EB* by term"
    yield Statistic(
        id=_ICC,
        reading="published",
        quantity=label,
        value=None,
        n=0,
        unit="question",
        method=_METHOD,
        reason="not tested in the reference study",
    )
    yield statistic(
        lambda: clustered(icc(table["eb_star"], table["term"])),
        id=_ICC,
        reading="controlled",
        quantity=label,
        n=len(table),
        unit="question",
        method=_METHOD,
    )
    compared = table[table["excess"].notna()]
    yield statistic(
        lambda: clustered(icc(compared["excess"], compared["term"])),
        id="c2.icc.excess",
        reading="controlled",
        quantity="ICC of excess by term",
        n=len(compared),
        unit="question",
        method=_METHOD,
    )
    yield from _by_depth(table, label)
    for factor in ("term", "kind"):
        yield statistic(
            partial(_share, table, factor),
            id="c2.variance_share",
            subject=factor,
            reading="controlled",
            quantity=f"share of the variance of EB* by {factor}",
            n=len(table),
            unit="question",
            method="crossed random effects of term and kind of question",
        )


def _by_depth(table: pd.DataFrame, label: str) -> Iterator[Statistic]:
    depth = len(table["eb_per_layer"].iloc[0]) if len(table) else 0
    for subject, name, layers in (
        ("early", "early third", slice(0, depth // 3)),
        ("late", "late two thirds", slice(depth // 3, depth)),
    ):
        values = [max(row[layers], default=np.nan) for row in table["eb_per_layer"].map(list)]
        yield statistic(
            partial(_in_layers, values, table["term"], depth),
            id="c2.icc.layers",
            subject=subject,
            reading="controlled",
            quantity=f"{label}, {name} of the layers",
            n=len(table),
            unit="question",
            method=_METHOD,
        )


def _in_layers(values: list[float], terms: pd.Series, depth: int) -> dict[str, Any]:
    if depth < 3:
        raise Undefined(f"{depth} layers cannot be cut into thirds")
    return clustered(icc(values, terms))


def _share(table: pd.DataFrame, factor: str) -> dict[str, Any]:
    parts = components(table["eb_star"], {"term": table["term"], "kind": table["kind"]})
    return {"value": parts.share[factor], "n": parts.n}


def _answer(rows: pd.DataFrame) -> Answer:
    if rows["value"].isna().all():
        return undecided(rows["reason"].iloc[-1])
    published, row = pick(rows, _ICC, "published"), pick(rows, _ICC, "controlled")
    detail = side_by_side(published, row, about_zero(row))
    if pd.isna(row["value"]):
        return undecided(row["reason"], detail=detail)
    correlation = f"intraclass correlation {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    untested = "The reference study did not test it."
    if row["low"] > 0:
        return Answer(
            "controlled only", f"In part: prompts of one term are alike in EB*, {correlation}. {untested}", detail
        )
    return Answer(
        "neither",
        f"No evidence that prompts of one term are more alike than those of others, {correlation}. {untested}",
        detail,
    )


CLAIM = Claim(
    id="C2",
    name="stability",
    order=40,
    question="Is binding a property of the term?",
    limit="Terms may differ because their tokens do: a large share of variance says that terms differ, not why.",
    needs=("binding", "recognition"),
    published=_ICC,
    controlled=_ICC,
    statistics=stability,
    answer=_answer,
)
