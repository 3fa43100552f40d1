"""A map of all heads, layer by head: BSI, excess over windows, previous-token score."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from bindscope.charts.figure import COLOR, Figure, styled
from bindscope.charts.text import at, line, number

#: Number of heads that a head map names.
_NAMED = 5
#: Column, and title of its panel.
_HEADS = (("bsi", "BSI"), ("excess", "excess over windows"), ("previous_token_score", "previous-token score"))


def head_map(table: pd.DataFrame) -> Figure:
    """A figure with a panel each for BSI, its excess over windows, and the previous-token score of every head.

    table: a row per suite and head with the columns suite, revision, step, layer, head, bsi, null_bsi, excess,
        previous_token_score, rank
    """
    rows, sentences = [], []
    for suite, part in table.groupby("suite", sort=False):
        width, depth = int(part["head"].max()) + 1, int(part["layer"].max()) + 1
        cell = max(9, min(32, 280 // width, 560 // depth))
        top = part[part["rank"] <= _NAMED].sort_values("rank")
        row = []
        for column, title in _HEADS:
            if part[column].isna().all():
                continue
            row.append(
                _head_panel(part, top, column, cell).properties(
                    width=cell * width,
                    height=cell * depth,
                    title=alt.TitleParams(
                        title, subtitle=f"largest {number(part[column].abs().max(), 2)}", fontSize=12.5
                    ),
                )
            )
        names = ", ".join(f"{r['layer']}.{r['head']}" for r in top.to_dict("records"))
        where = at(part.iloc[0].to_dict())
        title = alt.TitleParams(f"{line(str(suite))}, {where}", subtitle=f"outlined, by BSI: {names}")
        rows.append(alt.hconcat(*row, spacing=36).resolve_scale(size="independent").properties(title=title))
        sentences.append(
            f"{line(str(suite))} at {where}, layer.head from 0: " + "; ".join(_head(r) for r in top.to_dict("records"))
        )
    columns = [
        "suite",
        "revision",
        "step",
        "layer",
        "head",
        "bsi",
        "null_bsi",
        "excess",
        "previous_token_score",
        "rank",
    ]
    return Figure(
        name="heads",
        section="heads",
        title="Which heads bind, and are they previous-token heads?",
        chart=styled(alt.vconcat(*rows)),
        text=". ".join(sentences) + ".",
        data=table[columns],
        note="The area of a square is the value; a hollow square is below zero. Excess: BSI less the mean of the same "
        "head over windows of as many tokens. A head that is large in the first and third panel and small in the "
        "second looks back whatever the tokens are.",
    )


def _head(row: dict[Any, Any]) -> str:
    text = f"{row['layer']}.{row['head']} has BSI {number(row['bsi'])}"
    if pd.notna(row["excess"]):
        text += f", excess {number(row['excess'])}"
    return f"{text}, previous-token score {number(row['previous_token_score'])}"


def _head_panel(part: pd.DataFrame, top: pd.DataFrame, column: str, cell: int) -> Any:
    most = float(part[column].abs().max()) or 1.0
    data = part.assign(size=part[column].abs(), sign=(part[column] < 0).map({True: "below 0", False: "above 0"}))
    data = data[data["size"] > 0.004 * most][["layer", "head", "size", "sign"]]
    spaced = {"labelOverlap": "greedy", "labelAngle": 0, "ticks": False}
    x = alt.X("head:O", title="head", scale={"domain": list(range(int(part["head"].max()) + 1))}).axis(**spaced)
    y = alt.Y("layer:O", title="layer", scale={"domain": list(range(int(part["layer"].max()), -1, -1))}).axis(**spaced)
    size = alt.Size("size:Q", scale={"domain": [0, most], "range": [0, (0.86 * cell) ** 2]}, legend=None)
    base = alt.Chart(data).encode(x, y, size)
    above = base.transform_filter(alt.datum.sign == "above 0").mark_point(
        shape="square", filled=True, color=COLOR["s1"], opacity=1
    )
    below = base.transform_filter(alt.datum.sign == "below 0").mark_point(
        shape="square", filled=False, color=COLOR["s2"], opacity=1, strokeWidth=1.3
    )
    ring = (
        alt.Chart(top[["layer", "head"]])
        .encode(x, y)
        .mark_point(
            shape="square", filled=False, color=COLOR["ink"], opacity=1, strokeWidth=1.6, size=(0.98 * cell) ** 2
        )
    )
    return alt.layer(above, below, ring)
