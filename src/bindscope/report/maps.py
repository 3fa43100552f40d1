"""Figures of many cells: layers over training, heads, and the sentences of each term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from bindscope.report.figure import COLOR, STEPS, Figure, styled
from bindscope.report.material import Material
from bindscope.report.text import at, count, line, number, place

#: Up to this many cells their numbers are written into them.
_WRITTEN = 520
#: Heads that are named in a head map.
_NAMED = 5
#: Quantity of a head, and what its panel is called.
_HEADS = (("bsi", "BSI"), ("excess", "excess over windows"), ("previous_token_score", "previous-token score"))


def layers(found: Material) -> Iterator[Figure]:
    """Layer by checkpoint: mean EB of each layer."""
    table = found.layers
    if table.empty or table.groupby("suite")["revision"].nunique().max() < 2:
        return
    top, rows, said = float(table["eb"].max()) or 1.0, [], []
    for suite, part in table.groupby("suite", sort=False):
        data = part.assign(at=[place(r) for r in part.to_dict("records")])
        order, depth = list(dict.fromkeys(data["at"])), int(data["layer"].max()) + 1
        height = max(14, min(26, 420 // depth))
        x = alt.X("at:N", sort=order, title="training step").axis(labelAngle=0, labelOverlap=False, ticks=False)
        y = alt.Y("layer:O", title="layer", sort="descending").axis(ticks=False)
        cells = _cells(data, x, y, "eb", top, "EB, mean over prompts")
        size = {"width": 50 * len(order), "height": height * depth}
        rows.append(cells.properties(**size, title=line(str(suite))))
        best, most = (part.sort_values("eb").iloc[-1].to_dict() for part in (data[data["at"] == order[-1]], data))
        said.append(
            f"{line(str(suite))}, {count(depth, 'layer')} and {count(len(order), 'checkpoint')}: at step {order[-1]} "
            f"the highest mean EB is {number(best['eb'])}, in layer {best['layer']}; over all checkpoints it is "
            f"{number(most['eb'])}, in layer {most['layer']} at step {most['at']}"
        )
    yield Figure(
        "layers",
        "C2",
        "Where binding sits: each layer over training",
        styled(alt.vconcat(*rows)),
        ". ".join(said) + ".",
        table[["suite", "revision", "step", "layer", "eb", "n"]],
        "EB of a layer: its largest less its mean head, mean over prompts. EB* is the largest EB of a prompt.",
    )


def _cells(data: pd.DataFrame, x: alt.X, y: alt.Y, value: str, top: float, title: str) -> Any:
    """Cells shaded in eight steps from 0 to `top`, with their numbers where there are not too many."""
    scale = alt.Scale(type="quantize", domain=[0, top], range=STEPS)
    legend = alt.Legend(title=title, orient="top", gradientLength=340, format=".2f", labelOverlap=True)
    base = alt.Chart(data).encode(x, y)
    written = len(data) <= _WRITTEN
    cells = base.mark_rect(stroke=COLOR["paper"], strokeWidth=1).encode(
        alt.Color(f"{value}:Q", scale=scale, legend=None if written else legend)
    )
    if not written:
        return cells
    dark = alt.datum[value] >= top / 2
    shade = alt.when(dark).then(alt.value(COLOR["paper"])).otherwise(alt.value(COLOR["ink"]))
    return cells + base.mark_text(fontSize=10.5).encode(alt.Text(f"{value}:Q", format=".2f"), color=shade)


def heads(found: Material) -> Iterator[Figure]:
    """`head_map` of the last checkpoint."""
    if not found.heads.empty:
        yield head_map(found.heads)


def head_map(table: pd.DataFrame) -> Figure:
    """Layer by head: BSI, its excess over the head's own windows, previous-token score. table: as of `stats.heads`, a
    row per suite and head."""
    rows, said = [], []
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
        said.append(
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
        "heads",
        "",
        "Which heads bind, and are they previous-token heads?",
        styled(alt.vconcat(*rows)),
        ". ".join(said) + ".",
        table[columns],
        "The area of a square is the value; a hollow square is below zero. Excess: BSI less the mean of the same head "
        "over windows of as many tokens. A head that is large in the first and third panel and small in the second "
        "looks back whatever the tokens are.",
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
    x = alt.X("head:O", title="head", scale=alt.Scale(domain=list(range(int(part["head"].max()) + 1)))).axis(**spaced)
    y = alt.Y("layer:O", title="layer", scale=alt.Scale(domain=list(range(int(part["layer"].max()), -1, -1)))).axis(
        **spaced
    )
    size = alt.Size("size:Q", scale=alt.Scale(domain=[0, most], range=[0, (0.86 * cell) ** 2]), legend=None)
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


def sentences(found: Material) -> Iterator[Figure]:
    """Robustness: EB* of each term in each kind of prompt, at the last checkpoint."""
    for i, (suite, part) in enumerate(found.kinds.groupby("suite", sort=False)):
        if part["kind"].nunique() < 2 or len(part) > 2000:
            continue
        data = part.assign(term=part["term"].map(line), kind=[_kind(r) for r in part.to_dict("records")])
        order = data.groupby("term")["eb_star"].mean().sort_values(ascending=False).index.to_list()
        kinds = list(dict.fromkeys(data["kind"]))
        x = alt.X("kind:N", sort=kinds, title=None).axis(orient="top", labelAngle=-40, ticks=False, labelLimit=230)
        y = alt.Y("term:N", sort=order, title=None).axis(ticks=False, labelLimit=230)
        chart = _cells(data, x, y, "eb_star", float(data["eb_star"].max()) or 1.0, "EB*")
        chart = chart.properties(width=46 * len(kinds), height=19 * len(order))
        wide = data.groupby("term")["eb_star"].agg(lambda v: v.max() - v.min()).sort_values()
        text = (
            f"{line(str(suite))}: {count(len(order), 'term')} in {count(len(kinds), 'kind')} of prompt. On average "
            f"the prompts of one term differ by up to {number(wide.mean())}; most for {wide.index[-1]} "
            f"({number(wide.iloc[-1])}), least for {wide.index[0]} ({number(wide.iloc[0])})."
        )
        yield Figure(
            f"prompts-{i + 1}",
            "robustness",
            f"Does binding depend on the sentence? {line(str(suite))}",
            styled(chart),
            text,
            part[["suite", "term", "task", "kind", "eb_star", "n"]],
            "Terms by their mean, highest first. What varies along a row is the sentence (and with it capital letters "
            "and endings, which change the tokens), not the term.",
        )


def _kind(row: dict[Any, Any]) -> str:
    return line(f"{row['task']}: {row['kind']}" if row["task"] != "carrier" else str(row["kind"])[:24])
