"""Cells of a heat map."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from bindscope.charts.figure import COLOR, STEPS

#: Cells show their numbers if there are at most this many.
_NUMBERED = 520


def cells(data: pd.DataFrame, x: alt.X, y: alt.Y, value: str, *, top: float, title: str) -> Any:
    """A heat map in eight shades; cells show their numbers where there are at most `_NUMBERED`.

    data: a row per cell
    x, y: the axes
    value: the column that is shown
    top: value of the darkest shade; the lightest is 0
    title: title of the legend
    """
    scale = {"type": "quantize", "domain": [0, top], "range": STEPS}
    legend = {"title": title, "orient": "top", "gradientLength": 340, "format": ".2f", "labelOverlap": True}
    base = alt.Chart(data).encode(x, y)
    numbered = len(data) <= _NUMBERED
    shaded = base.mark_rect(stroke=COLOR["paper"], strokeWidth=1).encode(
        alt.Color(f"{value}:Q", scale=scale, legend=None if numbered else legend)
    )
    if not numbered:
        return shaded
    dark = alt.datum[value] >= top / 2
    shade = alt.when(dark).then(alt.value(COLOR["paper"])).otherwise(alt.value(COLOR["ink"]))
    return shaded + base.mark_text(fontSize=10.5).encode(alt.Text(f"{value}:Q", format=".2f"), color=shade)
