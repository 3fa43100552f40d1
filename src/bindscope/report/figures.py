"""Tables -> charts. One definition serves the page and every file format; color never stands alone."""

from __future__ import annotations

import altair as alt
import pandas as pd
import vl_convert

#: Blue and vermilion of Okabe & Ito, distinguishable with any color vision; both above 4.5:1 on white.
_COLORS = ("#0067a5", "#b34700")

#: Step labels that would touch are left out.
_SPACED = {"labelOverlap": "greedy", "labelSeparation": 8}


def emergence(summary: pd.DataFrame, lines: dict[str, str], title: str, axis: str) -> alt.LayerChart:
    """Curves over training steps for one suite.

    summary: a row per checkpoint (see stats.summary). lines: column -> label, at most two; where `<column>_low` and
    `<column>_high` exist they are drawn as a band. Steps are on a symmetric log scale, so step 0 has a place.
    """
    data = pd.concat([_line(summary, column, label) for column, label in lines.items()], ignore_index=True)
    labels, n = list(lines.values()), len(lines)
    step = (
        alt.X("step:Q", title="training step (log scale)")
        .scale(type="symlog", constant=20)
        .axis(values=sorted(set(data["step"])), grid=False, format=",d", labelFlush=False, **_SPACED)
    )
    key = alt.Legend(title=None, orient="top", symbolSize=120, symbolStrokeWidth=2.5, labelLimit=400)
    base = alt.Chart(data).encode(step)
    bands = [
        base.transform_filter(alt.datum.line == label)
        .mark_area(opacity=0.16, color=color, aria=False)
        .encode(alt.Y("low:Q", title=axis), alt.Y2("high:Q"))
        for label, color in zip(labels, _COLORS, strict=False)
    ]
    look = {
        "color": alt.Color("line:N", legend=key, scale=alt.Scale(domain=labels, range=list(_COLORS[:n]))),
        "strokeDash": alt.StrokeDash("line:N", legend=key, scale=alt.Scale(domain=labels, range=[[1, 0], [6, 4]][:n])),
    }
    shapes = alt.Scale(domain=labels, range=["circle", "square"][:n])
    curve = base.mark_line(strokeWidth=2.5).encode(alt.Y("value:Q", title=axis).scale(zero=True), **look)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        alt.Y("value:Q"), look["color"], alt.Shape("line:N", legend=key, scale=shapes)
    )
    chart = alt.layer(*bands, curve, points).properties(width=560, height=280, title=title)
    return (
        chart.configure(font="sans-serif", background="white")
        .configure_axis(labelFontSize=12, titleFontSize=13, titleFontWeight="normal")
        .configure_legend(labelFontSize=13)
        .configure_title(fontSize=15, anchor="start")
    )


def _line(summary: pd.DataFrame, column: str, label: str) -> pd.DataFrame:
    frame = pd.DataFrame({"step": summary["step"].astype(float), "value": summary[column], "line": label})
    for end in ("low", "high"):
        frame[end] = summary[f"{column}_{end}"] if f"{column}_{end}" in summary else float("nan")
    return frame.dropna(subset=["value"])


def svg(chart: alt.LayerChart) -> str:
    """The chart as an SVG document, drawn without a browser or network."""
    return str(vl_convert.vegalite_to_svg(chart.to_json()))


def png(chart: alt.LayerChart, scale: float = 2.0) -> bytes:
    """The chart as a PNG image of `scale` pixels per unit."""
    return bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=scale))
