"""Figures of the run with many cells: layers over training, and heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt

from bindscope.charts.cells import cells
from bindscope.charts.figure import Figure, styled
from bindscope.charts.head_map import head_map
from bindscope.charts.text import count, line, number, place
from bindscope.claims.inputs import Findings


def layers(found: Findings) -> Iterator[Figure]:
    """Layer by checkpoint: mean EB of each layer."""
    table = found.tables.layers
    if table.empty or table.groupby("suite")["revision"].nunique().max() < 2:
        return
    top = float(table["eb"].max()) or 1.0
    panels, sentences = list[Any](), list[str]()
    for suite, part in table.groupby("suite", sort=False):
        data = part.assign(at=[place(row) for row in part.to_dict("records")])
        order, depth = list(dict.fromkeys(data["at"])), int(data["layer"].max()) + 1
        height = max(14, min(26, 420 // depth))
        x = alt.X("at:N", sort=order, title="training step").axis(labelAngle=0, labelOverlap=False, ticks=False)
        y = alt.Y("layer:O", title="layer", sort="descending").axis(ticks=False)
        shaded = cells(data, x, y, "eb", top=top, title="EB, mean over prompts")
        panels.append(shaded.properties(width=50 * len(order), height=height * depth, title=line(str(suite))))
        best, most = (part.sort_values("eb").iloc[-1].to_dict() for part in (data[data["at"] == order[-1]], data))
        sentences.append(
            f"{line(str(suite))}, {count(depth, 'layer')} and {count(len(order), 'checkpoint')}: at step {order[-1]} "
            f"the highest mean EB is {number(best['eb'])}, in layer {best['layer']}; over all checkpoints it is "
            f"{number(most['eb'])}, in layer {most['layer']} at step {most['at']}"
        )
    yield Figure(
        name="layers",
        section="training",
        title="Where binding sits: each layer over training",
        chart=styled(alt.vconcat(*panels)),
        text=". ".join(sentences) + ".",
        data=table[["suite", "revision", "step", "layer", "eb", "n"]],
        note="EB of a layer: its largest minus its mean head, mean over prompts. EB* is the largest EB of a prompt.",
    )


def heads(found: Findings) -> Iterator[Figure]:
    """Every head at the last checkpoint."""
    if not found.tables.heads.empty:
        yield head_map(found.tables.heads)
