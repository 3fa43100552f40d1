"""Cells of a heat map."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from bindscope.charts.figure import COLOR, STEPS

#: Up to this many cells their numbers are written into them.
_WRITTEN = 520


def cells(data: pd.DataFrame, x: alt.X, y: alt.Y, value: str, *, top: float, title: str) -> Any:
    """Cells shaded in eight steps from 0 to `top`, with their numbers where there are not too many."""
    scale = {"type": "quantize", "domain": [0, top], "range": STEPS}
    legend = {"title": title, "orient": "top", "gradientLength": 340, "format": ".2f", "labelOverlap": True}
    base = alt.Chart(data).encode(x, y)
    written = len(data) <= _WRITTEN
    shaded = base.mark_rect(stroke=COLOR["paper"], strokeWidth=1).encode(
        alt.Color(f"{value}:Q", scale=scale, legend=None if written else legend)
    )
    if not written:
        return shaded
    dark = alt.datum[value] >= top / 2
    shade = alt.when(dark).then(alt.value(COLOR["paper"])).otherwise(alt.value(COLOR["ink"]))
    return shaded + base.mark_text(fontSize=10.5).encode(alt.Text(f"{value}:Q", format=".2f"), color=shade)
