"""A forest plot: values with their intervals, published and controlled side by side."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from bindscope.charts.axes import threshold_rule
from bindscope.charts.figure import COLOR

#: Reading -> shape and color of its marks.
MARKS = {"published": ("square", "s2"), "controlled": ("circle", "s1")}


def forest(data: pd.DataFrame, label: str, axis: str, zero: float = 0.0) -> Any:
    """A forest plot with a row for each value of one column.

    data: columns reading ("published" or "controlled"), value, low, high, and that of the labels
    label: the column of the labels
    axis: title of the horizontal axis
    zero: value at which a dashed line is drawn
    """
    order = list(dict.fromkeys(data[label]))
    kept = data[[label, "reading", "value", "low", "high"]].astype({"value": float, "low": float, "high": float})
    key = {"title": None, "orient": "top"}
    names = list(MARKS)
    color = alt.Color("reading:N", legend=key, scale={"domain": names, "range": [COLOR[c] for _, c in MARKS.values()]})
    shape = alt.Shape("reading:N", legend=key, scale={"domain": names, "range": [s for s, _ in MARKS.values()]})
    base = alt.Chart(kept).encode(
        alt.Y(f"{label}:N", sort=order, title=None).axis(labelLimit=470, ticks=False, grid=True),
        alt.YOffset("reading:N", sort=names),
        color,
    )
    x = alt.X("value:Q", title=axis)
    return alt.layer(
        threshold_rule(zero),
        base.mark_rule(strokeWidth=2.2).encode(alt.X("low:Q", title=axis), alt.X2("high:Q")),
        base.mark_point(filled=True, size=70, opacity=1).encode(x, shape),
    ).properties(width=430, height=max(1, len(order)) * 34)
