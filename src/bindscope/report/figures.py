"""Tables -> charts. One definition serves the page and every file format; color never stands alone."""

from __future__ import annotations

import altair as alt
import pandas as pd
import vl_convert

#: Blue and vermilion of Okabe & Ito, distinguishable with any color vision; both above 4.5:1 on white.
_COLORS = ("#0067a5", "#b34700")


def emergence(summary: pd.DataFrame, lines: dict[str, str], title: str, axis: str) -> alt.LayerChart:
    """Curves over training steps for one suite.

    summary: a row per checkpoint (see stats.summary). lines: column -> label, at most two; where `<column>_low` and
    `<column>_high` exist they are drawn as a band. Steps are on a symmetric log scale, so step 0 has a place.
    """
    parts = []
    for column, label in lines.items():
        frame = pd.DataFrame({"step": summary["step"], "value": summary[column], "line": label})
        for end in ("low", "high"):
            frame[end] = summary[f"{column}_{end}"] if f"{column}_{end}" in summary else float("nan")
        parts.append(frame.dropna(subset=["value"]))
    data = pd.concat(parts, ignore_index=True)
    labels = list(lines.values())
    step = (
        alt.X("step:Q", title="training step (log scale)")
        .scale(type="symlog", constant=20)
        .axis(values=sorted(set(data["step"])), labelOverlap="greedy", grid=False, format="~s")
    )
    look = {"scale": alt.Scale(domain=labels, range=list(_COLORS[: len(labels)])), "title": None}
    key = alt.Legend(orient="top", symbolSize=90, labelLimit=400)
    base = alt.Chart(data).encode(step, color=alt.Color("line:N", legend=key, **look))
    band = base.mark_area(opacity=0.16).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    curve = base.mark_line(strokeWidth=2.5).encode(
        alt.Y("value:Q", title=axis).scale(zero=True),
        strokeDash=alt.StrokeDash(
            "line:N", title=None, legend=key, scale=alt.Scale(domain=labels, range=[[1, 0], [6, 4]][: len(labels)])
        ),
    )
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        alt.Y("value:Q"),
        shape=alt.Shape(
            "line:N", title=None, legend=key, scale=alt.Scale(domain=labels, range=["circle", "square"][: len(labels)])
        ),
    )
    chart = alt.layer(band, curve, points).properties(width=560, height=280, title=title)
    return (
        chart.configure(font="sans-serif", background="white")
        .configure_axis(labelFontSize=12, titleFontSize=13, titleFontWeight="normal")
        .configure_legend(labelFontSize=13)
        .configure_title(fontSize=15, anchor="start")
    )


def svg(chart: alt.LayerChart) -> str:
    """The chart as an SVG document, drawn without a browser or network."""
    return str(vl_convert.vegalite_to_svg(chart.to_json()))
