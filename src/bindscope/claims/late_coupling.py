"""C4-A: does binding correlate with what the model knows late in training?

The correlations of C1-A over each half of the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.text import chance, count, line, number, span
from bindscope.claims.answers import compared
from bindscope.claims.base import READINGS, Answer, Claim, Statistic
from bindscope.claims.coupling import clustered_rho, published_rho, with_behavior
from bindscope.claims.inputs import Findings, Inputs

_HALVES = {"early": ("early half of the checkpoints", "circle", "s1"), "late": ("late half", "square", "s2")}
_PUBLISHED, _CONTROLLED = "c4a.rho.late", "c4a.rho.late.within"


def halves(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The first half of the checkpoints and the last half of them (0-3 and 4-7 of eight in the reference study).

    Empty with fewer than four checkpoints. The middle one of an odd number is in neither half.
    """
    number = int(table["t"].max()) + 1 if len(table) else 0
    if number < 4:
        return {}
    return {"early": table[table["t"] < number // 2], "late": table[table["t"] >= number - number // 2]}


def late_coupling(inputs: Inputs) -> Iterator[Statistic]:
    """Correlations over the early and over the late half of the checkpoints."""
    every, asked = halves(inputs.observations), halves(inputs.questions)
    if inputs.has_generation:
        for window, part in every.items():
            yield from with_behavior("c4a", window, f"{window} half", part)
    for window, part in asked.items():
        name = f"{window} half"
        yield published_rho(f"c4a.rho.{window}", name, part)
        yield from clustered_rho("c4a.rho", window, name, part, "eb_star", "accuracy")
        yield from clustered_rho("c4a.excess", window, name, part, "position_excess", "margin")


def _answer(rows: pd.DataFrame) -> Answer:
    return compared(rows, _PUBLISHED, _CONTROLLED)


def early_and_late(found: Findings) -> Iterator[Figure]:
    """EB* against behavior, a point per term and checkpoint, early and late in training."""
    import altair as alt

    paths = found.tables.paths
    table = paths if paths.empty else paths[paths["half"].isin(list(_HALVES))]
    if table.empty:
        return
    panels, sentences = list[Any](), list[str]()
    for suite, part in table.groupby("suite", sort=False):
        row = []
        for half, (label, shape, color) in _HALVES.items():
            data = part.loc[part["half"] == half, ["eb_star", "behavior"]]
            base = alt.Chart(data).mark_point(shape=shape, color=COLOR[color], size=38, opacity=0.75, strokeWidth=1.4)
            points = base.encode(
                alt.X("eb_star:Q", title="EB*").scale(domain=[0, float(table["eb_star"].max())], nice=True),
                alt.Y("behavior:Q", title="behavior").scale(domain=[0, 1]),
            )
            rho = _correlations(found, str(suite), half)
            title = alt.TitleParams(f"{line(str(suite))}: {label}", subtitle=rho)
            row.append(points.properties(width=300, height=220, title=title))
            sentences.append(f"{line(str(suite))}, {label}: {count(len(data), 'point')}; {rho}")
        panels.append(alt.hconcat(*row, spacing=44))
    yield Figure(
        name="early-late",
        title="EB* against behavior, early and late in training",
        chart=styled(alt.vconcat(*panels)),
        text=". ".join(sentences) + ".",
        data=table[["suite", "term", "revision", "step", "half", "eb_star", "behavior"]],
        note="A point is a term at one checkpoint, mean over its prompts. The correlations are over questions and "
        "checkpoints: as published, all pairs together; controlled, within checkpoints with bootstrap over terms.",
    )


def _correlations(found: Findings, suite: str, half: str) -> str:
    parts = []
    for id, reading in zip((f"c4a.rho.{half}", f"c4a.rho.{half}.within"), READINGS, strict=True):
        rows = found.rows(id, reading)
        for row in rows[rows["suite"] == suite].to_dict("records"):
            more = span(row["low"], row["high"], 2) or chance(row["p"])
            parts.append(f"{reading} \u03c1 {number(row['value'], 2)} {more}".strip())
    return "; ".join(parts) or "no correlation can be computed"


CLAIM = Claim(
    id="C4-A",
    name="late coupling",
    order=60,
    question="Does binding correlate with what the model knows late in training?",
    limit="Half of the checkpoints carry half of the evidence: a correlation that is not seen late has not been shown "
    "to be gone.",
    needs=("binding", "recognition"),
    published=_PUBLISHED,
    controlled=_CONTROLLED,
    statistics=late_coupling,
    answer=_answer,
    figures=(early_and_late,),
)
