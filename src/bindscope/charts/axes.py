"""Parts of charts over training: the axis of steps, curves with intervals, and a line at a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import altair as alt
import pandas as pd

from bindscope.charts.figure import COLOR, DASHES, SERIES, SHAPES

Scale = Literal["log", "linear"]

#: Leaves out labels that would overlap.
_SPACED = {"labelOverlap": "greedy", "labelSeparation": 8}
#: Labels of steps: 60, 1k, 143k.
STEP = "datum.value < 1000 ? format(datum.value, 'd') : format(datum.value / 1000, '~r') + 'k'"


def over_steps(steps: Any, scale: Scale, column: str = "step") -> alt.X:
    """The horizontal axis of training steps.

    steps: the steps of the data
    scale: "linear", or "log" for a symmetric log scale, which can show step 0
    column: the column of the steps
    """
    values = sorted({float(step) for step in steps})
    # Plain dictionaries, because Altair copies its own objects with all of their hundred fields, again and again.
    ticks: dict[str, Any] = {"grid": False, "labelExpr": STEP, "labelFlush": False, **_SPACED}
    spread: dict[str, Any] = {"nice": False}
    if scale == "linear":
        ticks["tickCount"] = 5
    else:
        least = min((v for v in values if v > 0), default=1.0)
        ticks["values"] = values
        spread |= {"type": "symlog", "constant": least / 3}
    return alt.X(f"{column}:Q", title=f"training step ({scale} scale)", scale=spread, axis=ticks)


def lines(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    axis: str,
    scale: Scale = "log",
    size: tuple[int, int] = (560, 280),
    top: float | None = None,
) -> alt.LayerChart:
    """Curves of one suite over its steps, without the house style.

    table: a row per checkpoint
    columns: column -> label, at most six; a band shows `<column>_low` to `<column>_high` where these exist
    axis: title of the vertical axis
    scale: scale of the steps
    size: width and height in pixels
    top: end of the vertical axis, so that panels can be compared; None for the largest value
    """
    data = pd.concat([long(table, column, label) for column, label in columns.items()], ignore_index=True)
    labels = list(columns.values())
    key: dict[str, Any] = {"title": None, "orient": "top", "columns": 1, "symbolStrokeWidth": 0}
    tall: dict[str, Any] = {"zero": True} if top is None else {"domain": [0, top], "nice": True}
    step = over_steps(data["step"], scale)
    base = alt.Chart(data).encode(step)
    bands = [
        base.transform_filter(alt.datum.line == label)
        .mark_area(opacity=0.16, color=color)
        .encode(alt.Y("low:Q", title=axis, scale=tall), alt.Y2("high:Q"))
        for label, color in zip(labels, SERIES, strict=False)
    ]
    n = len(labels)
    color = alt.Color("line:N", legend=key, scale={"domain": labels, "range": SERIES[:n]})
    dash = alt.StrokeDash("line:N", legend=None, scale={"domain": labels, "range": DASHES[:n]})
    shape = alt.Shape("line:N", legend=key, scale={"domain": labels, "range": SHAPES[:n]})
    value = alt.Y("value:Q", title=axis, scale=tall)
    curve = base.mark_line(strokeWidth=2.2).encode(value, color, dash)
    points = base.mark_point(filled=True, size=46, opacity=1).encode(value, color, shape)
    return alt.layer(*bands, curve, points).properties(width=size[0], height=size[1])


def long(table: pd.DataFrame, column: str, label: str) -> pd.DataFrame:
    """A row per checkpoint that has a value of the column: step, value, line (the label), low and high."""
    frame = pd.DataFrame({"step": table["step"].astype(float), "value": table[column], "line": label})
    for end in ("low", "high"):
        frame[end] = table[f"{column}_{end}"] if f"{column}_{end}" in table else float("nan")
    return frame.dropna(subset=["value"])


def trained(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Suites with more than one checkpoint whose steps are all known, with their rows of the summary."""
    return [
        (str(name), part)
        for name, part in summary.groupby("suite", sort=False)
        if len(part) > 1 and part["step"].notna().all()
    ]


def threshold_rule(value: float, axis: str = "x") -> alt.Chart:
    """A dashed line at a value of one axis ("x" or "y")."""
    data = pd.DataFrame({"at": [value]})
    where = alt.X("at:Q") if axis == "x" else alt.Y("at:Q")
    return alt.Chart(data).mark_rule(color=COLOR["axis"], strokeDash=[4, 3]).encode(where)
